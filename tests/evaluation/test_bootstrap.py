"""Differences of scores on the same documents, against counting by hand and against what is known."""

from math import comb, sqrt

import numpy
import pytest

from rectilinear.evaluation import bootstrap
from rectilinear.evaluation.bootstrap import bootstrap_stderr, observe


def mean(values):
    return sum(values) / len(values)


def paired_difference(aggregate, ours, theirs):
    return bootstrap.paired_difference(observe(aggregate, ours), observe(aggregate, theirs))


def test_right_and_wrong_are_compared_by_a_sign_test():
    ours, theirs = [1, 1, 1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1, 0, 1]
    found = paired_difference(mean, ours, theirs)
    changes = numpy.subtract(ours, theirs)
    assert found.value == pytest.approx(3 / 8)
    assert found.stderr == pytest.approx(changes.std(ddof=1) / sqrt(8))
    assert found.p_value == pytest.approx(2 * (comb(5, 4) + comb(5, 5)) / 2**5)  # four won, one lost


def test_the_same_answers_do_not_differ():
    found = paired_difference(mean, [1, 0, 1], [1, 0, 1])
    assert (found.value, found.stderr, found.p_value) == (0.0, 0.0, 1.0)


def test_means_of_numbers_are_compared_by_students_test():
    from scipy.stats import ttest_rel

    rng = numpy.random.default_rng(0)
    ours, theirs = rng.random(30).tolist(), rng.random(30).tolist()
    assert paired_difference(mean, ours, theirs).p_value == pytest.approx(ttest_rel(ours, theirs).pvalue)


@pytest.mark.parametrize(("ours", "theirs"), [([7, 8, 6], [5, 6, 4]), ([0.1, 0.2, 0.3], [0.0, 0.1, 0.2])])
def test_changes_that_are_all_the_same_are_counted(ours, theirs):
    """Their spread is nothing but rounding, which proves nothing."""
    assert paired_difference(mean, ours, theirs).p_value == pytest.approx(2 * 0.5**3)


def test_two_documents_prove_nothing():
    def squared(items):
        return mean(items) ** 2

    assert paired_difference(squared, [3.0, 4.0], [1.0, 2.0]).p_value == 0.5
    assert paired_difference(mean, [0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3]).p_value == 1.0  # rounding alone


def test_the_logarithm_of_a_perplexity_is_minus_a_mean():
    rng = numpy.random.default_rng(3)
    ours, theirs = rng.normal(-3, 1, 40).tolist(), rng.normal(-3.5, 1, 40).tolist()
    found, expected = (paired_difference(of, ours, theirs) for of in (lambda items: -mean(items), mean))
    assert found.value == pytest.approx(-expected.value)
    assert (found.stderr, found.p_value) == (expected.stderr, expected.p_value)


def test_other_scores_are_resampled_and_the_pairing_is_used():
    def root_mean_square(values):
        return mean([value**2 for value in values]) ** 0.5

    rng = numpy.random.default_rng(1)
    theirs = rng.normal(1, 1, 200).tolist()
    ours = [value + 0.05 for value in theirs]
    found = paired_difference(root_mean_square, ours, theirs)
    assert found.p_value < 0.01
    alone = bootstrap_stderr(root_mean_square, ours)
    assert found.stderr < 0.1 * alone
    noise = rng.normal(1, 1, 200).tolist()
    assert paired_difference(root_mean_square, noise, theirs).p_value > 0.05


def test_documents_about_one_passage_are_taken_together():
    """Each group's answers change together, so that there are as many changes as groups."""
    rng = numpy.random.default_rng(5)
    groups = numpy.repeat(numpy.arange(12), rng.integers(1, 6, 12))
    change = rng.normal(0.1, 1.0, 12)[groups]
    theirs = rng.normal(size=len(groups))
    one, other = (observe(mean, values.tolist(), groups.tolist()) for values in (theirs + change, theirs))
    found = bootstrap.paired_difference(one, other)
    sums, sizes = numpy.bincount(groups, change), numpy.bincount(groups)
    value = change.mean()
    expected = sqrt(12 / 11 * ((sums - value * sizes) ** 2).sum()) / len(groups)
    assert (found.value, found.stderr, found.n) == (pytest.approx(value), pytest.approx(expected), len(groups))
    alone = paired_difference(mean, (theirs + change).tolist(), theirs.tolist())
    assert found.stderr > 1.3 * alone.stderr
    assert found.p_value > alone.p_value


def test_groups_are_drawn_together_and_not_compared_with_what_was_drawn_alone():
    def root_mean_square(values):
        return mean([value**2 for value in values]) ** 0.5

    values = numpy.repeat(numpy.random.default_rng(6).normal(size=20), 4).tolist()
    groups = numpy.repeat(numpy.arange(20), 4).tolist()
    together, alone = observe(root_mean_square, values, groups), observe(root_mean_square, values)
    assert numpy.std(together.resampled) > 1.5 * numpy.std(alone.resampled)
    assert bootstrap.paired_difference(together, alone).stderr is None
    assert bootstrap.paired_difference(together, together).stderr == 0.0


def test_a_bootstrap_of_a_mean_is_its_standard_error():
    values = numpy.random.default_rng(2).normal(size=300)
    assert bootstrap_stderr(mean, values.tolist()) == pytest.approx(values.std() / sqrt(300), rel=0.12)


def test_a_single_document_has_no_error():
    assert bootstrap_stderr(mean, [1.0]) is None
    assert paired_difference(mean, [1.0], [0.0]).stderr is None
