"""Errors of scores over documents, and whether two models' scores differ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

#: How often documents are drawn anew for scores that are no means.
RESAMPLES = 400

#: From what was noted of each document to a score.
Aggregate = Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class PairedDifference:
    """A score of one model minus that of another on the same documents.

    Attributes:
        value: the difference.
        stderr: its standard error; None for a single document.
        p_value: two-sided, of no difference; None where it cannot be told.
    """

    value: float
    stderr: float | None
    p_value: float | None


def bootstrap_stderr(aggregate: Aggregate, items: Sequence[Any]) -> float | None:
    """Standard deviation of a score over resampled documents; None for fewer than two."""
    if len(items) < 2:
        return None
    return float(_resampled(aggregate, items).std(ddof=1))


def paired_difference(aggregate: Aggregate, ours: Sequence[Any], theirs: Sequence[Any]) -> PairedDifference:
    """Compare two models on the same documents.

    Where the score is the mean of numbers, or minus that, the error is that of the mean difference; where these are 0
    and 1 the test is McNemar's exact one (a sign test over documents that only one model has right), else Student's
    paired one. Other scores are computed on the same resampled documents for both: p is twice the share of resampled
    differences that are not on the side of most, at least ``2 / RESAMPLES`` and what a sign test could give.

    Args:
        aggregate: makes a score.
        ours, theirs: what it is made from, document by document.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "F-score is ill-defined")  # where a label is never there
        warnings.filterwarnings("ignore", "Precision loss")  # where all differences are the same
        return _paired_difference(aggregate, ours, theirs)


def _paired_difference(aggregate: Aggregate, ours: Sequence[Any], theirs: Sequence[Any]) -> PairedDifference:
    value = float(aggregate(ours)) - float(aggregate(theirs))
    n = len(ours)
    if n < 2:
        return PairedDifference(value, None, None)
    numbers = all(isinstance(item, (bool, int, float)) for item in (*ours, *theirs))
    if numbers and all(math.isclose(abs(aggregate(of)), abs(sum(of) / n), abs_tol=1e-9) for of in (ours, theirs)):
        from scipy.stats import ttest_1samp

        pairs = numpy.asarray([ours, theirs], float)
        changes = pairs[0] - pairs[1]
        changes[abs(changes) <= 1e-12 * abs(pairs).max()] = 0.0  # rounding
        stderr = float(changes.std(ddof=1) / math.sqrt(n))
        binary = {*ours, *theirs} <= {0, 1}
        p_value = sign_test(changes) if binary or no_spread(value, stderr) else ttest_1samp(changes, 0).pvalue
        return PairedDifference(value, stderr, float(p_value))
    changes = _resampled(aggregate, ours) - _resampled(aggregate, theirs)
    beyond = min((changes <= 0).mean(), (changes >= 0).mean())
    # No surer than resamples, or a sign test of so few documents, could be.
    p_value = min(1.0, 2 * max(float(beyond), 1 / RESAMPLES, 0.5**n))
    return PairedDifference(value, float(changes.std(ddof=1)), p_value)


def sign_test(changes: numpy.ndarray) -> float:
    """Probability of changes ``[n]`` as one-sided as these, or more so, if each could as well have been the other way.

    Of answers that are right or wrong this is McNemar's exact test.
    """
    from scipy.stats import binomtest

    won, lost = int((changes > 0).sum()), int((changes < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def no_spread(value: float, stderr: float) -> bool:
    """Whether all changes are the same up to rounding: Student's test would take any two of them as proof."""
    return stderr <= 1e-9 * abs(value)


def _resampled(aggregate: Aggregate, items: Sequence[Any]) -> numpy.ndarray:
    """A score over documents that are drawn anew, `RESAMPLES` times, the same ones whatever is noted of them."""
    places = numpy.random.default_rng(0).integers(len(items), size=(RESAMPLES, len(items)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "F-score is ill-defined")  # where a label was never drawn
        return numpy.array([float(aggregate([items[place] for place in drawn])) for drawn in places])
