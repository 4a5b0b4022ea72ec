"""What simpler maps than the best linear one explain, and how many directions a map has.

Of pairs ``x`` and ``y = x + d`` with centred moments Sxx, Sxd, ``Sxy = Sxx + Sxd``:

    identity         y ~ x
    multiple         y ~ c x         c = tr(Sxy) / tr(Sxx)
    rotation         y ~ s x R       R = U V' of the singular vectors of Sxy, s = tr(Sigma) / tr(Sxx)
                                     (orthogonal Procrustes: Schoenemann, 1966; reflections are among them)
    rank r           d ~ x C V V'    V: the r directions of d that C, the best map, explains most of
                                     (reduced-rank regression: Izenman, 1975)
    linear           d ~ x C         y ~ x (I + C)

Directions are counted by the effective rank (Roy and Vetterli, 2007), ``exp(-sum p_i log p_i)`` with shares ``p_i`` of
a spectrum, and anisotropy is the largest of these shares (Razzhigaev et al., 2024, arXiv 2311.05928).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeVar

import torch
from torch import Tensor

from rectilinear.core.moments import Moments
from rectilinear.core.scores import Linearity, energies_of, mean_and_stderr, share_of
from rectilinear.core.solve import held_out_residual, solve, without_each

_Name = TypeVar("_Name", str, int)


@dataclass(frozen=True)
class FormScores:
    """What a form of map explains of outputs and of updates; see `rectilinear.core.scores.Linearity`."""

    output: Linearity
    update: Linearity


@dataclass(frozen=True, eq=False)
class Explained:
    """What the best map from x to d does.

    Attributes:
        forms: scores of simpler maps and of the best one, by name.
        ranks: the same of the best map with fewer directions of the output, by rank.
        weight: ``[p, q]``, and `bias` ``[q]``: ``d ~ x weight + bias``.
        singular_values: of the weight, ``[min(p, q)]``, the largest first.
        shares: of the update's energy that each direction explains, ``[q]``, the largest first.
        directions: these, unit vectors ``[q, q]`` in columns.
    """

    forms: Mapping[str, FormScores]
    ranks: Mapping[int, FormScores]
    weight: Tensor
    bias: Tensor
    singular_values: Tensor
    shares: Tensor
    directions: Tensor


def explain_map(
    folds: Sequence[Moments], eps: float = torch.finfo(torch.float64).eps, *, alone: bool = False
) -> Explained:
    """The best map from x to d over all folds, and what simpler ones explain.

    Args:
        folds: moments of the same kind of pairs, at least one; with a single fold nothing is held out.
        eps: of the dtype that states were in.
        alone: whether d is not added to x, so that there are no maps of ``y = x + d``.
    """
    whole = reduce(add, folds)
    solution = solve(whole)
    shares, directions = torch.linalg.eigh(solution.white.T @ solution.white)
    shares, directions = shares.flip(0).clamp(min=0) / (whole.energy or 1.0), directions.flip(1)
    ranks = [r for r in (2**power for power in range(len(shares).bit_length())) if r < len(shares)]
    weight = solution.coefficients
    return Explained(
        forms=_scores(folds, lambda moments: _forms(moments, alone), eps, alone),
        ranks=_scores(folds, lambda moments: _of_ranks(moments, ranks), eps, alone),
        weight=weight,
        bias=whole.mean_d - whole.mean_x @ weight,
        singular_values=torch.linalg.svdvals(weight),
        shares=shares,
        directions=directions,
    )


def effective_rank(spectrum: Tensor) -> float:
    """How many directions a spectrum ``[n]`` of energies has; 0 for none."""
    shares = _shares(spectrum)
    return math.exp(float(-(shares * shares.log()).sum())) if len(shares) else 0.0


def anisotropy(spectrum: Tensor) -> float:
    """The share of the largest of the energies ``[n]``; 0 where there are none."""
    shares = _shares(spectrum)
    return float(shares.max()) if len(shares) else 0.0


def _shares(spectrum: Tensor) -> Tensor:
    positive = spectrum.double().clamp(min=0)
    shares = positive / positive.sum()
    return shares[shares > 0]


def _forms(moments: Moments, alone: bool) -> dict[str, Tensor]:
    """Coefficients of d, ``[p, q]``, by name."""
    linear = solve(moments).coefficients
    if alone:
        return {"linear": linear}
    energy, output = float(moments.gram.trace()) or 1.0, moments.gram + moments.cross
    unit = torch.eye(len(output), dtype=output.dtype, device=output.device)
    left, values, right = torch.linalg.svd(output)
    return {
        "identity": torch.zeros_like(unit),
        "multiple": (float(output.trace()) / energy - 1) * unit,
        "rotation": float(values.sum()) / energy * (left @ right) - unit,
        "linear": linear,
    }


def _of_ranks(moments: Moments, ranks: Sequence[int]) -> dict[int, Tensor]:
    solution = solve(moments)
    _, vectors = torch.linalg.eigh(solution.white.T @ solution.white)
    leading = {rank: vectors[:, -rank:] for rank in ranks}
    return {rank: solution.coefficients @ kept @ kept.T for rank, kept in leading.items()}


def _scores(
    folds: Sequence[Moments], fit: Callable[[Moments], dict[_Name, Tensor]], eps: float, alone: bool
) -> dict[_Name, FormScores]:
    """What maps that ``fit`` makes of moments explain of these, and of folds that they were not made of."""
    whole = reduce(add, folds)
    shares: dict[_Name, list[tuple[float | None, float | None]]] = defaultdict(list)
    if len(folds) > 1:
        for fold, train in zip(folds, without_each(folds), strict=True):
            output, update = energies_of(fold, train, eps, alone=alone)
            for name, weight in fit(train).items():
                residual = held_out_residual(fold, train, weight)
                shares[name].append((share_of(residual, output), share_of(residual, update)))

    def linearity(residual: float, energy: float, held_out: list[float | None]) -> Linearity:
        mean, stderr = mean_and_stderr(held_out)
        return Linearity(share_of(residual, energy), None, mean, stderr, 0 if mean is None else len(held_out))

    scores, energies = {}, energies_of(whole, whole, eps, alone=alone)
    for name, weight in fit(whole).items():
        residual, found = held_out_residual(whole, whole, weight), shares[name]
        scores[name] = FormScores(*(linearity(residual, energies[i], [pair[i] for pair in found]) for i in (0, 1)))
    return scores
