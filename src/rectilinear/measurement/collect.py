"""One pass over the data: the moments of every block of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockAccumulator, BlockMoments, NonFiniteError
from rectilinear.core.moments import Moments
from rectilinear.core.shifted import RowPairs
from rectilinear.core.sinks import REFERENCE_TOKENS
from rectilinear.errors import JobError
from rectilinear.measurement.partners import Partners, Schedule
from rectilinear.measurement.pieces import Piece, count_rows, count_tokens, in_folds, mask_of
from rectilinear.measurement.settings import Measurement
from rectilinear.models.capture import Span, capture_blocks
from rectilinear.models.layout import Layout
from rectilinear.models.running import base_of, evaluating
from rectilinear.models.walk import Passes, Walk
from rectilinear.progress import Progress
from rectilinear.ranks import ALONE, Ranks, current
from rectilinear.text.batches import Batch

_Key = TypeVar("_Key")
_Moments = TypeVar("_Moments", BlockMoments, Moments)


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
    schedule: Schedule | None = None,
) -> list[BlockMoments]:
    """The moments of every block, or part of one, from one pass over the batches.

    Row i of N belongs to fold ``i * folds // N``. No more is kept than the moments, while a block runs its input, and
    in host memory what of rows is yet to be paired: of one row or a few where documents are known, else of a batch.

    Args:
        passes: whole passes over batches; or a walk, which goes on by one block, the one that is measured.
        blocks, rows, settings, progress: what is measured, what is known of it, and how.
        layout: of hidden states.
        numbers: the blocks' indices, for errors; 0 and so on where not given.
        schedule: see `find_schedule`; all batches of a single process when not given.

    Raises:
        JobError: a block's activations are not finite, or it has no tensor in or out.
    """
    batches, numbers = passes.batches, numbers or range(len(blocks))
    folds, paper = min(settings.folds, sum(map(count_rows, batches))), settings.convention == "paper"
    intake = _Intake([_accumulator(settings, folds, rows, block) for block in blocks], numbers, layout)
    schedule = schedule or find_schedule(batches, settings, layout, rows)
    ordered = in_folds(
        batches, folds, passes.stage, progress, padding_counts=paper, decoder=layout.decoder, schedule=schedule
    )
    final = base_of(passes.model) if paper and passes.ends else None
    with evaluating(passes.model), capture_blocks(blocks, intake.consume, final=final):
        for number, (batch, pieces) in zip(schedule.order, ordered, strict=True):
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
                self._accumulators[index].update(piece.of(x), piece.of(y), piece.fold, where, own, piece.counted)
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
    collect: Callable[..., list[BlockMoments]],
    passes: Passes,
    spans: Mapping[_Key, tuple[int, Span]],
    schedule: Schedule,
) -> Iterator[tuple[_Key, BlockMoments | None]]:
    """The moments of blocks, or parts of blocks; each is the caller's alone, so that it can be let go.

    Along a walk blocks come one after the other, so that no more than one's moments are in memory. Of processes that
    share the rows each has those of some blocks, from all rows, and None of the others.

    Args:
        collect: `collect_moments`, but for the passes and the blocks.
        passes: whole ones, or a walk.
        spans: what is measured, each with the index of its block.
        schedule: of the batches that run here.

    Raises:
        JobError: as `collect_moments`, of any of the processes.
    """
    ranks, done = current(), count()
    passes.numbers = schedule.order
    depths = sorted({block for block, _ in spans.values()}) if isinstance(passes, Walk) else [None]
    with closing(passes), evaluating(passes.model):
        for depth in depths if spans else []:
            keys = [key for key, (block, _) in spans.items() if depth in (None, block)]
            passes.advance(depth or 0)
            indices, modules = zip(*(spans[key] for key in keys), strict=True)
            moments = collect(passes, modules, numbers=indices, schedule=schedule)
            for key in keys:
                yield key, merge(moments.pop(0), BlockMoments, next(done) % ranks.count)


def merge(moments: _Moments | None, kind: type[_Moments], at: int = 0) -> _Moments | None:
    """The moments of all processes together, at one of them; None elsewhere, and where none has any."""
    ranks = current()
    if ranks.count == 1:
        return moments
    for tensors in ranks.collect(moments.to("cpu").to_tensors() if moments else {}, at):
        theirs = kind.from_tensors(tensors) if tensors else None
        moments = moments + theirs if moments and theirs else moments or theirs
    return moments if ranks.rank == at else None


def find_schedule(
    batches: Sequence[Batch],
    settings: Measurement = Measurement(),
    layout: Layout = Layout(),
    rows: RowFacts = RowFacts(),
    ranks: Ranks = ALONE,
) -> Schedule:
    """Which batches one of some processes runs to measure, in which order, and what their rows are paired with."""
    first = _first(batches, layout, settings.convention == "paper")
    return Schedule.of([*map(count_rows, batches)], rows.partners, first, ranks)


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
