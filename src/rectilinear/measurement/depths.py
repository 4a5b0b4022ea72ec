"""One pass over the data: the hidden states of a batch at every depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from rectilinear.errors import JobError
from rectilinear.measurement.pieces import Piece, count_rows, count_tokens, in_folds
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.layout import find_layout
from rectilinear.models.running import evaluating, run
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
