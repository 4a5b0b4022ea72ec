"""What can be replaced together, as far as that shows without a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rectilinear.errors import RequestError
from rectilinear.linearization.replacement import Replacement


def check_replacements(replacements: Sequence[Replacement], num_blocks: int, width: int) -> None:
    """Refuse what cannot be done to a model of some blocks.

    Raises:
        RequestError: an index out of range or named twice, blocks that are not consecutive, a kind
            that its target cannot take, a rank that saves nothing, no block before where one is needed.
    """
    taken: set[tuple[int, str]] = set()
    for one in replacements:
        for index in one.blocks:
            if not 0 <= index < num_blocks:
                raise RequestError(f"expected blocks from 0 to {num_blocks - 1}, got {index}")
            if taken & one.model_copy(update={"blocks": (index,)}).parts:
                raise RequestError(f"expected each block to be replaced once, got block {index} twice")
        taken |= one.parts
        if one.target in one.by.impossible:
            why = one.by.impossible[one.target]
            raise RequestError(f"expected another target than {one.target} for {one.kind}: {why}")
        if len(one.blocks) > 1 and one.target != "block":
            raise RequestError(f"expected one {one.target} a replacement, got {[*one.blocks]}; only blocks merge")
        if any(after != before + 1 for before, after in pairwise(one.blocks)):
            raise RequestError(f"expected consecutive blocks in one replacement, got {[*one.blocks]}")
        one.by.check(width)
    if len({index for one in replacements for index in one.removed}) == num_blocks:
        raise RequestError(f"expected at least one of {num_blocks} blocks to stay, got all of them removed")
    for one in replacements:
        before = one.blocks[0] - 1
        if one.by.needs_block_before and (before < 0 or taken & one.rests_on):
            raise RequestError(
                f"expected a block before {one.kind} block {one.blocks[0]} that stays, got "
                f"{'none' if before < 0 else f'block {before} replaced'}; try other blocks, or another `kind`"
            )
