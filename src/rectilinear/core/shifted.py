"""Updates paired with inputs of other rows: tokens that depend on each other as much, and have nothing to do with them.

Tokens of text depend on each other, so that even an input that has nothing to do with an update explains more of it
than ``p / (n - 1)``. How much more shows where each row's updates are paired with the inputs of another row, position
by position: with the factor ``T T' = Sxx^+`` of the inputs, the cross moments ``Sx'd`` and the energy ``Sdd`` of these
pairs, such inputs explain ``|T' Sx'd|^2 / Sdd`` in sample, however many of the rows have a partner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rectilinear.core.moments import CrossAccumulator, CrossMoments, total
from rectilinear.core.solve import Factor


@dataclass(frozen=True)
class RowPairs:
    """Which rows some tokens are of, and which rows can be paired now that these are there.

    Attributes:
        rows: numbers of the rows, in the order of the tokens.
        pairs: of numbers: the row whose inputs and the row whose updates are paired, which came before or are these.
        inputs, updates: numbers of the rows whose inputs, or updates, are paired with later rows'.
        lengths: tokens of each row.
    """

    rows: Sequence[int]
    pairs: Sequence[tuple[int, int]]
    inputs: frozenset[int]
    updates: frozenset[int]
    lengths: tuple[int, ...] = ()

    @cached_property
    def needed(self) -> set[int]:
        """Numbers of the rows that are paired now."""
        return {row for pair in self.pairs for row in pair}


@dataclass(frozen=True, eq=False)
class Shifted:
    """Cross moments of inputs and updates of different rows; None where there are none.

    Attributes:
        regular: of pairs without an attention sink.
        sinks: of pairs with one, by their input or by their update.
    """

    regular: CrossMoments | None = None
    sinks: CrossMoments | None = None

    @property
    def all_pairs(self) -> CrossMoments | None:
        """Those with attention sinks and without."""
        return total([self.regular, self.sinks])

    def __add__(self, other: Shifted) -> Shifted:
        """Both samples together."""
        return Shifted(total([self.regular, other.regular]), total([self.sinks, other.sinks]))

    def to(self, device: torch.device | str) -> Shifted:
        """The same moments on another device."""
        return Shifted(*(part and part.to(device) for part in (self.regular, self.sinks)))

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``torch.save`` or ``safetensors``."""
        parts = {"regular": self.regular, "sinks": self.sinks}
        return {f"{kind}.{name}": t for kind, part in parts.items() if part for name, t in part.to_tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Shifted:
        """The inverse of `to_tensors`."""

        def part(kind: str) -> CrossMoments | None:
            found = {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
            return CrossMoments.from_tensors(found) if found else None

        return cls(part("regular."), part("sinks."))


class ShiftedAccumulator:
    """Gathers `Shifted` batch by batch; keeps what is paired with later rows, in host memory and as it was given."""

    def __init__(self) -> None:
        self._inputs: dict[int, Tensor] = {}  # by row
        self._updates: dict[int, Tensor] = {}
        self._sinks: dict[int, Tensor] = {}  # which tokens are
        self._sums = {"regular": CrossAccumulator(), "sinks": CrossAccumulator()}

    def update(
        self, x: Tensor, d: Tensor, sinks: Tensor, pairs: RowPairs, products: torch.dtype, kept: torch.dtype
    ) -> None:
        """Add the pairs of one batch.

        Args:
            x: ``[tokens, p]``, inputs of the rows of ``pairs``, one after the other.
            d: ``[tokens, p]``, updates.
            sinks: ``[tokens]`` bool, which tokens are attention sinks.
            pairs: which rows they are of, and what is paired.
            products: precision of the products.
            kept: that of inputs as they came, in which they are kept.
        """
        if not self._sums:
            return
        parts = (torch.split(tokens, [*pairs.lengths]) for tokens in (x, d, sinks))
        inputs, updates, apart = (dict(zip(pairs.rows, rows, strict=True)) for rows in parts)
        for known, new in ((self._inputs, inputs), (self._updates, updates), (self._sinks, apart)):
            new |= {row: kept_row.to(x.device) for row, kept_row in known.items() if row in pairs.needed}
        found = [
            (inputs[one][:shared], updates[other][:shared], (apart[one][:shared] | apart[other][:shared]))
            for one, other in pairs.pairs
            if one in inputs and other in updates  # else it has no tokens
            for shared in [min(len(inputs[one]), len(updates[other]))]
        ]
        if found:
            theirs, ours, marks = (torch.cat(parts) for parts in zip(*found, strict=True))
            for kind, chosen in (("regular", ~marks), ("sinks", marks)):
                if chosen.any():
                    everything = bool(chosen.all())
                    self._sums[kind].products = products
                    self._sums[kind].update(*((part if everything else part[chosen]) for part in (theirs, ours)))
        self._inputs = _kept(self._inputs, inputs, pairs.inputs, kept)
        self._updates = _kept(self._updates, updates, pairs.updates, d.dtype)
        self._sinks = _kept(self._sinks, apart, pairs.inputs | pairs.updates, torch.bool)

    def drop(self) -> None:
        """Have no pairs at all, since some tokens have none."""
        self._sums, self._inputs, self._updates, self._sinks = {}, {}, {}, {}

    def freeze(self) -> Shifted:
        """The moments so far."""
        return Shifted(*(sums.freeze().to("cpu") if sums.count else None for sums in self._sums.values()))


def _kept(
    before: dict[int, Tensor], rows: dict[int, Tensor], wanted: frozenset[int], dtype: torch.dtype
) -> dict[int, Tensor]:
    """Rows that later ones are paired with: those that were kept before as they are, others as copies."""
    return {
        row: before[row] if row in before else torch.empty_like(rows[row], dtype=dtype, device="cpu").copy_(rows[row])
        for row in wanted
        if row in rows or row in before
    }


def shifted_null(shifted: CrossMoments | None, factor: Factor) -> float | None:
    """What inputs of other rows explain of updates, at most 1; None without pairs, or without updates that differ.

    Args:
        shifted: moments of the pairs.
        factor: of the Gram matrix of all inputs, from as many tokens as the score that it is compared with.
    """
    if shifted is None or shifted.energy <= 0:
        return None
    return min(1.0, float(factor.whiten(shifted.cross).square().sum()) / shifted.energy)
