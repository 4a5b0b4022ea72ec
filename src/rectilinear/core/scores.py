"""Linearity scores of a block, all from its moments.

With centred ``X``, ``D`` and ``Y = X + D`` over n tokens of width p, the best linear maps to Y
and to D leave the same residual ``RSS = Sdd - tr(Sxd' Sxx^+ Sxd)``, so that one solve gives

    linearity        = 1 - RSS / Syy,    Syy = tr(Sxx) + 2 tr(Sxd) + Sdd
    update linearity = 1 - RSS / Sdd     (the "without residual" score of arXiv 2405.12250)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rectilinear.core.block_moments import FLOAT32_ERROR, BlockMoments
from rectilinear.core.moments import CrossMoments, Moments, total
from rectilinear.core.shifted import shifted_null
from rectilinear.core.sinks import SinkCounts
from rectilinear.core.solve import Solution, held_out_residual, solve, without_each

# Each sum that a block adds up is rounded to the dtype of the states, which moves a token by a third of eps times its
# norm: so the two of an ordinary block by less than 1, and what all blocks before have gathered by less than 8
# (tests/core/test_rounding.py). In SmolLM2-135M in bfloat16 the least update is 2.6, the least variation of outputs 85.
_UPDATE_LEVEL, _OUTPUT_LEVEL = 1.0, 8.0

# Maps that were fitted on fewer tokens a feature than this are worse conditioned than the map of all tokens, and far
# off on others, where what rounding does to them counts to first order: up to this many times more than in sample.
_FEW, _FIRST_ORDER = 8, 10


@dataclass(frozen=True)
class Linearity:
    """How much of the output, or of the update, a linear map of the input explains.

    None stands for a value that the data cannot give: where what is to be explained is at or below rounding there is
    none.

    Attributes:
        in_sample: ``1 - RSS / S``, the paper's score.
        adjusted: ``1 - (1 - R2)(n - 1)/(n - p - 1)``; None when ``n <= p + 1``.
        held_out: mean over folds of ``1 - RSS / S`` on a fold, with the means and the map of
            the other folds, and S about those means.
        stderr: standard error of that mean over folds.
        folds: how many folds that is; 0 where nothing was held out.
    """

    in_sample: float | None = None
    adjusted: float | None = None
    held_out: float | None = None
    stderr: float | None = None
    folds: int = 0


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one set of tokens at one block.

    Attributes:
        tokens: number of tokens n.
        linearity: of the output y.
        update_linearity: of the update d.
        identity: ``1 - |D|^2 / |Y|^2``, what doing nothing explains.
        update_ratio: ``|D| / |Y|``, centred.
        null: what independent tokens would score in sample, ``p / (n - 1)``, at most 1.
        null_shifted: what the inputs of other rows score in sample for the update; None where rows have no partners.
        solution: the map, and how it was found.
        moments: the moments of these tokens.
        error: an estimate of how far float32 products may have moved these scores, at most 1; 0
            where the products are float64.
    """

    tokens: int
    linearity: Linearity
    update_linearity: Linearity
    identity: float | None
    update_ratio: float | None
    null: float
    null_shifted: float | None
    solution: Solution = field(repr=False)
    moments: Moments = field(repr=False)
    error: float


@dataclass(frozen=True, eq=False)
class BlockScores:
    """Scores of one block.

    Attributes:
        all_tokens: over every token.
        without_sinks: over the tokens that are not attention sinks; None if all are.
        sinks: number of attention sinks.
        sink_counts: of them, by what told them and where they are.
        sink_energy: their share of ``|Y|^2``, centred over all tokens; of an update alone, of ``|D|^2``.
        cosine: mean over all tokens of ``cos(x, y)``, uncentred; None of an update alone.
    """

    all_tokens: Scores
    without_sinks: Scores | None
    sinks: int
    sink_counts: SinkCounts
    sink_energy: float | None
    cosine: float | None


def score_block(block: BlockMoments, *, alone: bool = False) -> BlockScores:
    """Score a block from its moments.

    Of an update ``alone``, what a part of a block adds to the stream, there is no output, nor what is said of one.

    Raises:
        ValueError: the moments hold no tokens, or x and d differ in width.
    """
    sinks = total(block.sinks)
    everything = score_folds(block.folds, block.eps, block.shifted.all_pairs, alone=alone)
    cosine = None if alone else block.cosine_sum / everything.tokens
    if sinks is None:
        return BlockScores(everything, everything, 0, block.counts, 0.0, cosine)
    moments = everything.moments
    whole, part, shift = moments.energy, sinks.energy, sinks.mean_d - moments.mean_d
    if not alone:
        whole, part, shift = moments.output_energy, sinks.output_energy, shift + sinks.mean_x - moments.mean_x
    share = (part + sinks.count * float(shift @ shift)) / whole if whole > 0 else None
    without = None
    if any(block.regular):
        without = score_folds(block.regular, block.eps, block.shifted.regular, alone=alone)
    return BlockScores(everything, without, sinks.count, block.counts, share, cosine)


