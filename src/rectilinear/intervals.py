"""Intervals that cover what they say they do."""

from __future__ import annotations

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
