"""Maps fitted from moments, against least squares on the rows themselves in float64 by numpy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectilinear import MomentsAccumulator
from rectilinear.core.maps import RIDGES, FittedMap, fit_map
from tests.oracle import least_squares

seeds = st.integers(0, 10**6)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def pairs(n=400, p=9, q=6, noise=1.0, seed=0):
    """Rows x of uneven scales and correlations, and d that depend on them linearly, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) @ rng.standard_normal((p, p)) * np.logspace(-2, 2, p) + rng.standard_normal(p)
    d = x / np.logspace(-2, 2, p) @ rng.standard_normal((p, q)) + noise * rng.standard_normal((n, q)) + 3
    return x, d


def folds_of(x, d, folds=1):
    moments = []
    for part_x, part_d in zip(np.array_split(x, folds), np.array_split(d, folds), strict=True):
        accumulator = MomentsAccumulator()
        accumulator.update(torch.from_numpy(part_x), torch.from_numpy(part_d))
        moments.append(accumulator.freeze())
    return moments


def predict(fit, x):
    return x @ fit.weight.numpy() + fit.bias.numpy()


def residual(x, d, weight, bias):
    return np.sum((x @ weight + bias - d) ** 2)


def held_out_by_hand(x, d, folds, ridge, rank=None, intercept=True):
    """Share of the energy of the rows left out, around the mean of the others, that maps of the others explain."""
    unexplained = energy = 0.0
    for part in np.array_split(np.arange(len(x)), folds):
        others = np.setdiff1d(np.arange(len(x)), part)
        weight, bias = least_squares(x[others], d[others], ridge, rank, intercept)
        unexplained += residual(x[part], d[part], weight, bias)
        energy += np.sum((d[part] - (d[others].mean(0) if intercept else 0)) ** 2)
    return 1 - unexplained / energy


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rank", [None, 1, 3])
def test_one_fold_is_plain_least_squares(rank, intercept):
    x, d = pairs()
    fit = fit_map(folds_of(x, d), rank, intercept=intercept)
    weight, bias = least_squares(x, d, rank=rank, intercept=intercept)
    assert (fit.ridge, fit.held_out) == (0, None)
    np.testing.assert_allclose(predict(fit, x), x @ weight + bias, rtol=0, atol=1e-9 * np.abs(d).max())
    if not intercept:
        assert not fit.bias.any()


def test_a_whole_map_is_that_of_lstsq_on_the_rows():
    x, d = pairs()
    whole = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), d, rcond=None)[0]
    fit = fit_map(folds_of(x, d))
    np.testing.assert_allclose(predict(fit, x), np.hstack([x, np.ones((len(x), 1))]) @ whole, atol=1e-9)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("noise", [0.01, 1.0, 30.0])
def test_the_ridge_and_what_it_holds_out_by_hand(noise, rank, intercept):
    x, d = pairs(n=40, noise=noise, seed=3)
    scores = {ridge: held_out_by_hand(x, d, 4, ridge, rank, intercept) for ridge in RIDGES}
    best = max(scores, key=scores.get)
    fit = fit_map(folds_of(x, d, 4), rank, intercept=intercept)
    assert fit.ridge == best
    assert fit.held_out == pytest.approx(scores[best], abs=1e-8)
    weight, bias = least_squares(x, d, best, rank, intercept)
    np.testing.assert_allclose(predict(fit, x), x @ weight + bias, rtol=0, atol=1e-8 * np.abs(d).max())


@pytest.mark.parametrize("ridge", RIDGES[1:])
def test_every_ridge_is_the_closed_form_on_the_correlation(ridge, monkeypatch):
    monkeypatch.setattr("rectilinear.core.maps.RIDGES", (ridge,))
    x, d = pairs()
    fit = fit_map(folds_of(x, d, 4))
    centred = x - x.mean(0)
    scale = 1 / np.linalg.norm(centred, axis=0)
    correlation = centred.T @ centred * scale * scale[:, None] + ridge * np.eye(len(scale))
    weight = scale[:, None] * np.linalg.solve(correlation, scale[:, None] * (centred.T @ (d - d.mean(0))))
    np.testing.assert_allclose(fit.weight, weight, rtol=1e-7, atol=1e-9 * np.abs(weight).max())


