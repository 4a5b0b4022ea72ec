"""How linear the way is from every depth to every later one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rectilinear.core.block_moments import NonFiniteError
from rectilinear.core.depth_pairs import DepthAccumulator, DepthMoments, bytes_of_pairs, depth_pairs
from rectilinear.core.scores import score_folds
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.collect import RowFacts
from rectilinear.measurement.depths import states_by_depth
from rectilinear.measurement.pairs_record import PairRecord, PairScore, PairScores, PairsRecord
from rectilinear.measurement.settings import Measurement
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.memory import available_memory
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch


def check_memory(depths: int, width: int) -> str:
    """What all pairs take, in words; RequestError where there is not as much memory."""
    needed, there = bytes_of_pairs(depths, width), available_memory()
    cost = f"{depths * (depths - 1) // 2:,} pairs of depths, {needed / 1e9:.1f} GB of moments"
    if needed > there:
        raise RequestError(f"expected memory for {cost}, got {there / 1e9:.1f} GB; try without `pairs`")
    return cost


def measure_pairs(
    model: nn.Module,
    stack: BlockStack,
    batches: Sequence[Batch],
    settings: Measurement,
    progress: Progress | None = None,
    rows: RowFacts = RowFacts(),
) -> PairsRecord:
    """Score every pair of depths, from one pass over the batches of its own.

    Raises:
        JobError: activations that are not finite, or a block that did not run.
    """
    accumulator = DepthAccumulator(settings.sink_ratio)
    try:
        for pieces, states in states_by_depth(model, stack, batches, 1, "rows for pairs", progress):
            for piece in pieces:
                ids = piece.places(states[0].shape[1])[:, 1].to(states[0].device)
                begin = None if rows.lead is None else torch.eq(ids, rows.lead)
                accumulator.update([piece.of(each) for each in states], begin)
    except (NonFiniteError, ValueError) as error:
        raise JobError(f"pairs of depths: {error}") from None
    everything, regular = accumulator.freeze()
    if everything is None:
        raise JobError("expected tokens to score pairs of depths on, got none; is every token masked?")
    return _record(everything, regular)


def _record(everything: DepthMoments, regular: DepthMoments | None) -> PairsRecord:
    depths = len(everything.means)
    scores = [
        PairRecord(
            first=first,
            last=last,
            without_sinks=regular and PairScores(**_scores(regular, first, last)),
            **_scores(everything, first, last),
        )
        for first, last in depth_pairs(depths)
    ]
    sinks = everything.count - (regular.count if regular else 0)
    return PairsRecord(depths=depths, tokens=everything.count, sinks=sinks, scores=tuple(scores))


def _scores(moments: DepthMoments, first: int, last: int) -> dict[str, PairScore | float | None]:
    found = score_folds((moments.pair(first, last),), moments.eps)
    output, update = (PairScore.of(each) for each in (found.linearity, found.update_linearity))
    return {"linearity": output, "update_linearity": update, "identity": found.identity}
