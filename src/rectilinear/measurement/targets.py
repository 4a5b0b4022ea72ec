"""What of each block is measured: the block, the part of it that mixes tokens (its attention), the other (its MLP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.models.capture import Span
from rectilinear.models.find_blocks import BlockStack, takes_own_inputs
from rectilinear.models.part_probe import probe_parts
from rectilinear.settings import Target
from rectilinear.text.batches import Batch, ids_of


class Measured(NamedTuple):
    """A block, or a part of one, that is measured."""

    target: Target
    block: int
    span: Span


def find_measured(
    model: nn.Module, stack: BlockStack, targets: Sequence[Target], batch: Batch
) -> tuple[list[Measured], list[str]]:
    """The blocks and parts of blocks to measure, target by target, and a line for each target that some blocks lack.

    Raises:
        RequestError: no block has such a part, or the batch has no token ids to find it with.
    """
    found: list[Measured] = []
    warnings: list[str] = []
    ids = None if takes_own_inputs(model, stack) else ids_of(batch)
    if ids is None and {*targets} - {"block"}:
        raise RequestError(
            "expected token ids to find the parts of blocks with, got other inputs, or a "
            "decoder beside an encoder; try `target=block`"
        )
    parts = probe_parts(model, stack, ids) if ids is not None and {*targets} - {"block"} else None
    for target in targets:
        reasons: dict[int, str] = {}
        for index, block in enumerate(stack.blocks):
            if target == "block" or parts is None:
                found.append(Measured(target, index, Span(block, block)))
                continue
            try:
                span = parts.part(index, target).update_span(model)
            except RequestError as error:
                reasons[index] = str(error)
            else:
                found.append(Measured(target, index, span))
        if len(reasons) == len(stack):
            raise RequestError(reasons[0])
        if reasons:
            first = next(iter(reasons))
            warnings.append(f"{target}: blocks {[*reasons]} are left out: {reasons[first]}")
    return found, warnings
