"""Penalties on neighbouring hidden states, against autograd through the plain formulas in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from rectilinear import layer_penalty
from rectilinear.core.penalties import token_penalty

KINDS = ("cosine", "mse")
PLAIN = {
    "cosine": lambda x, y: 1 - cosine_similarity(x, y, -1, eps=0),
    "mse": lambda x, y: ((y - x) ** 2).sum(-1),
}


def states(*shape, count=2, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 3), tokens=st.integers(1, 4), width=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_values_and_gradients(kind, seed, rows, tokens, width):
    ours, plain = states(rows, tokens, width, seed=seed), states(rows, tokens, width, seed=seed)
    weights = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((rows, tokens)))
    got, wanted = token_penalty(*ours, kind), PLAIN[kind](*plain)
    torch.testing.assert_close(got, wanted)
    (got * weights).sum().backward()
    (wanted * weights).sum().backward()
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_against_differences(kind):
    assert torch.autograd.gradcheck(lambda x, y: token_penalty(x, y, kind), tuple(states(2, 3, 5)))


@given(seed=st.integers(0, 10**6), a=st.floats(1e-3, 1e3), b=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_cosine_sees_no_scale(seed, a, b):
    x, y = states(4, 6, seed=seed)
    torch.testing.assert_close(token_penalty(a * x, b * y, "cosine"), token_penalty(x, y, "cosine"))
    torch.testing.assert_close(token_penalty(a * x, b * x, "cosine"), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(token_penalty(a * x, -b * x, "cosine"), torch.full((4,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_states_have_float32_products(kind, dtype):
    x, y = states(5, 300, dtype=dtype)
    scale = 200  # the squares' sum is far beyond what float16 holds
    big = [(scale * state).detach().requires_grad_() for state in (x, y)]
    got = token_penalty(*big, kind)
    wanted = PLAIN[kind](*[state.detach().double() for state in big])
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    got.sum().backward()
    assert all(state.grad.dtype is dtype and state.grad.isfinite().all() for state in big)


def test_autocast_changes_nothing():
    x, y = states(3, 64, dtype=torch.float32)
    for kind in KINDS:
        with torch.autocast("cpu", torch.bfloat16):
            inside = token_penalty(x, y, kind)
        assert torch.equal(inside, token_penalty(x, y, kind))


def test_a_state_that_is_zero_has_no_direction():
    x, y = states(2, 4)
    with torch.no_grad():
        x[0] = 0
    penalty = token_penalty(x, y, "cosine")
    penalty.sum().backward()
    assert penalty[0] == 1
    assert not x.grad[0].any()
    assert not y.grad[0].any()
    assert x.grad[1].any()


def test_orthogonal_states_have_a_gradient():
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    y = torch.tensor([[0.0, 2.0]], requires_grad=True)
    token_penalty(x, y, "cosine").sum().backward()
    assert x.grad.tolist() == [[0.0, -1.0]]
    assert y.grad.tolist() == [[-0.5, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_no_more_than_its_arguments(kind):
    x, y = states(8, 16, 64, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        token_penalty(x, y, kind)
    extra = [tensor for tensor in kept if tensor is not x and tensor is not y]
    assert sum(tensor.numel() for tensor in extra) <= 3 * 8 * 16


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("embedding", [True, False])
def test_sum_over_layers_mean_over_unmasked_tokens(kind, embedding):
    layers = states(3, 5, 7, count=4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    pairs = list(pairwise(layers))[0 if embedding else 1 :]
    wanted = sum(PLAIN[kind](x, y)[mask == 1].mean() for x, y in pairs)
    got = layer_penalty(layers, mask, kind, embedding=embedding)
    torch.testing.assert_close(got, wanted)
    for layer in layers:
        with torch.no_grad():
            layer[mask == 0] = float("nan")
    assert torch.equal(layer_penalty(layers, mask, kind, embedding=embedding), got)


def test_what_cannot_be():
    x, y = states(2, 3, 4)
    with pytest.raises(ValueError, match=r"expected kind 'cosine' or 'mse', got 'l1'"):
        layer_penalty([x, y], kind="l1")
    with pytest.raises(ValueError, match="at least two layers, got 1"):
        layer_penalty([x, y], embedding=False)
    with pytest.raises(ValueError, match="of one shape"):
        layer_penalty([x, y[:1]])
    with pytest.raises(ValueError, match=r"expected a mask \[2, 3\], got \[2\]"):
        layer_penalty([x, y], torch.ones(2))
    with pytest.raises(ValueError, match="at least one unmasked token"):
        layer_penalty([x, y], torch.zeros(2, 3))