@given(seed=seeds, p=st.integers(1, 8), q=st.integers(2, 7), data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_other_map_of_the_rank_leaves_less(seed, p, q, data):
    rank = data.draw(st.integers(1, q - 1))
    x, d = normal(60, p, seed=seed), normal(60, q, seed=seed + 1)
    d += x @ normal(p, q, seed=seed + 2)
    fit = fit_map(folds_of(x, d), rank)
    assert [tuple(factor.shape) for factor in fit.factors] == [(p, rank), (rank, q)]
    assert np.linalg.matrix_rank(fit.weight.numpy()) <= rank
    least = residual(x, d, fit.weight.numpy(), fit.bias.numpy())
    # Eckart and Young: what is lost beside the whole map are the smaller singular values of its fitted values.
    weight, bias = least_squares(x, d)
    lost = np.linalg.svd((x - x.mean(0)) @ weight, compute_uv=False)[rank:]
    assert least == pytest.approx(residual(x, d, weight, bias) + np.sum(lost**2), rel=1e-9)
    for rng in itertools.islice(map(np.random.default_rng, itertools.count(seed)), 5):
        near = fit.factors[0].numpy() + 0.05 * rng.standard_normal((p, rank))
        near = near @ (fit.factors[1].numpy() + 0.05 * rng.standard_normal((rank, q)))
        far = rng.standard_normal((p, rank)) @ rng.standard_normal((rank, q))
        for other in (near, far):
            assert residual(x, d, other, d.mean(0) - x.mean(0) @ other) >= least


@pytest.mark.parametrize("folds", [1, 4])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_planted_map_of_low_rank_is_found(rank, folds):
    x = normal(300, 10)
    planted = normal(10, rank, seed=1) @ normal(rank, 7, seed=2)
    fit = fit_map(folds_of(x, x @ planted + 5, folds), rank)
    assert fit.ridge == 0
    np.testing.assert_allclose(fit.weight, planted, atol=1e-11)
    np.testing.assert_allclose(fit.bias, 5, atol=1e-11)
    if folds > 1:
        assert fit.held_out == pytest.approx(1, abs=1e-12)


def test_exact_data_need_no_ridge_and_few_noisy_tokens_do():
    x = normal(60, 20, seed=5)
    planted = normal(20, 8, seed=6)
    assert fit_map(folds_of(x, x @ planted, 3)).ridge == 0
    noisy = fit_map(folds_of(x, x @ planted + 20 * normal(60, 8, seed=7), 3))
    assert noisy.ridge > 0


@pytest.mark.parametrize("rank", [6, 7, 100, None])
def test_a_rank_as_large_as_the_output_is_a_whole_map(rank):
    x, d = pairs()
    fit = fit_map(folds_of(x, d), rank)
    assert len(fit.factors) == 1
    np.testing.assert_allclose(predict(fit, x), predict(fit_map(folds_of(x, d)), x), rtol=1e-12)


@pytest.mark.parametrize("spoil", ["duplicate", "dead", "constant", "sum", "few rows"])
@pytest.mark.parametrize("rank", [None, 2])
def test_deficient_columns(spoil, rank):
    x, _ = pairs(n=12 if spoil == "few rows" else 200, p=9)
    x = np.hstack([x, normal(len(x), 6, seed=9)]) if spoil == "few rows" else x
    if spoil == "duplicate":
        x[:, 4] = x[:, 7]
    elif spoil == "dead":
        x[:, 4] = 0
    elif spoil == "constant":
        x[:, 4] = 7.3
    elif spoil == "sum":
        x[:, 4] = x[:, 5] - 3 * x[:, 6]
    scale = np.where(x.std(0) > 1e-9, x.std(0), 1)
    d = x / scale @ normal(x.shape[1], 2, seed=8) @ normal(2, 6, seed=10) + 1
    for folds in (1, 4):
        fit = fit_map(folds_of(x, d, folds), rank)
        assert all(factor.isfinite().all() for factor in (*fit.factors, fit.bias))
        if spoil != "few rows" or folds == 1:
            np.testing.assert_allclose(predict(fit, x), d, rtol=0, atol=1e-5 * np.abs(d).max())


def test_nothing_varies():
    fit = fit_map(folds_of(np.full((20, 3), 2.0), np.full((20, 4), 5.0), 2))
    assert fit.held_out is None
    assert not fit.weight.any()
    np.testing.assert_allclose(fit.bias, 5)


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="at least one fold"):
        fit_map([])
    with pytest.raises(ValueError, match="rank of at least 1, got 0"):
        fit_map(folds_of(*pairs()), 0)


@pytest.mark.parametrize("folds", [1, 4])
@pytest.mark.parametrize("rank", [None, 3])
def test_a_map_comes_back_from_its_tensors(folds, rank):
    fitted = fit_map(folds_of(*pairs(), folds), rank)
    again = FittedMap.from_tensors(fitted.to_tensors())
    assert (again.ridge, again.held_out) == (fitted.ridge, fitted.held_out)
    assert (again.held_out is None) is (folds == 1)
    for one, other in zip((*fitted.factors, fitted.bias), (*again.factors, again.bias), strict=True):
        assert torch.equal(one, other)
