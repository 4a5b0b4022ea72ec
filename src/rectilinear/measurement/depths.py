"""The hidden states of a batch at every depth: from one pass, or along a walk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import NonFiniteError
from rectilinear.core.depth_sketches import DepthSketches, SketchAccumulator, projection
from rectilinear.core.sinks import REFERENCE_TOKENS, norms_of, sink_limits
from rectilinear.errors import JobError
from rectilinear.measurement.collect import RowFacts
from rectilinear.measurement.pieces import Piece, count_rows, count_tokens, in_folds
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.layout import find_layout
from rectilinear.models.running import evaluating, run
from rectilinear.models.state_store import StateStore
from rectilinear.models.walk import Walk
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch


def states_by_depth(
    model: nn.Module,
    stack: BlockStack,
    batches: Sequence[Batch],
    folds: int,
    stage: str,
    progress: Progress | None = None,
) -> Iterator[tuple[list[Piece], list[Tensor]]]:
    """Of each batch its rows by fold, and its hidden states ``[rows, seq_len, width]`` at each depth, on one device.

    Depth 0 is before the first block, depth k after block k - 1.

    Raises:
        JobError: a block that did not run, or ran twice.
        ValueError: states that are not one for each token.
    """
    layout, blocks = find_layout(model, stack, batches[0]), stack.blocks
    states: dict[int, Tensor] = {}
    failures: list[JobError] = []

    def consume(index: int, x: Tensor, y: Tensor) -> None:
        if index + 1 in states:
            failures.append(JobError(f"expected blocks that run once in a pass, got block {index}, which runs again"))
        if index == 0:
            states[0] = x.clone()  # what comes after may write over it
        states[index + 1] = y.clone()

    with evaluating(model), capture_blocks(blocks, consume):
        for batch, pieces in in_folds(batches, folds, stage, progress, decoder=layout.decoder):
            states.clear()
            run(model, batch)
            if failures:
                raise failures[0]
            if len(states) != len(blocks) + 1:
                raise JobError(f"expected all {len(blocks)} blocks to run on each batch, got {max(len(states) - 1, 0)}")
            shape = count_rows(batch), count_tokens(batch, layout.decoder)
            yield pieces, [layout.by_rows(states[depth], *shape).to(states[0].device) for depth in range(len(states))]


def sketch_along(
    walk: Walk, columns: int, sink_ratio: float, progress: Progress | None, rows: RowFacts
) -> tuple[DepthSketches | None, DepthSketches | None]:
    """Moments of states and projections at all depths, of all tokens and without sinks, along two walks.

    The first one keeps the projections, of which the second one takes the products with the states that it comes by.
    """
    depths, kept, marks = len(walk.stack) + 1, StateStore(), dict[int, Tensor]()
    norms: dict[int, list[Tensor]] = {depth: [] for depth in range(depths)}
    with closing(walk):
        for depth, number, states, begin in _states_along(walk, rows, progress):
            seen = projection(states.shape[1], columns).to(states.device)
            kept[number * depths + depth] = states.double() @ seen  # in float64, as energies are differences of them
            norms[depth].append(norms_of(states.float())[0].cpu())
            if depth == 0:
                marks[number] = torch.zeros(len(states), dtype=torch.bool) if begin is None else begin
    for of_depth in norms.values():
        together = torch.cat(of_depth)
        if not together.isfinite().all():
            raise NonFiniteError
        limit = float(sink_limits(together[None, :REFERENCE_TOKENS], sink_ratio))
        for number, own in enumerate(of_depth):
            marks[number] |= own > limit
    accumulator = SketchAccumulator(depths, columns)
    with closing(walk.again()) as again:
        for depth, number, states, _ in _states_along(again, rows, progress):
            later = [kept[number * depths + other] for other in range(depth, depths)]
            accumulator.add(depth, states, torch.stack(later, 1), marks[number])
    return accumulator.freeze()


def _states_along(
    walk: Walk, rows: RowFacts, progress: Progress | None
) -> Iterator[tuple[int, int, Tensor, Tensor | None]]:
    """Depths, numbers of batches, real tokens' states there, and which of these begin their rows."""
    layout, passed = find_layout(walk.model, walk.stack, walk.batches[0]), list[Tensor]()

    def consume(index: int, x: Tensor, y: Tensor) -> None:
        passed[:] = [x.clone(), y.clone()]

    with evaluating(walk.model):
        for depth, block in enumerate(walk.stack.blocks):
            ordered = in_folds(walk.batches, 1, walk.stage, progress, decoder=layout.decoder)
            for number, (batch, [piece]) in enumerate(ordered):
                with capture_blocks([block], consume):
                    walk.step(number)
                shape = count_rows(batch), count_tokens(batch, layout.decoder)
                for there, found in zip((depth, depth + 1), passed, strict=True):
                    if there == depth or there == len(walk.stack):
                        states = layout.by_rows(found, *shape)
                        yield there, number, piece.of(states), piece.begins(states.shape[1], rows.lead)
