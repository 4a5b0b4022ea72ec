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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rectilinear.core.moments import Moments
from rectilinear.core.scores import Linearity, energies_of, mean_and_stderr, share_of
from rectilinear.core.solve import directions_of, held_out_residual, solve, without_each


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
    energies, directions = directions_of(solution.white)
    scores = _scores(folds, eps, alone)
    weight = solution.coefficients
    return Explained(
        forms={name: scores[name] for name in scores if isinstance(name, str)},
        ranks={rank: scores[rank] for rank in scores if isinstance(rank, int)},
        weight=weight,
        bias=whole.intercept(weight),
        singular_values=torch.linalg.svdvals(weight),
        shares=energies.clamp(min=0) / (whole.energy or 1.0),
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


def _maps(moments: Moments, alone: bool) -> dict[str | int, Tensor]:
    """Coefficients of d, ``[p, q]``, of each form by name and of each rank."""
    solution = solve(moments)
    linear, (_, directions) = solution.coefficients, directions_of(solution.white)
    ranks = [2**power for power in range(len(directions).bit_length()) if 2**power < len(directions)]
    low = {rank: linear @ directions[:, :rank] @ directions[:, :rank].T for rank in ranks}
    if alone:
        return {"linear": linear, **low}
    energy, output = float(moments.gram.trace()) or 1.0, moments.gram + moments.cross
    unit = torch.eye(len(output), dtype=output.dtype, device=output.device)
    left, values, right = torch.linalg.svd(output)
    return {
        "identity": torch.zeros_like(unit),
        "multiple": (float(output.trace()) / energy - 1) * unit,
        "rotation": float(values.sum()) / energy * (left @ right) - unit,
        "linear": linear,
        **low,
    }


def _scores(folds: Sequence[Moments], eps: float, alone: bool) -> dict[str | int, FormScores]:
    """What maps explain of the moments that they are made of, and of folds that they were not made of."""
    whole = reduce(add, folds)
    shares: dict[str | int, list[tuple[float | None, float | None]]] = defaultdict(list)
    if len(folds) > 1:
        for fold, train in zip(folds, without_each(folds), strict=True):
            output, update = energies_of(fold, train, eps, alone=alone)
            for name, weight in _maps(train, alone).items():
                residual = held_out_residual(fold, train, weight)
                shares[name].append((share_of(residual, output), share_of(residual, update)))

    def linearity(residual: float, energy: float, held_out: list[float | None]) -> Linearity:
        mean, stderr = mean_and_stderr(held_out)
        return Linearity(share_of(residual, energy), None, mean, stderr, 0 if mean is None else len(held_out))

    scores, energies = {}, energies_of(whole, whole, eps, alone=alone)
    for name, weight in _maps(whole, alone).items():
        residual, found = held_out_residual(whole, whole, weight), shares[name]
        scores[name] = FormScores(*(linearity(residual, energies[i], [pair[i] for pair in found]) for i in (0, 1)))
    return scores
