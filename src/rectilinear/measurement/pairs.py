"""How linear the way is from every depth to every later one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import NonFiniteError
from rectilinear.core.depth_pairs import (
    DepthAccumulator,
    DepthMoments,
    DepthTokens,
    depth_pairs,
    tell_sinks,
)
from rectilinear.core.depth_sketches import (
    DepthSketches,
    SketchAccumulator,
    SketchedScores,
    projection,
    relative_error,
)
from rectilinear.core.scores import Scores, score_folds
from rectilinear.errors import JobError
from rectilinear.measurement.collect import RowFacts
from rectilinear.measurement.depths import sketch_along, states_by_depth
from rectilinear.measurement.pairs_needs import PairsNeeds
from rectilinear.measurement.pairs_record import PairRecord, PairScore, PairScores, PairsRecord
from rectilinear.measurement.settings import Measurement
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.walk import Passes, Walk
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch


def measure_pairs(
    passes: Passes,
    stack: BlockStack,
    settings: Measurement,
    needs: PairsNeeds,
    progress: Progress | None = None,
    rows: RowFacts = RowFacts(),
) -> PairsRecord:
    """Score every pair of depths, from a pass over the batches of its own, or along two walks.

    Args:
        passes: whole ones, or a walk; what is run begins anew.
        stack, settings, progress, rows: what is measured, and how.
        needs: see `find_pairs_needs`.

    Raises:
        JobError: activations that are not finite, or a block that did not run.
    """
    found: tuple[DepthMoments | DepthSketches | None, DepthMoments | DepthSketches | None]
    model, batches, columns = passes.model, passes.batches, needs.columns
    try:
        if columns and needs.on_disk and isinstance(passes, Walk):
            found = sketch_along(Walk(model, stack, batches), columns, settings.sink_ratio, progress, rows)
        else:
            tokens = tell_sinks(_tokens(model, stack, batches, progress, rows), settings.sink_ratio)
            found = _sketch(tokens, columns) if columns else _gather(tokens)
    except (NonFiniteError, ValueError) as error:
        raise JobError(f"pairs of depths: {error}") from None
    everything, regular = found
    if everything is None:
        raise JobError("expected tokens to score pairs of depths on, got none; is every token masked?")
    return _record(everything, regular, None if columns == needs.width else columns)


def _tokens(
    model: nn.Module, stack: BlockStack, batches: Sequence[Batch], progress: Progress | None, rows: RowFacts
) -> Iterator[tuple[list[Tensor], Tensor | None]]:
    """Real tokens' states at all depths, and which of them begin their rows."""
    for pieces, states in states_by_depth(model, stack, batches, 1, "rows for pairs", progress):
        for piece in pieces:
            begin = piece.begins(states[0].shape[1], rows.lead)
            yield [piece.of(each) for each in states], begin if begin is None else begin.to(states[0].device)


def _gather(tokens: Iterator[DepthTokens]) -> tuple[DepthMoments | None, DepthMoments | None]:
    accumulator = DepthAccumulator()
    for states, sinks in tokens:
        accumulator.add(states, sinks)
    return accumulator.freeze()


def _sketch(tokens: Iterator[DepthTokens], columns: int) -> tuple[DepthSketches | None, DepthSketches | None]:
    accumulator: SketchAccumulator | None = None
    for states, sinks in tokens:
        if accumulator is None:
            accumulator = SketchAccumulator(len(states), columns)
            seen = projection(states[0].shape[1], columns)
        exact = [each.to("cpu", torch.float64) for each in states]
        projected = torch.stack([each @ seen for each in exact], 1)
        for depth, each in enumerate(states):
            accumulator.add(depth, each, projected[:, depth:], sinks)
    return accumulator.freeze() if accumulator else (None, None)


def _record(
    everything: DepthMoments | DepthSketches, regular: DepthMoments | DepthSketches | None, columns: int | None
) -> PairsRecord:
    of_all, without = _all_scores(everything), _all_scores(regular) if regular else {}
    scores = [
        PairRecord(first=first, last=last, without_sinks=without.get((first, last)), **dict(found))
        for (first, last), found in of_all.items()
    ]
    depths = max(last for _, last in of_all) + 1
    return PairsRecord(
        depths=depths,
        tokens=everything.count,
        sinks=everything.count - (regular.count if regular else 0),
        columns=columns,
        relative_error=relative_error(columns) if columns else None,
        scores=tuple(scores),
    )


def _all_scores(moments: DepthMoments | DepthSketches) -> dict[tuple[int, int], PairScores]:
    if isinstance(moments, DepthMoments):
        pairs = depth_pairs(len(moments.means))
        return {pair: _scores(score_folds((moments.pair(*pair),), moments.eps)) for pair in pairs}
    return {
        (first, last): _scores(found)
        for first in range(len(moments.moments) - 1)
        for last, found in enumerate(moments.scores_from(first), first + 1)
    }


def _scores(found: Scores | SketchedScores) -> PairScores:
    output, update = (PairScore.of(each) for each in (found.linearity, found.update_linearity))
    return PairScores(linearity=output, update_linearity=update, identity=found.identity)
