"""Errors of scores over documents, and whether two models' scores differ."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from rectilinear.evaluation.record import DifferenceRecord, Observed
from rectilinear.intervals import mean_over_groups

#: How often documents are drawn anew for scores that are no means.
RESAMPLES = 400

#: From what was noted of each document to a score.
Aggregate = Callable[[Sequence[Any]], float]


def mean(values: Sequence[float]) -> float:
    """What most scores are of their items."""
    return sum(values) / len(values)


def observe(aggregate: Aggregate, items: Sequence[Any], groups: Sequence[int] | None = None) -> Observed | None:
    """A score, and what it takes to compare it: its documents' values, or the score of resampled documents.

    Documents of one group, by number, depend on each other: they are drawn, and not drawn, together.

    Returns:
        None for a score that is not finite, which cannot be compared.
    """
    score, n = float(aggregate(items)), len(items)
    if all(isinstance(item, (bool, int, float)) for item in items):
        for sign in (1.0, -1.0):  # a mean, or minus that, as the logarithm of a perplexity is
            if all(math.isclose(sign * aggregate(part), mean(part), abs_tol=1e-9) for part in (items, items[n // 2 :])):
                return Observed(score=score, n=n, values=[sign * item for item in items], groups=groups)
    resampled = _resample(aggregate, items, groups)
    if not numpy.isfinite([score, *resampled]).all():
        return None
    return Observed(score=score, n=n, resampled=resampled, groups=groups)


def bootstrap_stderr(aggregate: Aggregate, items: Sequence[Any]) -> float | None:
    """Standard deviation of a score over resampled documents; None for fewer than two."""
    if len(items) < 2:
        return None
    return float(numpy.std(_resample(aggregate, items), ddof=1))


def paired_difference(ours: Observed, theirs: Observed) -> DifferenceRecord:
    """Compare two models on the same documents.

    Of means the error is that of the mean difference; where values are 0 and 1 the test is McNemar's exact one (a sign
    test over documents that only one model has right), else Student's paired one. Where several documents are about one
    passage, error and test are over passages, as of `grouped_difference`. Of other scores, which are those of
    the same resampled documents for both, p is twice the share of differences that are not on the side of most, at
    least ``2 / RESAMPLES`` and what a sign test could give.
    """
    value, n = ours.score - theirs.score, ours.n
    if n < 2:
        return DifferenceRecord(value=value, stderr=None, n=n)
    if ours.values and theirs.values:
        from scipy.stats import ttest_1samp

        pairs = numpy.asarray([ours.values, theirs.values])
        changes = pairs[0] - pairs[1]
        changes[abs(changes) <= 1e-12 * abs(pairs).max()] = 0.0  # rounding
        if groups := ours.groups or theirs.groups:
            return grouped_difference(changes, numpy.asarray(groups))
        stderr = float(changes.std(ddof=1) / math.sqrt(n))
        binary = {*ours.values, *theirs.values} <= {0, 1}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Precision loss")  # where all differences are the same
            p_value = sign_test(changes) if binary or no_spread(value, stderr) else ttest_1samp(changes, 0).pvalue
        return DifferenceRecord(value=value, stderr=stderr, p_value=float(p_value), n=n)
    if (ours.groups is None) != (theirs.groups is None):  # an older file, of which others were drawn
        return DifferenceRecord(value=value, stderr=None, n=n)
    independent = n if ours.groups is None else len({*ours.groups})
    if independent < 2:
        return DifferenceRecord(value=value, stderr=None, n=n)
    scores = numpy.array([of.resampled or _resample(mean, of.values or (), of.groups) for of in (ours, theirs)])
    changes = scores[0] - scores[1]
    beyond = min((changes <= 0).mean(), (changes >= 0).mean())
    # No surer than resamples, or a sign test of so few documents, could be.
    p_value = min(1.0, 2 * max(float(beyond), 1 / RESAMPLES, 0.5**independent))
    return DifferenceRecord(value=value, stderr=float(changes.std(ddof=1)), p_value=p_value, n=n)


def grouped_difference(changes: numpy.ndarray, groups: numpy.ndarray) -> DifferenceRecord:
    """A mean of changes ``[n]``; those of one group depend on each other: error and Student's test are over groups."""
    from scipy.stats import t as student

    _, places, sizes = numpy.unique(groups, return_inverse=True, return_counts=True)
    sums = numpy.bincount(places, weights=changes)
    (value, stderr), count = mean_over_groups(sums, sizes), len(sizes)
    if stderr is None:
        return DifferenceRecord(value=value, stderr=None, n=len(changes))
    p_value = sign_test(sums) if no_spread(value, stderr) else 2 * float(student.sf(abs(value) / stderr, count - 1))
    return DifferenceRecord(value=value, stderr=stderr, p_value=p_value, n=len(changes))


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


def _resample(aggregate: Aggregate, items: Sequence[Any], groups: Sequence[int] | None = None) -> list[float]:
    """A score over documents, or groups, that are drawn anew `RESAMPLES` times, the same ones whatever is noted."""
    generator = numpy.random.default_rng(0)
    places: Any
    if groups is None:
        places = generator.integers(len(items), size=(RESAMPLES, len(items)))
    else:
        _, numbers, sizes = numpy.unique(groups, return_inverse=True, return_counts=True)
        members = numpy.split(numpy.argsort(numbers, kind="stable"), numpy.cumsum(sizes)[:-1])
        chosen = generator.integers(len(members), size=(RESAMPLES, len(members)))
        places = [numpy.concatenate([members[group] for group in drawn]) for drawn in chosen]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "F-score is ill-defined")  # where a label is never there, or never drawn
        return [float(aggregate([items[place] for place in drawn])) for drawn in places]
