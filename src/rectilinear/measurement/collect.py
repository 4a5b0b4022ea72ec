"""One pass over the data: the moments of every block of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    settings: Measurement | None = None,
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
    settings = settings or Measurement()
    lengths = [count_rows(batch) for batch in batches]
    total = sum(lengths)
    folds = min(settings.folds, total)
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
            except NonFiniteError as error:
                hint = "; try `dtype=float32`" if x.dtype.itemsize < 4 else ""
                failures.append(JobError(f"block {first + index}: {error}{hint}"))
            except ValueError as error:
                failures.append(JobError(f"block {first + index}: {error}"))

    done = 0
    final = runnable(model) if paper else None
    with evaluating(model), capture_blocks(stack.blocks, consume, final=final):
        for batch, length in zip(batches, lengths, strict=True):
            pieces[:] = pieces_of(done, length, total, folds, None if paper else mask_of(batch))
            run(model, batch)
            if failures:
                raise failures[0]
            done += length
            if progress:
                progress("rows", done, total)
    return [_freeze(first + index, accumulator) for index, accumulator in enumerate(accumulators)]


def _freeze(index: int, accumulator: BlockAccumulator) -> BlockMoments:
    try:
        return accumulator.freeze()
    except NonFiniteError as error:  # of so few tokens that they were not looked at before
        raise JobError(f"block {index}: {error}") from None


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
            ValueError: hidden states of another shape, such as several residual streams or
            sequence before batch.
        """
        if hidden.ndim not in (2, 3) or len(hidden) % self.rows or (hidden.ndim == 3 and len(hidden) != self.rows):
            raise ValueError(
                f"expected hidden states [rows, seq_len, width], got {[*hidden.shape]} for {self.rows} rows"
            )
        hidden = hidden.reshape(self.rows, -1, hidden.shape[-1])[self.start : self.stop]
        return hidden.flatten(0, 1) if self.mask is None else hidden[self.mask.to(hidden.device)]


def pieces_of(done: int, rows: int, total: int, folds: int, mask: Tensor | None) -> list[Piece]:
    """A batch of rows by fold: row i of ``total`` belongs to fold ``i * folds // total``.

    Args:
        done: rows of earlier batches.
        rows: rows of this one.
        total: rows of all.
        folds: number of folds.
        mask: ``[rows, seq_len]`` bool, true for real tokens; None where all are.
    """
    fold_of = [(done + row) * folds // total for row in range(rows)]
    edges = [0, *(row for row in range(1, rows) if fold_of[row] != fold_of[row - 1]), rows]
    return [
        Piece(start, stop, rows, fold_of[start], None if mask is None else mask[start:stop])
        for start, stop in pairwise(edges)
        if stop > start
    ]


def mask_of(batch: Batch) -> Tensor | None:
    """``[rows, seq_len]`` bool, true for real tokens; None where nothing is padding."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):
        return None
    return mask.bool()