def score_folds(
    folds: tuple[Moments | None, ...],
    eps: float = BlockMoments.eps,
    shifted: CrossMoments | None = None,
    *,
    alone: bool = False,
) -> Scores:
    """Score one set of tokens, held in folds, whose states were computed with some ``eps``.

    ``shifted`` are the moments of pairs of different rows of these tokens. An update ``alone`` was rounded by
    itself, not as the difference of two states, and has no scores of an output.

    Raises:
        ValueError: there are no tokens, or x and d differ in width.
    """
    present = [fold for fold in folds if fold is not None]
    if not present:
        raise ValueError("expected at least one token, got none")
    moments = reduce(add, present)
    n, (p, q) = moments.count, moments.cross.shape
    if p != q:
        raise ValueError(f"expected input and update of one width, got {p} and {q}")
    solution = solve(moments)
    output, update = energies_of(moments, moments, eps, alone=alone)
    held_out, condition = [], solution.factor.condition
    if len(present) == len(folds) > 1:
        for fold, train in zip(present, without_each(present), strict=True):
            fit = solve(train)
            shares = _held_out_shares(fold, train, fit.coefficients, energies_of(fold, train, eps, alone=alone))
            held_out.append(shares)
            if moments.products is torch.float32 and train.count < _FEW * p:
                worst = max([1.0, *(1 - share for share in shares if share is not None)])
                condition = max(condition, _FIRST_ORDER * fit.factor.condition * worst)
            else:
                condition = max(condition, 1 / fit.factor.smallest)  # a lower bound of it, which costs nothing

    def linearity(energy: float, which: int) -> Linearity:
        in_sample = share_of(solution.residual, energy)
        if in_sample is None:
            return Linearity()
        adjusted = adjusted_share(in_sample, n, p)
        mean, stderr = mean_and_stderr([shares[which] for shares in held_out])
        return Linearity(in_sample, adjusted, mean, stderr, 0 if mean is None else len(held_out))

    identity = share_of(update, output)
    cancellation = 1.0 if alone else moments.cancellation
    error = FLOAT32_ERROR * condition * cancellation if moments.products is torch.float32 else 0.0
    return Scores(
        tokens=n,
        linearity=linearity(output, 0),
        update_linearity=linearity(update, 1),
        identity=identity,
        update_ratio=None if identity is None else math.sqrt(update / output),
        null=min(1.0, p / (n - 1)) if n > 1 else 1.0,
        null_shifted=shifted_null(shifted, solution.factor) if update > 0 else None,
        solution=solution,
        moments=moments,
        error=min(error, 1.0),
    )


def energies_of(moments: Moments, about: Moments, eps: float, *, alone: bool = False) -> tuple[float, float]:
    """``|Y|^2`` and ``|D|^2`` about the means of some moments, taken for zero where rounding may have made them.

    Of an update ``alone`` there is no output.
    """
    return _energy_alone(moments, about, eps) if alone else _energies(moments, about, eps)


def _energies(moments: Moments, about: Moments, eps: float) -> tuple[float, float]:
    shift_x, shift_d = moments.mean_x - about.mean_x, moments.mean_d - about.mean_d
    shift_y, mean_y = shift_x + shift_d, moments.mean_x + moments.mean_d
    output = moments.output_energy + moments.count * float(shift_y @ shift_y)
    update = moments.energy + moments.count * float(shift_d @ shift_d)
    size = max(moments.output_energy, 0.0) + moments.count * float(mean_y @ mean_y)  # of the states, not centred
    summing = 8 * torch.finfo(torch.float64).eps
    sums = summing * (float(moments.gram.trace()) + update)
    means = moments.count * summing**2 * float(moments.mean_d @ moments.mean_d)
    return above_rounding(output, update, size, eps, (sums, means))


def _energy_alone(moments: Moments, about: Moments, eps: float) -> tuple[float, float]:
    """No output, and ``|D|^2`` about the mean of some moments, zero where rounding of updates may have made it."""
    shift = moments.mean_d - about.mean_d
    update = moments.energy + moments.count * float(shift @ shift)
    level = (_UPDATE_LEVEL * eps) ** 2 * (moments.energy + moments.count * float(moments.mean_d @ moments.mean_d))
    return 0.0, update if update > level else 0.0


def _held_out_shares(
    fold: Moments, train: Moments, coefficients: Tensor, energies: tuple[float, float]
) -> tuple[float | None, float | None]:
    """Linearity and update linearity of a fold under the means and the map of other tokens."""
    residual = held_out_residual(fold, train, coefficients)
    output, update = energies
    return share_of(residual, output), share_of(residual, update)


def share_of(residual: float, energy: float) -> float | None:
    """What is explained of an energy, where a residual is left; None of none."""
    return 1 - residual / energy if energy > 0 else None


def adjusted_share(in_sample: float, n: int, p: int) -> float | None:
    """A share that is corrected for the number of tokens; None where there are too few."""
    return 1 - (1 - in_sample) * (n - 1) / (n - p - 1) if n > p + 1 else None


def above_rounding(
    output: float, update: float, size: float, eps: float, summing: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, float]:
    """Energies of y and d, or zero where rounding of states to some eps may have made them.

    Args:
        output, update: these energies.
        size: of the states, not centred.
        eps: of their dtype.
        summing: what rounding in sums may have made of each.
    """
    gathered = (_OUTPUT_LEVEL * eps) ** 2 * size
    if output <= max(gathered, summing[0]):
        return 0.0, update if update > gathered else 0.0
    return output, update if update > max((_UPDATE_LEVEL * eps) ** 2 * size, summing[1]) else 0.0


def mean_and_stderr(values: list[float | None]) -> tuple[float | None, float | None]:
    """Of shares of at least two folds; None where one is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    mean = sum(known) / len(known)
    variance = sum((value - mean) ** 2 for value in known) / (len(known) - 1)
    return mean, math.sqrt(variance / len(known))
