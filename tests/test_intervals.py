"""Intervals cover what they say."""

import numpy as np
import pytest
import torch
from scipy import stats

from rectilinear import BlockAccumulator, score_block
from rectilinear.intervals import half_width, holm, welch
from rectilinear.measurement.profile import LinearityRecord


def test_half_of_an_interval_is_student_s():
    assert half_width(2.0, 4) == 2.0 * stats.t(3).ppf(0.975)


def test_an_interval_of_few_parts_covers_the_mean_as_often_as_it_says():
    parts = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    within = parts.mean(1).abs() <= half_width(1.0, 4) * parts.std(1) / 2
    two_errors = parts.mean(1).abs() <= 2 * parts.std(1) / 2
    assert abs(float(within.double().mean()) - 0.95) < 0.005
    assert float(two_errors.double().mean()) < 0.87


def test_the_interval_of_a_held_out_score():
    generator = torch.Generator().manual_seed(0)
    accumulator = BlockAccumulator(3)
    for fold in range(3):
        x = torch.randn(100, 4, generator=generator)
        accumulator.update(x, x + torch.tanh(x) + torch.randn(100, 4, generator=generator), fold)
    scores = score_block(accumulator.freeze()).all_tokens.update_linearity
    record = LinearityRecord.of(scores)
    low, high = stats.t.interval(0.95, 2, loc=scores.held_out, scale=scores.stderr)
    assert scores.folds == 3
    assert abs(record.interval.low - low) < 1e-12 > abs(record.interval.high - high)
    assert record.interval.level == 0.95


def test_without_folds_there_is_none():
    accumulator = BlockAccumulator(1)
    accumulator.update(*torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(0)))
    assert LinearityRecord.of(score_block(accumulator.freeze()).all_tokens.linearity).interval is None


def test_welch_equals_scipy():
    generator = np.random.default_rng(0)
    one, two = generator.normal(0, 1, 5), generator.normal(1, 3, 9)
    errors = tuple(float(each.std(ddof=1) / len(each) ** 0.5) for each in (one, two))
    expected = stats.ttest_ind(two, one, equal_var=False).pvalue
    assert welch(two.mean() - one.mean(), errors, (5, 9)) == pytest.approx(expected, rel=1e-9)


def test_holm_corrects_for_how_many_there_are():
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([]) == []
