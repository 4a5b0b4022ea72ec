"""Least squares from moments: a scaled Cholesky factorisation where it is safe, else `eigh`.

The Gram matrix is scaled to unit diagonal first, which makes it a correlation matrix: massive
activations live in a few coordinates, and the scaling takes them out of the condition number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import add
from typing import Literal

import torch
from torch import Tensor

from rectilinear.core.moments import Moments

# A pivot of the correlation's Cholesky factor is the share of a column's variance that the
# columns before it leave unexplained. Below this share rounding decides, and `eigh` takes over.
_SAFE_PIVOT = 1e-10


@dataclass(frozen=True, eq=False)
class Factor:
    """A factorisation ``gram^+ = T T'`` of a Gram matrix, restricted to its numerical range.

    Attributes:
        scale: ``[p]``, ``1 / sqrt(diag(gram))``; zero for columns that never vary.
        correlation: ``[p, p]``, the Gram matrix scaled to unit diagonal, and any ridge.
        basis: for ``cholesky`` the lower factor ``L`` of the correlation, ``[p, p]``; for
            ``eigh`` its eigenvectors over the square roots of their eigenvalues, ``[p, rank]``.
        rank: number of directions kept.
        cutoff: eigenvalues of the correlation below this were taken for zero.
        smallest: smallest pivot (``cholesky``) or kept eigenvalue (``eigh``); 1 when nothing was kept.
        largest: largest eigenvalue; None where it is not known yet.
        method: ``"cholesky"`` or ``"eigh"``.
    """

    scale: Tensor
    correlation: Tensor
    basis: Tensor
    rank: int
    cutoff: float
    smallest: float
    largest: float | None
    method: Literal["cholesky", "eigh"]

    @cached_property
    def condition(self) -> float:
        """Largest over smallest kept eigenvalue of the correlation (1 when nothing was kept)."""
        if not self.rank:
            return 1.0
        if self.largest is not None:
            return self.largest / self.smallest
        eigenvalues = torch.linalg.eigvalsh(self.correlation)
        return float(eigenvalues[-1] / eigenvalues[-self.rank])

    def whiten(self, cross: Tensor) -> Tensor:
        """``T' cross``, ``[rank, q]``; its squared norm is what a linear map explains."""
        scaled = cross * self.scale[:, None]
        if self.method == "cholesky":
            white: Tensor = torch.linalg.solve_triangular(self.basis, scaled, upper=False)
            return white
        return self.basis.T @ scaled

    def unwhiten(self, white: Tensor) -> Tensor:
        """``T white``, ``[p, q]``: the coefficients, from `whiten`'s answer."""
        if self.method == "cholesky":
            scaled: Tensor = torch.linalg.solve_triangular(self.basis.T, white, upper=True)
        else:
            scaled = self.basis @ white
        return scaled * self.scale[:, None]


@dataclass(frozen=True, eq=False)
class Solution:
    """The least-squares map ``d ~ (x - mean_x) coefficients + mean_d``.

    Attributes:
        factor: how it was found: rank, condition, cutoff and method.
        white: ``[rank, q]``, the map in whitened coordinates.
        explained: ``tr(cross' gram^+ cross)``, the energy of d that the map accounts for.
        residual: ``energy - explained``, the residual sum of squares.
    """

    factor: Factor
    white: Tensor
    explained: float
    residual: float

    @cached_property
    def coefficients(self) -> Tensor:
        """``[p, q]``; of least norm in scaled coordinates where the Gram matrix is deficient."""
        return self.factor.unwhiten(self.white)


def directions_of(white: Tensor) -> tuple[Tensor, Tensor]:
    """Energies ``[q]`` that a map explains along directions of the output, the largest first, and these ``[q, q]``.

    They are unit vectors, in columns: eigenvectors of ``white' white`` for the map in whitened coordinates
    ``[rank, q]``.
    """
    energies, vectors = torch.linalg.eigh(white.T @ white)
    return energies.flip(0), vectors.flip(1)


