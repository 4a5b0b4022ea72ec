"""One pass over the data: the moments of every block of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockAccumulator, BlockMoments, NonFiniteError
from rectilinear.core.shifted import RowPairs
from rectilinear.core.sinks import REFERENCE_TOKENS
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.partners import Pairing, Partners
from rectilinear.measurement.settings import Measurement
from rectilinear.models.capture import Span, capture_blocks
from rectilinear.models.layout import Layout
from rectilinear.models.running import base_of, evaluating
from rectilinear.models.walk import Passes, Walk
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch, ids_of, tensors_of

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class RowFacts:
    """What is known of the rows of a text.

    Attributes:
        partners: for the shifted null; None for none.
        bos: id of the tokenizer's BOS; None where it has none, or it is not known.
        lead: id of the token that each row begins with, whose tokens are kept apart as attention sinks are; None for
            none.
        documents: how many they are of; None where that is not known.
    """

    partners: Partners | None = None
    bos: int | None = None
    lead: int | None = None
    documents: int | None = None


def collect_moments(
    passes: Passes,
    blocks: Sequence[nn.Module | Span],
    settings: Measurement = Measurement(),
    progress: Progress | None = None,
    *,
    layout: Layout = Layout(),
    numbers: Sequence[int] | None = None,
    rows: RowFacts = RowFacts(),
) -> list[BlockMoments]:
    """The moments of every block, or part of one, from one pass over the batches.

    Row i of N belongs to fold ``i * folds // N``. No more is kept than the moments, while a block runs its input, and
    in host memory what of rows is yet to be paired: of one row or a few where documents are known, else of a batch.

    Args:
        passes: whole passes over batches; or a walk, which goes on by one block, the one that is measured.
        blocks, rows, settings, progress: what is measured, what is known of it, and how.
        layout: of hidden states.
        numbers: the blocks' indices, for errors; 0 and so on where not given.

    Raises:
        JobError: a block's activations are not finite, or it has no tensor in or out.
    """
    batches, numbers = passes.batches, numbers or range(len(blocks))
    lengths = [*map(count_rows, batches)]
    folds, paper = min(settings.folds, sum(lengths)), settings.convention == "paper"
    intake = _Intake([_accumulator(settings, folds, rows, block) for block in blocks], numbers, layout)
    pairing = Pairing(rows.partners, lengths, _first(batches, layout, paper))
    ordered = in_folds(
        batches, folds, passes.stage, progress, padding_counts=paper, decoder=layout.decoder, pairing=pairing
    )
    final = base_of(passes.model) if paper and passes.ends else None
    with evaluating(passes.model), capture_blocks(blocks, intake.consume, final=final):
        for number, (batch, pieces) in zip(pairing.order, ordered, strict=True):
            intake.begin(batch, pieces)
            passes.step(number, to_the_end=final is not None)
            # A failure waits for the end of the pass: cut short, it would leave a sharded model in pieces.
            if intake.failure:
                raise intake.failure
    return intake.moments()


class _Intake:
    """What blocks hand over, and the moments of it."""

    def __init__(self, accumulators: Sequence[BlockAccumulator], numbers: Sequence[int], layout: Layout) -> None:
        self._accumulators, self._numbers, self._layout = accumulators, numbers, layout
        self.failure: JobError | None = None
        self._pieces: list[Piece] = []
        self._shape: tuple[int, int | None] = (0, None)  # rows and tokens of the batch that is running
        self._places: dict[int, list[tuple[Piece, Tensor, RowPairs | None]]] = {}  # the same for every block
        self._ran: set[int] = set()  # blocks on that batch, of which one that runs again has no pairs

    def begin(self, batch: Batch, pieces: list[Piece]) -> None:
        """Expect what blocks hand over of a batch."""
        self._pieces, self._shape = pieces, (count_rows(batch), count_tokens(batch, self._layout.decoder))
        self._places.clear()
        self._ran.clear()

    def consume(self, index: int, x: Tensor, y: Tensor) -> None:
        """Take in what a block was given and gave."""
        if self.failure:
            return
        try:
            x, y = (self._layout.by_rows(hidden, *self._shape) for hidden in (x, y))
            if (length := x.shape[1]) not in self._places:
                self._places[length] = [(one, one.places(length), one.paired(length)) for one in self._pieces]
            for piece, where, pairs in self._places[length]:
                own = None if index in self._ran else pairs
                self._accumulators[index].update(piece.of(x), piece.of(y), piece.fold, where, own)
            self._ran.add(index)
        except (NonFiniteError, ValueError) as error:
            hint = "; try `dtype=float32`" if isinstance(error, NonFiniteError) and x.dtype.itemsize < 4 else ""
            self.failure = JobError(f"block {self._numbers[index]}: {error}{hint}")

    def moments(self) -> list[BlockMoments]:
        """The moments of every block."""
        frozen = []
        for index, accumulator in zip(self._numbers, self._accumulators, strict=True):
            try:
                frozen.append(accumulator.freeze())
            except NonFiniteError as error:  # of so few tokens that they were not looked at before
                raise JobError(f"block {index}: {error}") from None
        return frozen


def hand_over(
    collect: Callable[..., list[BlockMoments]], passes: Passes, spans: Mapping[_Key, tuple[int, Span]]
) -> Iterator[tuple[_Key, BlockMoments]]:
    """The moments of blocks, or parts of blocks; each is the caller's alone, so that it can be let go.

    Along a walk blocks come one after the other, so that no more than one's moments are in memory.

    Args:
        collect: `collect_moments`, but for the passes and the blocks.
        passes: whole ones, or a walk.
        spans: what is measured, each with the index of its block.
    """
    depths = sorted({block for block, _ in spans.values()}) if isinstance(passes, Walk) else [None]
    with closing(passes), evaluating(passes.model):
        for depth in depths if spans else []:
            passes.advance(depth or 0)
            keys = [key for key, (block, _) in spans.items() if depth in (None, block)]
            moments = collect(passes, [spans[key][1] for key in keys], numbers=[spans[key][0] for key in keys])
            for key in keys:
                yield key, moments.pop(0)


def _first(batches: Sequence[Batch], layout: Layout, padding_counts: bool) -> int:
    """How many batches hold the tokens that tell attention sinks, so that these do not depend on the batches."""
    tokens = 0
    for place, batch in enumerate(batches):
        mask = None if padding_counts else mask_of(batch, layout.decoder)
        tokens += (
            int(mask.sum()) if mask is not None else count_rows(batch) * (count_tokens(batch, layout.decoder) or 1)
        )
        if tokens >= REFERENCE_TOKENS:
            return place + 1
    return len(batches)


def _accumulator(settings: Measurement, folds: int, rows: RowFacts, block: nn.Module | Span) -> BlockAccumulator:
    products = None if settings.products == "auto" else getattr(torch, settings.products)
    updates = isinstance(block, Span) and block.is_update
    return BlockAccumulator(folds, settings.sink_ratio, products, rows.lead, updates)


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
    pairing: Pairing | None = None,
) -> Iterator[tuple[Batch, list[Piece]]]:
    """Batches, and their rows by fold: row i of N belongs to fold ``i * folds // N``; progress is reported after each.

    Where padding counts, all tokens are taken for real ones. Batches come in the order that a pairing of rows asks for.
    """
    begins = [*accumulate(map(count_rows, batches), initial=0)]
    done, total = 0, begins[-1]
    for place in pairing.order if pairing else range(len(batches)):
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
                    pairing.take(range(first + start, first + stop)) if pairing else None,
                    *(each if each is None else each[start:stop] for each in (mask, ids)),
                )
                for start, stop in pairwise([*starts, rows])
            ],
        )
        done += rows
        if progress:
            progress(stage, done, total)


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
