import numpy as np
import pytest
import torch

from rectilinear import MomentsAccumulator, solve
from rectilinear.core.solve import conditioned_below


def conditioned(n, p, condition, seed=0):
    """Rows whose correlation has about this condition number, their directions turned at random."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))[0]
    spread = torch.logspace(0, -np.log10(condition) / 2, p, dtype=torch.float64)
    return torch.randn(n, p, generator=generator, dtype=torch.float64) * spread @ turn.T


def solved(x, d):
    accumulator = MomentsAccumulator()
    accumulator.update(x, d)
    return solve(accumulator.freeze())


def least_squares(x, d):
    x, d = (t.numpy() - t.numpy().mean(0) for t in (x, d))
    coefficients, _, rank, _ = np.linalg.lstsq(x, d, rcond=1e-12)
    return coefficients, np.sum((x @ coefficients - d) ** 2), rank


@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e6])
def test_coefficients_and_residual_equal_lstsq(condition):
    x = conditioned(3000, 24, condition)
    d = torch.randn(3000, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    solution = solved(x, d)
    coefficients, residual, _ = least_squares(x, d)
    assert solution.factor.method == "cholesky"
    assert solution.factor.rank == 24
    np.testing.assert_allclose(solution.residual, residual, rtol=1e-9)
    np.testing.assert_allclose(solution.coefficients, coefficients, atol=1e-9 * condition**0.5)
    correlation = np.corrcoef(x.numpy(), rowvar=False)
    np.testing.assert_allclose(solution.factor.condition, np.linalg.cond(correlation), rtol=1e-6)


def test_a_planted_map_is_found():
    x = conditioned(500, 12, 100)
    planted = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    solution = solved(x, x @ planted + 5)
    torch.testing.assert_close(solution.coefficients, planted, rtol=0, atol=1e-10)
    assert abs(solution.residual) < 1e-9 * solution.explained


def test_massive_scales_leave_the_condition_number_alone():
    x = conditioned(2000, 16, 10)
    d = torch.randn(2000, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    scaled = x * torch.logspace(-6, 6, 16, dtype=torch.float64)
    plain, massive = solved(x, d), solved(scaled, d)
    assert massive.factor.method == "cholesky"
    np.testing.assert_allclose(massive.factor.condition, plain.factor.condition, rtol=1e-6)
    np.testing.assert_allclose(massive.residual, plain.residual, rtol=1e-10)


@pytest.mark.parametrize("spoil", ["duplicate", "dead", "constant", "sum", "few rows"])
def test_deficient_inputs_fall_back_to_eigh_and_still_fit_what_is_linear(spoil):
    n, rank = (9, 8) if spoil == "few rows" else (400, 19)
    x = conditioned(n, 20, 10)
    if spoil == "duplicate":
        x[:, 4] = x[:, 11]
    elif spoil == "dead":
        x[:, 4] = 0
    elif spoil == "constant":
        x[:, 4] = 7.3
    elif spoil == "sum":
        x[:, 4] = x[:, 5] - 3 * x[:, 6]
    planted = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    d = x @ planted
    solution = solved(x, d)
    assert solution.factor.method == "eigh"
    assert solution.factor.rank == rank == least_squares(x, d)[2]
    assert abs(solution.residual) < 1e-9 * solution.explained
    fitted = (x - x.mean(0)) @ solution.coefficients
    torch.testing.assert_close(fitted, d - d.mean(0), rtol=0, atol=1e-8)


def test_no_variance_at_all():
    solution = solved(torch.full((30, 5), 2.0), torch.randn(30, 5))
    assert solution.factor.rank == 0
    assert solution.explained == 0
    assert solution.factor.condition == 1
    assert torch.equal(solution.coefficients, torch.zeros(5, 5, dtype=torch.float64))


def test_a_condition_number_is_certified_from_below_only():
    for condition in (1, 30, 300, 3000):
        accumulator = MomentsAccumulator()
        accumulator.update(x := conditioned(4000, 20, condition), x)
        moments = accumulator.freeze()
        actual = np.linalg.cond(np.corrcoef(x.numpy(), rowvar=False))
        assert not conditioned_below(moments, 0.99 * actual)
        assert conditioned_below(moments, 20 * actual)
    x[:, 3] = x[:, 5]
    accumulator = MomentsAccumulator()
    accumulator.update(x, x)
    assert not conditioned_below(accumulator.freeze(), 1e12)