def conditioned_below(moments: Moments, limit: float) -> bool:
    """Whether the correlation's condition number is certainly below a limit.

    ``b = |R^2|^(1/2)`` (Frobenius) bounds the largest eigenvalue of the correlation R from above,
    closely where one stands out, so that the condition number is below the limit if
    ``R - b / limit`` is positive definite: a product and a Cholesky factorisation.
    """
    variance = moments.gram.diagonal()
    if limit < 1 or not bool((variance > 0).all()):
        return False
    scale = variance.rsqrt()
    correlation = moments.gram * scale * scale[:, None]
    largest = float(torch.linalg.matrix_norm(correlation @ correlation)) ** 0.5
    correlation.diagonal().sub_(largest / limit)
    return not torch.linalg.cholesky_ex(correlation).info


def factorise(moments: Moments, ridge: float = 0.0) -> Factor:
    """Factorise the Gram matrix of some moments, with ``ridge`` added to the diagonal of its correlation.

    Columns that never vary beyond rounding are left out, and so are directions of the
    correlation whose eigenvalue rounding may have made: below ``8 sqrt(p)`` times the eps of
    float64 at the largest eigenvalue, plus the rounding of the products at its columns.
    """
    eps = torch.finfo(torch.float64).eps
    variance = moments.gram.diagonal()
    alive = variance > moments.count * (8 * eps * moments.mean_x).square() + 64 * moments.rounding
    scale = torch.where(alive, variance, 1.0).rsqrt() * alive
    correlation = moments.gram * scale * scale[:, None]
    correlation.diagonal().add_(ridge)
    p = len(correlation)
    rounding = float((moments.rounding * scale.square()).max())
    if ridge or p == int(alive.sum()):
        lower, failed = torch.linalg.cholesky_ex(correlation)
        # The trace, p, bounds the largest eigenvalue.
        cutoff = 8 * math.sqrt(p) * (eps * p + rounding)
        smallest = float(lower.diagonal().square().min())
        if not failed and smallest > max(_SAFE_PIVOT, cutoff):
            return Factor(scale, correlation, lower, p, cutoff, smallest, None, "cholesky")
    eigenvalues, vectors = torch.linalg.eigh(correlation)
    cutoff = 8 * math.sqrt(p) * (eps * float(eigenvalues[-1]) + rounding)
    kept = eigenvalues > cutoff
    rank = int(kept.sum())
    basis = vectors[:, kept] / eigenvalues[kept].sqrt()
    largest, smallest = float(eigenvalues[-1]), float(eigenvalues[-rank]) if rank else 1.0
    return Factor(scale, correlation, basis, rank, cutoff, smallest, largest, "eigh")


def solve(moments: Moments) -> Solution:
    """The best linear map from x to d, from moments alone.

    The best map for ``y = x + d`` is the identity plus this one, with the same residual. Where the
    Gram matrix is deficient the map is not unique; this is the one of least norm from x to d, for features
    scaled to unit variance.
    """
    factor = factorise(moments)
    white = factor.whiten(moments.cross)
    explained = float(white.square().sum())
    return Solution(factor, white, explained, max(moments.energy - explained, 0.0))


def held_out_residual(fold: Moments, train: Moments, coefficients: Tensor) -> float:
    """Residual sum of squares on other tokens, of a map ``[p, q]`` and the means it was fitted with."""
    shift = fold.mean_d - train.mean_d - (fold.mean_x - train.mean_x) @ coefficients
    product = fold.gram @ coefficients - 2 * fold.cross
    return fold.energy + float(coefficients.flatten() @ product.flatten()) + fold.count * float(shift @ shift)


def without_each(folds: Sequence[Moments]) -> Iterator[Moments]:
    """For each of at least two folds the sum of the others.

    Not the total less the fold, which would keep that fold's rounding.
    """
    before = [None, *accumulate(folds[:-1], add)]
    after = [None, *accumulate(reversed(folds[1:]), lambda later, fold: fold + later)]
    for first, last in zip(before, reversed(after), strict=True):
        yield last if first is None else first if last is None else first + last
