"""How well hidden states at each depth explain random projections of those at every later one.

Where the Gram matrices of all pairs of depths do not fit in memory, states to be explained are seen through a random
matrix ``W`` ``[p, k]`` of independent normal numbers of variance 1/k. For whatever a linear map of ``h_i`` explains of
``h_j - h_i``, and for what it leaves, matrices R both,

    E |R W|^2 = |R|^2,    with a standard deviation of at most sqrt(2 / k) |R|^2

(Hutchinson's estimate of a trace). So all that is gathered of depth i of L is the Gram matrix of its states, and their
products with the projections of its own and all later ones: ``p (p + k (L - i))`` numbers, not ``p^2 (L - i)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rectilinear.core.moments import Moments, MomentsAccumulator, total
from rectilinear.core.scores import Linearity, above_rounding, adjusted_share, share_of
from rectilinear.core.solve import factorise

#: Columns of a projection, at least and at most; beyond them the exact moments take as much.
FEWEST, MOST = 16, 256


def bytes_of_sketches(depths: int, width: int, columns: int) -> int:
    """What the moments of all depths take, of regular tokens and of sinks."""
    return 2 * 8 * depths * width * (width + columns * (depths + 1) // 2)


def relative_error(columns: int) -> float:
    """Standard deviation, at most, of an energy that is seen through so many columns, as a share of it."""
    return math.sqrt(2 / columns)


def projection(width: int, columns: int, seed: int = 0) -> Tensor:
    """``W``: ``[width, columns]`` float64, the same one every time; of as many columns the identity, which is exact."""
    if columns == width:
        return torch.eye(width, dtype=torch.float64)
    normal = torch.randn(width, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal / math.sqrt(columns)


@dataclass(frozen=True)
class SketchedScores:
    """Scores of the way from one depth to a later one; see `rectilinear.core.scores.Scores`."""

    linearity: Linearity
    update_linearity: Linearity
    identity: float | None


@dataclass(frozen=True, eq=False)
class DepthSketches:
    """Moments of hidden states of some tokens at all depths.

    Attributes:
        moments: of each depth i, of its states ``x`` ``[p]`` with ``d``, the projections of those at i and later.
        columns: k.
        eps: of the coarsest dtype that states were in.
    """

    moments: Sequence[Moments]
    columns: int
    eps: float

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.moments[0].count

    def scores_from(self, first: int) -> list[SketchedScores]:
        """Scores of the ways from one depth to each later one."""
        moments, columns = self.moments[first], self.columns
        n, p = moments.count, len(moments.mean_x)
        factor, seen = factorise(moments), projection(p, columns).to(moments.cross.device)
        own, *later = torch.split(moments.cross, columns, 1)  # products with the projections of h_first, and others
        white, *whites = torch.split(factor.whiten(moments.cross), columns, 1)
        begin, found = float((seen * own).sum()), []
        for last, (product, explains) in enumerate(zip(later, whites, strict=True), first + 1):
            there = self.moments[last]
            # Seen through the same columns as what is left of it, so that their errors drop out of the share.
            output = float((seen * there.cross[:, :columns]).sum())
            update = output - 2 * float((seen * product).sum()) + begin
            residual = max(update - float((explains - white).square().sum()), 0.0)
            size = float(there.gram.trace()) + n * float(there.mean_x @ there.mean_x)
            output, update = above_rounding(output, update, size, self.eps)

            def linearity(energy: float, left: float = residual) -> Linearity:
                share = share_of(left, energy)
                return Linearity() if share is None else Linearity(share, adjusted_share(share, n, p))

            found.append(SketchedScores(linearity(output), linearity(update), share_of(update, output)))
        return found


class SketchAccumulator:
    """Gathers `DepthSketches` depth by depth, in any order, those of attention sinks apart; sums are on the CPU.

    Args:
        depths: how many there are.
        columns: of the projection.
    """

    def __init__(self, depths: int, columns: int) -> None:
        self._columns, self._eps = columns, 0.0
        self._kinds = {kind: [MomentsAccumulator() for _ in range(depths)] for kind in ("regular", "sinks")}

    def add(self, depth: int, states: Tensor, projected: Tensor, sinks: Tensor) -> None:
        """Add tokens at one depth.

        Args:
            depth: which.
            states: ``[tokens, p]``.
            projected: ``[tokens, depths - depth, k]``, projections of their states there and later.
            sinks: ``[tokens]`` bool, which of them are attention sinks.
        """
        self._eps = max(self._eps, torch.finfo(states.dtype).eps)
        states, projected = (each.to("cpu", torch.float64) for each in (states, projected.flatten(1)))
        for kind, chosen in (("regular", ~sinks.cpu()), ("sinks", sinks.cpu())):
            if chosen.any():
                self._kinds[kind][depth].update(states[chosen], projected[chosen])

    def freeze(self) -> tuple[DepthSketches | None, DepthSketches | None]:
        """Moments of all tokens, and of those that are no sinks; the accumulator is empty then."""
        everything, regular = list[Moments | None](), list[Moments | None]()
        ours, theirs = (self._kinds.pop(kind) for kind in ("regular", "sinks"))
        while ours:  # one by one, so that each is in memory once
            one, other = (each.freeze() if each.count else None for each in (ours.pop(0), theirs.pop(0)))
            everything.append(total([one, other]))
            regular.append(one)
        return self._sketches(everything), self._sketches(regular)

    def _sketches(self, moments: Sequence[Moments | None]) -> DepthSketches | None:
        known = [each for each in moments if each is not None]
        return DepthSketches(known, self._columns, self._eps) if len(known) == len(moments) else None
