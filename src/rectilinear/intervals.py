"""Means with errors and intervals that cover what they say they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

#: Share of intervals that cover what they are of.
LEVEL = 0.95

#: So many parts that the error is as good as known.
MANY = 10**9


def half_width(stderr: float, parts: int, level: float = LEVEL) -> float:
    """Half of a Student's t interval of a mean over some parts, of which at least two, from its standard error.

    The error is itself known from few parts: two standard errors of four cover 86 % at best
    (docs/benchmarks.md), not 95.
    """
    from scipy.special import stdtrit

    return float(stdtrit(parts - 1, (1 + level) / 2)) * stderr


def mean_over_groups(
    sums: Sequence[float] | numpy.ndarray, sizes: Sequence[int] | numpy.ndarray
) -> tuple[float, float | None]:
    """Mean over all members of some groups, and its standard error with the groups as clusters; None for one group.

    A ratio estimator: ``sqrt(n / (n - 1) * sum((sums - mean * sizes)^2)) / sum(sizes)`` for ``n`` groups.

    Args:
        sums: over the members of each group.
        sizes: how many members it has.
    """
    import numpy

    totals, members = numpy.asarray(sums, float), numpy.asarray(sizes)
    value, n = float(totals.sum() / members.sum()), len(members)
    if n < 2:
        return value, None
    return value, math.sqrt(((totals - value * members) ** 2).sum() * n / (n - 1)) / int(members.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Probabilities of no difference, corrected for how many are tested together (Holm, 1979); None stays None."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected


def welch(difference: float, stderrs: tuple[float, float], parts: tuple[int, int]) -> float:
    """How likely chance makes two means differ by so much, by Welch's t test: its two-sided p value.

    Args:
        difference: of the means.
        stderrs: their standard errors, not both 0.
        parts: over how many parts each, of which at least two.
    """
    from scipy.special import stdtr

    squares = [error**2 for error in stderrs]
    freedom = sum(squares) ** 2 / sum(square**2 / (n - 1) for square, n in zip(squares, parts, strict=True))
    return 2 * float(stdtr(freedom, -abs(difference) / math.sqrt(sum(squares))))
