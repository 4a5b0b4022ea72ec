"""What it takes to score all pairs of depths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rectilinear.core.depth_pairs import bytes_of_pairs
from rectilinear.core.depth_sketches import FEWEST, MOST, bytes_of_sketches
from rectilinear.errors import RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.models.find_blocks import BlockStack, width_of
from rectilinear.models.memory import available_memory
from rectilinear.models.offload import on_disk
from rectilinear.models.state_store import check_room


@dataclass(frozen=True)
class PairsNeeds:
    """What all pairs of depths take.

    Attributes:
        depths, moments: how many depths there are, and bytes of moments.
        columns: of the random projection that later states are seen through; None for none. As many as the states are
            wide are all of them, and scores exact.
        on_disk: whether the weights are, so that pairs are seen through columns along a walk where that can be.
        width: of hidden states; None where it is not known.
        states: bytes of projections that are kept of all rows, in a file where they are many.
    """

    depths: int
    moments: int
    columns: int | None
    on_disk: bool
    width: int | None = None
    states: int = 0

    def __str__(self) -> str:
        seen = "" if self.columns in (None, self.width) else f", through {self.columns} random columns"
        kept = f" and {self.states / 1e9:.1f} GB of projections" if self.states else ""
        pairs = self.depths * (self.depths - 1) // 2
        return f"{pairs:,} pairs of depths, {self.moments / 1e9:.1f} GB of moments{kept}{seen}"


def find_pairs_needs(module: nn.Module, stack: BlockStack, measurement: Measurement, tokens: int) -> PairsNeeds:
    """What it takes to score all pairs on some tokens, through so many columns as are asked for, else exactly.

    Where that does not fit in memory it is through as many columns as fit. Of a module that does not say how wide its
    hidden states are nothing is known beforehand.

    Raises:
        RequestError: not enough memory even so, no room for projections, or more columns than the states have.
    """
    width, columns, depths = width_of(getattr(module, "config", None)), measurement.pairs_columns, len(stack) + 1
    there, disk = available_memory(), on_disk(module)
    if width is None:
        return PairsNeeds(depths, 0, columns, disk)
    if columns is not None and columns > width:
        raise RequestError(f"expected at most {width} `pairs_columns`, as wide as hidden states are, got {columns}")
    exact = PairsNeeds(depths, bytes_of_pairs(depths, width), None, disk, width)
    powers = [2**power for power in range(MOST.bit_length()) if FEWEST <= 2**power <= min(MOST, width)]
    choices = [columns] if columns else sorted({*powers, min(MOST, width)}, reverse=True)
    seen = [
        PairsNeeds(depths, bytes_of_sketches(depths, width, each), each, disk, width, 8 * tokens * depths * each * disk)
        for each in choices
    ]
    ways = seen if columns else [exact, *seen]
    for needs in ways:
        if needs.moments <= there:
            check_room(needs.states)
            return needs
    raise RequestError(f"expected memory for {ways[-1]}, got {there / 1e9:.1f} GB; try without `pairs`")
