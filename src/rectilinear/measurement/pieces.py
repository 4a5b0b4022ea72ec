"""Batches, cut into pieces of consecutive rows that belong to one fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rectilinear.core.shifted import RowPairs
from rectilinear.errors import RequestError
from rectilinear.measurement.partners import Pairing, Schedule
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch, ids_of, tensors_of


def count_rows(batch: Batch) -> int:
    """Rows of a batch: the first size of its first tensor.

    Raises:
        RequestError: it holds no tensor.
    """
    tensors = tensors_of(batch)
    if not tensors or not tensors[0].ndim:
        raise RequestError(f"expected batches of tensors [rows, ...], got {type(batch).__name__}")
    return len(tensors[0])


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a batch that belong to one fold, and which of their tokens are real."""

    start: int
    stop: int
    fold: int
    counted: bool  # whether moments are of these tokens, or other rows are only paired with them
    pairs: RowPairs | None
    mask: Tensor | None  # [stop - start, seq_len] bool
    ids: Tensor | None  # [stop - start, seq_len]

    def of(self, hidden: Tensor) -> Tensor:
        """``[tokens, width]``: these rows' tokens of ``[rows, seq_len, width]``."""
        hidden = hidden[self.start : self.stop]
        return hidden.flatten(0, 1) if self.mask is None else hidden[self.mask.to(hidden.device)]

    def paired(self, seq_len: int) -> RowPairs | None:
        """Which rows are paired, with as many tokens of each as `of` gives."""
        rows = self.stop - self.start
        lengths = (seq_len,) * rows if self.mask is None else tuple(self.mask.sum(1).tolist())
        return self.pairs and replace(self.pairs, lengths=lengths)

    def begins(self, seq_len: int, lead: int | None) -> Tensor | None:
        """``[tokens]`` bool on the CPU, which are the token that every row begins with; None where rows have none."""
        return None if lead is None else self.places(seq_len)[:, 1] == lead

    def places(self, seq_len: int) -> Tensor:
        """``[tokens, 2]`` int64 on the CPU: position in its row, and token id, of each token that `of` gives.

        Of hidden states ``[rows, seq_len, width]`` that are not one for each of the batch's ids there are no ids: -1.
        """
        real = torch.ones(self.stop - self.start, seq_len) if self.mask is None else self.mask.cpu()
        known = self.ids is not None and self.ids.shape == real.shape
        ids = self.ids.cpu().long() if self.ids is not None and known else torch.full(real.shape, -1)
        return torch.stack([real.long().cumsum(1) - 1, ids], -1)[real.bool()]


def in_folds(
    batches: Sequence[Batch],
    folds: int,
    stage: str,
    progress: Progress | None,
    *,
    padding_counts: bool = False,
    decoder: bool = False,
    schedule: Schedule | None = None,
) -> Iterator[tuple[Batch, list[Piece]]]:
    """Batches, and their rows by fold: row i of N belongs to fold ``i * folds // N``; progress is reported after each.

    Where padding counts, all tokens are taken for real ones. Batches are those of a schedule, in its order; all of them
    where there is none.
    """
    begins = [*accumulate(map(count_rows, batches), initial=0)]
    schedule = schedule or Schedule.of([*map(count_rows, batches)])
    pairing = Pairing(schedule.pairs)
    done, total, to_run = 0, begins[-1], sum(count_rows(batches[place]) for place in schedule.order)
    for place in schedule.order:
        batch, first, rows = batches[place], begins[place], begins[place + 1] - begins[place]
        mask, ids = None if padding_counts else mask_of(batch, decoder), ids_of(batch, decoder)
        fold_of = [(first + row) * folds // total for row in range(rows)]
        starts = [row for row in range(rows) if row == 0 or fold_of[row] != fold_of[row - 1]]
        yield (
            batch,
            [
                Piece(
                    start,
                    stop,
                    fold_of[start],
                    place in schedule.counted,
                    pairing.take(range(first + start, first + stop)),
                    *(each if each is None else each[start:stop] for each in (mask, ids)),
                )
                for start, stop in pairwise([*starts, rows])
            ],
        )
        done += rows
        if progress:
            progress(stage, done, to_run)


def count_tokens(batch: Batch, decoder: bool = False) -> int | None:
    """Tokens in a row: the second size of the first tensor, or of a decoder's own; None where it has no other size."""
    own = (
        [batch[name] for name in ("decoder_input_ids", "labels") if name in batch] if isinstance(batch, Mapping) else []
    )
    tensors = [*(own if decoder else []), *tensors_of(batch)]
    return tensors[0].shape[1] if tensors and tensors[0].ndim == 2 else None


def mask_of(batch: Batch, decoder: bool = False) -> Tensor | None:
    """``[rows, seq_len]`` bool, true for real tokens; None where nothing is padding.

    A ``decoder`` beside an encoder has a mask of its own, or labels of which those that count are its tokens.
    """
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("decoder_attention_mask" if decoder else "attention_mask")
    if mask is None and decoder and isinstance(labels := batch.get("labels"), Tensor):
        mask = labels != -100
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):
        return None
    return mask.bool()
