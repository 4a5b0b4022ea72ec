"""Linear maps that hold on data they were not fitted on: ridge by cross-validation, rank by regression.

With the Gram matrix scaled to the correlation ``R = S G S`` (``S`` diagonal) and a ridge u, the map is

    B = S (R + u I)^-1 S C

For a rank r it is projected on the r directions of the output that the fit explains most of (reduced-rank regression:
Izenman, 1975): the leading eigenvectors V of ``C' S (R + u I)^-1 S C``, ``B V V'``. All of it comes from moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rectilinear.core.moments import Moments
from rectilinear.core.solve import directions_of, factorise, held_out_residual, without_each

#: Ridges that are tried, as shares of the correlation's unit diagonal.
RIDGES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class FittedMap:
    """``d ~ x W + bias``, with W whole or as a product of two factors.

    Attributes:
        factors: ``([p, q],)``, or ``([p, r], [r, q])`` for a rank r.
        bias: ``[q]``.
        ridge: the one of those tried that held out best.
        held_out: share of the energy of d that maps fitted on the other folds explain, over all
            folds; None without at least two folds or without variation.
    """

    factors: tuple[Tensor, ...]
    bias: Tensor
    ridge: float
    held_out: float | None

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``safetensors``."""
        numbers = [self.ridge, float("nan") if self.held_out is None else self.held_out]
        factors = {f"factors.{place}": factor for place, factor in enumerate(self.factors)}
        return {**factors, "bias": self.bias, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> FittedMap:
        """The inverse of `to_tensors`."""
        factors = tuple(tensors[name] for name in sorted(tensors) if name.startswith("factors."))
        ridge, held_out = tensors["numbers"].tolist()
        return cls(factors, tensors["bias"], ridge, None if held_out != held_out else held_out)

    @property
    def weight(self) -> Tensor:
        """W, ``[p, q]``."""
        return reduce(torch.matmul, self.factors)


def fit_map(
    folds: Sequence[Moments], rank: int | None = None, *, intercept: bool = True, ridges: Sequence[float] | None = None
) -> FittedMap:
    """Fit a map on all folds, with the ridge that serves best when one fold at a time is held out.

    Args:
        folds: moments of the same kind of pairs, at least one; with a single fold there is no ridge.
        rank: of the map; None, or q and more, for a whole one.
        intercept: whether there is a bias.
        ridges: that are tried, where there are folds; `RIDGES` when not given.

    Raises:
        ValueError: no folds, or a rank below 1.
    """
    if not folds:
        raise ValueError("expected at least one fold, got none")
    if rank is not None and rank < 1:
        raise ValueError(f"expected a rank of at least 1, got {rank}")
    if not intercept:
        folds = [_uncentred(fold) for fold in folds]
    ridge, held_out, ridges = 0.0, None, RIDGES if ridges is None else ridges
    if len(folds) > 1:
        residuals = dict.fromkeys(ridges, 0.0)
        energy = 0.0
        for fold, train in zip(folds, without_each(folds), strict=True):
            shift = fold.mean_d - train.mean_d
            energy += fold.energy + fold.count * float(shift @ shift)
            for candidate in ridges:
                weight = reduce(torch.matmul, _factors(train, candidate, rank))
                residuals[candidate] += held_out_residual(fold, train, weight)
        ridge = min(residuals, key=lambda candidate: residuals[candidate])
        held_out = 1 - residuals[ridge] / energy if energy > 0 else None
    whole = reduce(add, folds)
    factors = _factors(whole, ridge, rank)
    bias = whole.mean_d - reduce(torch.matmul, factors, whole.mean_x)
    return FittedMap(factors, bias, ridge, held_out)


def _factors(moments: Moments, ridge: float, rank: int | None) -> tuple[Tensor, ...]:
    factor = factorise(moments, ridge)
    white = factor.whiten(moments.cross)
    weight = factor.unwhiten(white)
    if rank is None or rank >= weight.shape[1]:
        return (weight,)
    leading = directions_of(white)[1][:, :rank]
    return weight @ leading, leading.T


def _uncentred(moments: Moments) -> Moments:
    """Moments about zero, from which a fit has no intercept."""
    n, x, d = moments.count, moments.mean_x, moments.mean_d
    return replace(
        moments,
        mean_x=torch.zeros_like(x),
        mean_d=torch.zeros_like(d),
        gram=torch.addr(moments.gram, x, x, alpha=n),
        cross=torch.addr(moments.cross, x, d, alpha=n),
        energy=moments.energy + n * float(d @ d),
    )
