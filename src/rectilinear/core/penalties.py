"""Distances between the hidden states of neighbouring layers, as penalties to train with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

#: ``cosine``: ``1 - cos(x, y)``; ``mse``: ``|y - x|^2``, summed over the width.
PenaltyKind = Literal["cosine", "mse"]


def layer_penalty(
    hidden_states: Sequence[Tensor],
    attention_mask: Tensor | None = None,
    kind: PenaltyKind = "cosine",
    *,
    embedding: bool = True,
) -> Tensor:
    """Penalty on the change from layer to layer (arXiv 2405.12250, section on regularised pretraining).

    ``sum_i mean_t (1 - cos(h_i, h_(i-1)))`` or ``sum_i mean_t |h_i - h_(i-1)|^2`` over pairs of
    neighbouring layers i and unmasked tokens t. Products are taken in float32 at least.

    Args:
        hidden_states: the input of the first block, then the output of each, all before the final
            norm: ``[..., width]`` each. Transformers' ``output_hidden_states`` gives the last one
            after the norm; `rectilinear.Regularizer` takes it before.
        attention_mask: like the states without their width; zero where a token is padding.
        kind: see `PenaltyKind`.
        embedding: whether the first pair, from the embedding to the first block's output, counts.

    Returns:
        A scalar, float32 at least; differentiable once.

    Raises:
        ValueError: another kind, fewer than two states, states or a mask of other shapes, only padding.
    """
    states = hidden_states if embedding else hidden_states[1:]
    if len(states) < 2:
        raise ValueError(f"expected hidden states of at least two layers, got {len(states)}")
    penalties = [token_penalty(x, y, kind) for x, y in pairwise(states)]
    total = torch.stack([penalty.to(penalties[0].device) for penalty in penalties]).sum(0)
    return masked_mean(total, attention_mask)


def token_penalty(x: Tensor, y: Tensor, kind: PenaltyKind) -> Tensor:
    """``1 - cos(x, y)`` or ``|y - x|^2`` of each token: ``[..., width]`` twice to ``[...]``, float32 at least.

    Keeps its two arguments and at most three numbers a token for the backward pass. The cosine
    with a state that is zero is taken as 0, without a gradient.
    """
    if kind not in _PENALTIES:
        raise ValueError(f"expected kind {' or '.join(map(repr, _PENALTIES))}, got {kind!r}")
    if x.shape != y.shape:
        raise ValueError(f"expected hidden states of one shape, got {[*x.shape]} and {[*y.shape]}")
    return _PENALTIES[kind](x, y)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values over tokens that a mask of the same shape does not set to zero."""
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise ValueError(f"expected a mask {[*values.shape]}, got {[*mask.shape]}")
    real = mask.to(values.device) != 0
    if not real.any():
        raise ValueError("expected at least one unmasked token, got none")
    return values.masked_fill(~real, 0).sum() / real.sum()


class _CosineDistance(Function):
    """``c = x.y / |x||y|``; ``dc/dx = y / |x||y| - c x / |x|^2``, and 0 where a norm is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        exact = _exact(x, y)
        norms = [torch.linalg.vector_norm(state, dim=-1, dtype=exact) for state in (x, y)]
        defined = (norms[0] > 0) & (norms[1] > 0)
        # One by one: the product of two small norms may be 0.
        x_inverse, y_inverse = (torch.where(defined, norm.reciprocal(), 0) for norm in norms)
        cosine = (x.to(exact) * y.to(exact)).sum(-1) * x_inverse * y_inverse
        ctx.save_for_backward(x, y, x_inverse, y_inverse, cosine)
        return 1 - cosine

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, x_inverse, y_inverse, cosine = ctx.saved_tensors
        across, along = -grad * x_inverse * y_inverse, grad * cosine
        to_x = _combine(y, across, x, along * x_inverse.square())
        to_y = _combine(x, across, y, along * y_inverse.square())
        return to_x.to(x.dtype), to_y.to(y.dtype)


class _SquaredDistance(Function):
    """``|y - x|^2``, without the difference being kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        exact = _exact(x, y)
        ctx.save_for_backward(x, y)
        return (y.to(exact) - x.to(exact)).square().sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        to_y = _combine(y, 2 * grad, x, -2 * grad)
        return -to_y.to(x.dtype), to_y.to(y.dtype)


_PENALTIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": _CosineDistance.apply,
    "mse": _SquaredDistance.apply,
}


def _exact(x: Tensor, y: Tensor) -> torch.dtype:
    """Precision of the products: that of the states, float32 at least."""
    return torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)


def _combine(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """``a x + b y`` token by token, in the precision of a and b."""
    return torch.addcmul(x.to(a.dtype) * a[..., None], y.to(a.dtype), b[..., None])
