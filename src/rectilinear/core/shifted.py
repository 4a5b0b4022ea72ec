"""Updates paired with inputs of other rows: tokens that depend on each other as much, and have nothing to do with them.

Tokens of text depend on each other, so that even an input that has nothing to do with an update explains more of it
than ``p / (n - 1)``. How much more shows where each row's updates are paired with the inputs of another row, position
by position: with the factor ``T T' = Sxx^+`` of the inputs, the cross moments ``Sx'd`` and the energy ``Sdd`` of these
pairs, such inputs explain ``|T' Sx'd|^2 / Sdd`` in sample, however many of the rows have a partner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rectilinear.core.moments import CrossAccumulator, CrossMoments
from rectilinear.core.solve import Factor


@dataclass(frozen=True)
class RowPairs:
    """Which rows some tokens are of, and which rows can be paired now that these are there.

    Attributes:
        rows: numbers of the rows, in the order of the tokens.
        pairs: of numbers: the row whose inputs and the row whose updates are paired, which came before or are these.
        keep: numbers of the rows that are paired with later ones.
        lengths: tokens of each row.
    """

    rows: Sequence[int]
    pairs: Sequence[tuple[int, int]]
    keep: frozenset[int]
    lengths: tuple[int, ...] = ()


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
        return _total(self.regular, self.sinks)

    def __add__(self, other: Shifted) -> Shifted:
        """Both samples together."""
        return Shifted(_total(self.regular, other.regular), _total(self.sinks, other.sinks))

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
    """Gathers `Shifted` batch by batch; keeps the rows that are paired with later ones."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, ...]] = {}  # by row: inputs, updates, and which are sinks
        self._regular, self._sinks = CrossAccumulator(), CrossAccumulator()

    def update(self, x: Tensor, d: Tensor, sinks: Tensor, pairs: RowPairs, products: torch.dtype) -> None:
        """Add the pairs of one batch.

        Args:
            x: ``[tokens, p]``, inputs of the rows of ``pairs``, one after the other.
            d: ``[tokens, p]``, updates.
            sinks: ``[tokens]`` bool, which tokens are attention sinks.
            pairs: which rows they are of, and what is paired.
            products: precision of the products.
        """
        rows = zip(*(torch.split(tokens, [*pairs.lengths]) for tokens in (x, d, sinks)), strict=True)
        known: dict[int, tuple[Tensor, ...]] = self._kept | dict(zip(pairs.rows, rows, strict=True))
        found = [
            (theirs[:shared], apart[:shared] | own_apart[:shared], ours[:shared])
            for one, other in pairs.pairs
            if one in known and other in known  # else it has no tokens
            for (theirs, _, apart), (_, ours, own_apart) in [(known[one], known[other])]
            for shared in [min(len(theirs), len(ours))]
        ]
        if found:
            theirs, apart, ours = (torch.cat(parts) for parts in zip(*found, strict=True))
            if apart.any():
                self._add(self._sinks, theirs[apart], ours[apart], products)
                theirs, ours = theirs[~apart], ours[~apart]
            self._add(self._regular, theirs, ours, products)
        self._kept = {
            number: row if number in self._kept else tuple(part.clone() for part in row)
            for number, row in known.items()
            if number in pairs.keep
        }

    def _add(self, accumulator: CrossAccumulator, x: Tensor, d: Tensor, products: torch.dtype) -> None:
        accumulator.products = products
        accumulator.update(x, d)

    def freeze(self) -> Shifted:
        """The moments so far."""
        return Shifted(*(part.freeze().to("cpu") if part.count else None for part in (self._regular, self._sinks)))


def shifted_null(shifted: CrossMoments | None, factor: Factor) -> float | None:
    """What inputs of other rows explain of updates, at most 1; None without pairs, or without updates that differ.

    Args:
        shifted: moments of the pairs.
        factor: of the Gram matrix of all inputs, from as many tokens as the score that it is compared with.
    """
    if shifted is None or shifted.energy <= 0:
        return None
    return min(1.0, float(factor.whiten(shifted.cross).square().sum()) / shifted.energy)


def _total(one: CrossMoments | None, other: CrossMoments | None) -> CrossMoments | None:
    return one + other if one and other else one or other
