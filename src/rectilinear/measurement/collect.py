"""One pass over the data: the moments of every block of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockAccumulator, BlockMoments, NonFiniteError
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.models.capture import capture_blocks, evaluating, run, runnable
from rectilinear.models.find_blocks import BlockStack
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch


def collect_moments(
    model: nn.Module,
    stack: BlockStack,
    batches: Sequence[Batch],
    settings: Measurement = Measurement(),
    progress: Progress | None = None,
    *,
    first: int = 0,
) -> list[BlockMoments]:
    """The moments of every block of the stack, from one pass over the batches.

    Row i of N belongs to fold ``i * folds // N``. No more is kept than the moments and, while a
    block runs, its input. ``first`` is the index of the stack's first block, for errors.

    Raises:
        JobError: a block's activations are not finite, or it has no tensor in or out.
    """
    folds = min(settings.folds, sum(map(count_rows, batches)))
    products = None if settings.products == "auto" else getattr(torch, settings.products)
    accumulators = [BlockAccumulator(folds, settings.sink_ratio, products) for _ in stack.blocks]
    paper = settings.convention == "paper"
    pieces: list[Piece] = []
    failures: list[JobError] = []

    def consume(index: int, x: Tensor, y: Tensor) -> None:
        # A failure waits for the end of the pass: cut short, it would leave a sharded model in pieces.
        for piece in () if failures else pieces:
            try:
                accumulators[index].update(piece.of(x), piece.of(y), piece.fold)
            except (NonFiniteError, ValueError) as error:
                coarse = isinstance(error, NonFiniteError) and x.dtype.itemsize < 4
                failures.append(JobError(f"block {first + index}: {error}{'; try `dtype=float32`' * coarse}"))

    final = runnable(model) if paper else None
    with evaluating(model), capture_blocks(stack.blocks, consume, final=final):
        for batch, found in in_folds(batches, folds, "rows", progress, padding_counts=paper):
            pieces[:] = found
            run(model, batch)
            if failures:
                raise failures[0]
    frozen = []
    for index, accumulator in enumerate(accumulators, first):
        try:
            frozen.append(accumulator.freeze())
        except NonFiniteError as error:  # of so few tokens that they were not looked at before
            raise JobError(f"block {index}: {error}") from None
    return frozen


def count_rows(batch: Batch) -> int:
    """Rows of a batch: the first size of its first tensor.

    Raises:
        RequestError: it holds no tensor.
    """
    tensors = tensors_of(batch)
    if not tensors or not tensors[0].ndim:
        raise RequestError(f"expected batches of tensors [rows, ...], got {type(batch).__name__}")
    return len(tensors[0])


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    values = batch.values() if isinstance(batch, Mapping) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a batch that belong to one fold, and which of their tokens are real."""

    start: int
    stop: int
    rows: int
    fold: int
    mask: Tensor | None  # [stop - start, seq_len] bool

    def of(self, hidden: Tensor) -> Tensor:
        """``[tokens, width]``: these rows' tokens of ``[rows, seq_len, width]`` or ``[rows * seq_len, width]``.

        Raises:
            ValueError: hidden states of another shape, such as several residual streams or sequence before batch.
        """
        if hidden.ndim not in (2, 3) or len(hidden) % self.rows or (hidden.ndim == 3 and len(hidden) != self.rows):
            raise ValueError(
                f"expected hidden states [rows, seq_len, width], got {[*hidden.shape]} for {self.rows} rows"
            )
        hidden = hidden.reshape(self.rows, -1, hidden.shape[-1])[self.start : self.stop]
        return hidden.flatten(0, 1) if self.mask is None else hidden[self.mask.to(hidden.device)]


def in_folds(
    batches: Sequence[Batch], folds: int, stage: str, progress: Progress | None, *, padding_counts: bool = False
) -> Iterator[tuple[Batch, list[Piece]]]:
    """Batches, and their rows by fold: row i of N belongs to fold ``i * folds // N``; progress is reported after each.

    Where padding counts, all tokens are taken for real ones.
    """
    done, total = 0, sum(map(count_rows, batches))
    for batch in batches:
        rows, mask = count_rows(batch), None if padding_counts else mask_of(batch)
        fold_of = [(done + row) * folds // total for row in range(rows)]
        starts = [row for row in range(rows) if row == 0 or fold_of[row] != fold_of[row - 1]]
        pieces = [
            Piece(start, stop, rows, fold_of[start], None if mask is None else mask[start:stop])
            for start, stop in pairwise([*starts, rows])
        ]
        yield batch, pieces
        done += rows
        if progress:
            progress(stage, done, total)


def mask_of(batch: Batch) -> Tensor | None:
    """``[rows, seq_len]`` bool, true for real tokens; None where nothing is padding."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):
        return None
    return mask.bool()
