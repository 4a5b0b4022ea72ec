"""Simpler maps explain what an independent decomposition says that they do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rectilinear.core.forms import anisotropy, effective_rank, explain_map
from tests.core import test_maps

N, P, FOLDS = 400, 6, 4


def folds_of(x, d, folds=FOLDS):
    return test_maps.folds_of(x, d, folds)


def share(residual, target, mean=None):
    mean = target.mean(0) if mean is None else mean
    return 1 - (residual**2).sum() / ((target - mean) ** 2).sum()


def rotation(x, y):
    """Of centred x to centred y, with its scale."""
    left, values, right = np.linalg.svd(x.T @ y)
    return values.sum() / (x**2).sum() * left @ right


def reduced(x, d, rank):
    coefficients = np.linalg.lstsq(x, d, rcond=None)[0]
    _, _, right = np.linalg.svd(x @ coefficients, full_matrices=False)
    return coefficients @ right[:rank].T @ right[:rank]


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((N, P)) @ generator.standard_normal((P, P)) + 3
    d = 0.3 * x @ generator.standard_normal((P, P)) + 0.5 * generator.standard_normal((N, P)) - 1
    return x, d


def test_each_form_explains_what_it_does_over_the_tokens_themselves(data):
    x, d = data
    y = x + d
    cx, cy, cd = x - x.mean(0), y - y.mean(0), d - d.mean(0)
    scale = (cx * cy).sum() / (cx**2).sum()
    expected = {
        "identity": cy - cx,
        "multiple": cy - scale * cx,
        "rotation": cy - cx @ rotation(cx, cy),
        "linear": cy - cx @ np.linalg.lstsq(cx, cy, rcond=None)[0],
    }
    found = explain_map(folds_of(x, d))
    assert found.forms.keys() == expected.keys()
    for name, residual in expected.items():
        assert found.forms[name].output.in_sample == pytest.approx(share(residual, y), abs=1e-12)
        assert found.forms[name].update.in_sample == pytest.approx(share(residual, d), abs=1e-11)
    for rank, scores in found.ranks.items():
        residual = cd - cx @ reduced(cx, cd, rank)
        assert scores.update.in_sample == pytest.approx(share(residual, d), abs=1e-12)
    assert [*found.ranks] == [1, 2, 4]


def test_held_out_scores_are_of_folds_that_maps_were_not_fitted_on(data):
    x, d = data
    y = x + d
    found = explain_map(folds_of(x, d))
    shares = {"rotation": [], 2: []}
    for fold in np.array_split(np.arange(N), FOLDS):
        rest = np.setdiff1d(np.arange(N), fold)
        mx, my, md = x[rest].mean(0), y[rest].mean(0), d[rest].mean(0)
        turned = (x[fold] - mx) @ rotation(x[rest] - mx, y[rest] - my)
        shares["rotation"].append(share(y[fold] - my - turned, y[fold], my))
        low = (x[fold] - mx) @ reduced(x[rest] - mx, d[rest] - md, 2)
        shares[2].append(share(d[fold] - md - low, d[fold], md))
    assert found.forms["rotation"].output.held_out == pytest.approx(np.mean(shares["rotation"]), abs=1e-12)
    assert found.ranks[2].update.held_out == pytest.approx(np.mean(shares[2]), abs=1e-12)
    assert found.ranks[2].update.stderr == pytest.approx(np.std(shares[2], ddof=1) / 2, abs=1e-12)


def test_planted_maps_are_told_apart():
    generator = np.random.default_rng(1)
    x = generator.standard_normal((N, P)) @ np.diag([5, 3, 2, 1, 1, 0.5])
    turn = np.linalg.qr(generator.standard_normal((P, P)))[0]
    planted = {
        "identity": np.zeros((N, P)),
        "multiple": 0.7 * x,
        "rotation": 1.3 * x @ turn - x,
        "linear": x @ generator.standard_normal((P, P)),
    }
    order = [*planted]
    for place, d in enumerate(planted.values()):
        forms = explain_map(folds_of(x, d)).forms
        for other in order[place:]:
            assert forms[other].output.in_sample == pytest.approx(1, abs=1e-10)
        for other in order[:place]:
            assert forms[other].output.in_sample < 0.999


def test_the_map_and_its_directions(data):
    x, d = data
    found = explain_map(folds_of(x, d))
    weight = np.linalg.lstsq(x - x.mean(0), d - d.mean(0), rcond=None)[0]
    np.testing.assert_allclose(found.weight.numpy(), weight, atol=1e-10)
    np.testing.assert_allclose(found.bias.numpy(), d.mean(0) - x.mean(0) @ weight, atol=1e-10)
    np.testing.assert_allclose(found.singular_values.numpy(), np.linalg.svd(weight)[1], atol=1e-10)
    given = (x - x.mean(0)) @ weight
    _, values, right = np.linalg.svd(given)
    np.testing.assert_allclose(found.shares.numpy(), values**2 / ((d - d.mean(0)) ** 2).sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs((right * found.directions.numpy().T).sum(1)), 1, atol=1e-8)


def test_a_part_alone_has_no_outputs(data):
    found = explain_map(folds_of(*data), alone=True)
    assert [*found.forms] == ["linear"]
    assert found.forms["linear"].output.in_sample is None
    assert found.forms["linear"].update.in_sample == explain_map(folds_of(*data)).forms["linear"].update.in_sample


def test_a_single_fold_holds_nothing_out(data):
    scores = explain_map(folds_of(*data, folds=1)).forms["linear"].update
    assert scores.in_sample > 0
    assert (scores.held_out, scores.stderr) == (None, None)


def test_an_update_that_is_rounding_has_no_scores():
    x = np.random.default_rng(2).standard_normal((N, P)).astype(np.float32)
    eps = torch.finfo(torch.float32).eps
    found = explain_map(folds_of(x.astype(float), np.full((N, P), 1e-9)), eps)
    assert found.forms["linear"].update.in_sample is None
    assert found.forms["identity"].output.in_sample == pytest.approx(1)


@given(st.integers(1, 20), st.floats(1e-3, 1e3))
def test_effective_rank_counts_equal_directions(n, size):
    spectrum = torch.cat([torch.full((n,), size), torch.zeros(3)])
    assert effective_rank(spectrum) == pytest.approx(n)
    assert anisotropy(spectrum) == pytest.approx(1 / n)


def test_effective_rank_and_anisotropy_of_known_spectra():
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(torch.from_numpy(8 * shares)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert anisotropy(torch.from_numpy(8 * shares)) == pytest.approx(0.5)
    assert (effective_rank(torch.zeros(3)), anisotropy(torch.zeros(3))) == (0.0, 0.0)
