import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectilinear import Moments, MomentsAccumulator


def gather(x, d, cuts=(), products=torch.float64):
    accumulator = MomentsAccumulator(products)
    for rows in np.split(np.arange(len(x)), sorted(cuts)):
        accumulator.update(x[rows], d[rows])
    return accumulator.freeze()


def sample(n, p, q, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64) * 3 + 100
    d = torch.randn(n, q, generator=generator, dtype=torch.float64) - 7
    return x.to(dtype), d.to(dtype)


def direct(x, d):
    """The definitions, in numpy and in one go."""
    x, d = x.double().numpy(), d.double().numpy()
    cx, cd = x - x.mean(0), d - d.mean(0)
    return {
        "mean_x": x.mean(0),
        "mean_d": d.mean(0),
        "gram": cx.T @ cx,
        "cross": cx.T @ cd,
        "energy": (cd**2).sum(),
    }


def assert_equal(moments, expected, rtol=1e-10):
    for name, value in expected.items():
        got = np.asarray(getattr(moments, name))
        np.testing.assert_allclose(got, value, rtol=0, atol=rtol * max(np.abs(value).max(), 1e-6), err_msg=name)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 60),
    p=st.integers(1, 9),
    q=st.integers(1, 9),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    seed=st.integers(0, 2**16),
)
def test_streamed_equals_whole(n, p, q, cuts, seed):
    x, d = sample(n, p, q, seed)
    moments = gather(x, d, [cut for cut in cuts if cut <= n])
    assert moments.count == n
    assert_equal(moments, direct(x, d))


def test_widths_beyond_one_strip():
    x, d = sample(900, 300, 300)
    moments = gather(x, d, [100, 500])
    assert_equal(moments, direct(x, d))


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 30), min_size=3, max_size=3), seed=st.integers(0, 2**16))
def test_merge_is_associative_and_commutative(sizes, seed):
    x, d = sample(sum(sizes), 5, 4, seed)
    a, b, c = (gather(*pair) for pair in zip(x.split(sizes), d.split(sizes), strict=True))
    whole = direct(x, d)
    for merged in ((a + b) + c, a + (b + c), c + a + b):
        assert merged.count == sum(sizes)
        assert_equal(merged, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float32_products_of_low_precision_activations(dtype):
    x, d = sample(4000, 20, 20, dtype=dtype)
    moments = gather(x, d, [1000, 3000], products=torch.float32)
    assert moments.products is torch.float32
    assert moments.gram.dtype is torch.float64
    # A float32 sum of 2000 squares rounds by about sqrt(2000) eps, and more so where values repeat.
    assert_equal(moments, direct(x, d), 2000**0.5 * torch.finfo(torch.float32).eps)


def test_precision_may_change_on_the_way_and_the_coarsest_is_recorded():
    x, d = sample(300, 6, 6)
    accumulator = MomentsAccumulator(torch.float64)
    accumulator.update(x[:100], d[:100])
    accumulator.products = torch.float32
    accumulator.update(x[100:200], d[100:200])
    accumulator.products = torch.float64
    accumulator.update(x[200:], d[200:])
    moments = accumulator.freeze()
    assert moments.products is torch.float32
    assert_equal(moments, direct(x, d), 1e-6)
    assert (gather(x, d) + moments).products is torch.float32


def test_ambient_precision_settings_do_not_reach_the_products():
    x, d = sample(2000, 32, 32, dtype=torch.float32)
    expected = gather(x, d, products=torch.float32)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moments = gather(x, d, products=torch.float32)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(moments.gram, expected.gram)
    assert torch.equal(moments.cross, expected.cross)


def test_constant_columns_keep_no_variance():
    x, d = sample(500, 4, 4, dtype=torch.float32)
    x[:, 2] = 7.3
    moments = gather(x, d, [100, 300], products=torch.float32)
    assert float(moments.gram[2].abs().max()) < 1e-3


def test_saved_and_loaded(tmp_path):
    moments = gather(*sample(50, 4, 3), products=torch.float32)
    torch.save(moments.to_tensors(), tmp_path / "moments.pt")
    again = Moments.from_tensors(torch.load(tmp_path / "moments.pt"))
    assert (again.count, again.energy, again.products) == (50, moments.energy, torch.float32)
    for name in ("mean_x", "mean_d", "gram", "cross"):
        assert torch.equal(getattr(again, name), getattr(moments, name))


def test_shapes_that_do_not_pair_are_refused():
    accumulator = MomentsAccumulator()
    with pytest.raises(ValueError, match="at least one pair"):
        accumulator.freeze()
    with pytest.raises(ValueError, match="expected x"):
        accumulator.update(torch.ones(3, 2), torch.ones(4, 2))
    accumulator.update(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected widths"):
        accumulator.update(torch.ones(3, 5), torch.ones(3, 2))
