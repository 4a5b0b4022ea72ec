"""Fitting what attention with a bounded memory gets for far tokens, from the attention's own queries, keys and values.

All is closed-form but for one small convex fit; nothing goes through the model backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rectilinear.models.attention_record import ALL, AttentionInputs
from rectilinear.models.bounded_step import Group, Looked, Reach, look
from rectilinear.models.far_summary import Far, FarSummary, FarSums, Near, mixed, rotation_of
from rectilinear.models.kept_tokens import KeptTokens, Places, find_places

# Queries that are looked at together, at least.
_AT_ONCE = 64
# Least distance of a token that the mean rotation is taken over.
_NEAREST = 16
# Of k-means, of Newton's method, and the ridges of both least squares and that.
_ROUNDS, _STEPS, _RIDGE = 8, 5, 1e-4
# Nats below the largest exponent of a key that its weight is 1 at.
_HEADROOM = 10.0


class Whole(NamedTuple):
    """What an attention gives for some rows, and what it is made of.

    Attributes:
        inputs: of the call.
        places: where the tokens stand.
        output, mass: ``[rows, heads, tokens, width]`` and ``[rows, heads, tokens]``, of the attention itself, and the
            logarithm of the sum of its exponentials.
    """

    inputs: AttentionInputs
    places: Places
    output: Tensor
    mass: Tensor


def prepare(inputs: AttentionInputs) -> Whole:
    """What an attention gives, by its own function, in float32 or finer."""
    inputs = inputs.finer()
    length = torch.zeros(len(inputs.key), dtype=torch.long, device=inputs.key.device)
    places = find_places(length, inputs.positions, inputs.real, inputs.starts)
    looked = _look(inputs, places, Reach(ALL, 0, None))
    return Whole(inputs, places, looked.output, looked.near.kept)


def _look(inputs: AttentionInputs, places: Places, reach: Reach, sums: FarSums | None = None) -> Looked:
    """All queries of some rows: a few at a time, as these see few of the tokens that come before them."""
    states, tokens = (inputs.query, inputs.key, inputs.value), inputs.query.shape[2]
    step, parts = min(max(reach.window, _AT_ONCE), tokens), list[Looked]()
    group = Group(KeptTokens.none(*states[1:]), sums)
    for begin in range(0, tokens, step):
        end = min(begin + step, tokens)
        query, key, value = (each[:, :, begin:end] for each in states)
        part, group = look(query, key, value, group, places.part(begin, end), reach, inputs.terms)
        parts.append(part)

    def joined(tensors: Sequence[Any]) -> Any:
        return None if tensors[0] is None else torch.cat([*tensors], 2)

    output, nears, *rest = zip(*parts, strict=True)
    return Looked(joined(output), Near(*map(joined, zip(*nears, strict=True))), *map(joined, rest))


class FarFit(NamedTuple):
    """A far summary fitted for one window, and how far what heads give is from the attention's own.

    Attributes:
        tensors: of the `FarSummary`.
        errors: ``[key-value heads]``, squared errors of what they add to the output, relative to the stream.
    """

    tensors: dict[str, Tensor]
    errors: Tensor


def mean_turn(far: Far, tokens: int) -> Tensor:
    """The mean rotation of a query towards far keys, ``[2, width]``, cosines and sines; near ones are likelier."""
    turn = torch.stack([torch.ones(far.width), torch.zeros(far.width)])
    if far.rotary is not None:
        distances = torch.arange(min(_NEAREST, tokens - 1), tokens)
        share = (tokens - distances).float()
        share = (share / share.sum())[:, None]
        means = [(share * each).sum(0) for each in rotation_of(distances, far.frequencies, far.rotary)]
        turn[:, : len(means[0])] = torch.stack(means)
    return turn


class Yardstick(NamedTuple):
    """What errors of heads are measured by.

    Attributes:
        output_map: ``[heads * width, p]``, what comes after the heads; None for unknown.
        scales: ``[rows, tokens]`` for each of some rows, what errors of a token are divided by.
    """

    output_map: Tensor | None
    scales: list[Tensor]

    def errors(self, outputs: list[Tensor], rows: list[Whole]) -> Tensor:
        """``[key-value heads]``: mean squared errors of outputs ``[rows, heads, tokens, width]`` for some rows."""
        found = []
        for output, part, scale in zip(outputs, rows, self.scales, strict=True):
            heads = part.inputs.key.shape[1]
            difference = output - part.output
            by_head = difference.view(len(output), heads, -1, *output.shape[2:]).transpose(2, 3).flatten(3)
            if self.output_map is not None:
                by_head = by_head @ self.output_map.view(heads, by_head.shape[-1], -1).to(by_head.dtype)
            found.append((by_head.square().sum(-1) / scale[:, None].square()).mean((0, 2)))
        return torch.stack(found).mean(0)


def fit_far(rows: list[Whole], summary: FarSummary, window: int, sinks: int, yardstick: Yardstick) -> FarFit:
    """Fit a far summary, whose centroids are there, for a window, and see how well it does.

    Args:
        rows: what the attention gives for some rows.
        summary: whose ``weights`` are written.
        window, sinks: what is kept beside.
        yardstick: what errors are measured by.
    """
    far = summary.there()
    fits = [_Rows.of(part, far, window, sinks) for part in rows]
    far.weights.copy_(_fit_mass(fits))
    tensors = {name: tensor.detach().clone() for name, tensor in summary.state_dict().items()}
    return FarFit(tensors, yardstick.errors([part.output(far) for part in fits], rows))


def window_errors(rows: list[Whole], window: int, sinks: int, yardstick: Yardstick) -> Tensor:
    """``[key-value heads]``: as `FarFit.errors`, where far tokens are forgotten."""
    looked = [_look(part.inputs, part.places, Reach(window, sinks, None)) for part in rows]
    return yardstick.errors([part.output for part in looked], rows)


def _far_share(part: Whole, near: Looked) -> Tensor:
    """``[rows, heads, tokens]``: how much of its weight a query gives to tokens that are not kept."""
    share = -torch.expm1((near.near.kept - part.mass).clamp(max=0))
    return share.masked_fill(near.counts <= 0, 0.0)


def place_centroids(rows: list[Whole], far: Far, window: int, sinks: int, seed: int) -> None:
    """Centroids of each head's queries, weighted by their far share, and offsets that keep weights in range."""
    nears = [_look(part.inputs, part.places, Reach(window, sinks, None)) for part in rows]
    shares = [_far_share(part, near) for part, near in zip(rows, nears, strict=True)]
    plain = [far.without_rotation(part.inputs.query, part.inputs.positions) for part in rows]
    turned = torch.cat([far.turn_queries(queries).transpose(0, 1).flatten(1, 2) for queries in plain], 1)
    weights = torch.cat([share.transpose(0, 1).flatten(1) for share in shares], 1)
    generator = torch.Generator().manual_seed(seed)
    if far.centroids_a_head > 1:
        found = [
            _k_means(queries, share, far.centroids_a_head, generator)
            for queries, share in zip(turned, weights, strict=True)
        ]
        far.centroids.copy_(torch.stack(found))
    far.offsets.zero_()
    exponents = []
    for part in rows:
        keys = far.without_rotation(part.inputs.key, part.inputs.positions)[:, :, sinks:]
        centroids = far.centroids.view(keys.shape[1], -1, keys.shape[-1])
        exponents.append((keys @ centroids.transpose(-1, -2) * part.inputs.terms.scaling).amax((0, 2)))
    far.offsets.copy_(torch.stack(exponents).amax(0).view_as(far.offsets) - _HEADROOM)


def _k_means(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Weighted k-means of points ``[n, width]``."""
    weights = weights.clamp(min=0).to(points.dtype) + 1e-6
    centres = points[torch.multinomial(weights.cpu(), count, generator=generator)]
    for _ in range(_ROUNDS):
        owners = nn.functional.one_hot(torch.cdist(points, centres).argmin(1), count).to(points.dtype)
        owners = owners * weights[:, None]
        totals = owners.sum(0)
        means = owners.T @ points / totals.clamp(min=1e-9)[:, None]
        centres = torch.where((totals > 0)[:, None], means, centres)
    return centres


class _Rows(NamedTuple):
    """What the mass of far tokens is fitted on, of some rows.

    Attributes:
        whole: what the attention gives.
        features: ``[rows, heads, tokens, features]`` of `Far.features`; ``value`` beside.
        kept: ``[rows, heads, tokens, width]``, what the tokens that are kept give.
        kept_mass: the logarithm of their mass.
        counts: of far tokens.
        share: how much of its weight a query gives to them.
    """

    whole: Whole
    features: Tensor
    value: Tensor
    kept: Tensor
    kept_mass: Tensor
    counts: Tensor
    share: Tensor

    @classmethod
    def of(cls, part: Whole, far: Far, window: int, sinks: int) -> _Rows:
        """With centroids that are placed."""
        inputs, scaling = part.inputs, part.inputs.terms.scaling
        sums = FarSums.none(inputs.value, far.shared * far.centroids_a_head)
        looked = _look(inputs, part.places, Reach(window, sinks, partial(far.weigh, scaling=scaling)), sums)
        assert looked.sums is not None
        queries = far.without_rotation(inputs.query, inputs.positions)
        features, value = far.features(queries, looked.near, looked.sums, looked.counts, scaling)
        return cls(part, features, value, looked.output, looked.near.kept, looked.counts, _far_share(part, looked))

    def output(self, far: Far) -> Tensor:
        """What the heads give, ``[rows, heads, tokens, width]``."""
        return mixed(self.kept, self.kept_mass, self.value, far.mass(self.features, self.counts))


def _fit_mass(parts: list[_Rows]) -> Tensor:
    """Weights ``[heads, features]`` of the logarithm of far tokens' mass, in float32.

    With u the far value less what is kept gives, and r what the attention gives less that, the share that is wanted is
    ``p = <r, u> / |u|^2`` within 0 and 1, and its weight ``|u|^2``. First least squares of the true mass, weighted by
    the variance of the share; from there Newton's method for the logistic fit of p by ``sigmoid(mass - kept mass)``.
    """

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensor.transpose(0, 1).flatten(1, 2) for tensor in tensors], 1)

    there = torch.cat([(part.counts > 0).transpose(0, 1).flatten(1, 2) for part in parts], 1)
    chosen = there.any(0).nonzero()[:, 0]
    here = there[:, chosen].float()
    features = flat([part.features for part in parts])[:, chosen].float() * here[..., None]
    kept_mass = flat([part.kept_mass for part in parts])[:, chosen].float() * here
    share = flat([part.share for part in parts])[:, chosen].float().clamp(1e-6, 1 - 1e-6)
    wanted, weight = [], []
    for part in parts:
        u, r = part.value - part.kept, part.whole.output - part.kept
        size = u.square().sum(-1).clamp(min=1e-12)
        wanted.append(((r * u).sum(-1) / size).clamp(0, 1))
        weight.append(size)
    target, sizes = flat(wanted)[:, chosen].float(), flat(weight)[:, chosen].float() * here
    sizes = sizes / sizes.mean(1, keepdim=True).clamp(min=1e-12)
    scale = features.square().mean(1).clamp(min=1e-12).sqrt()
    features = features / scale[:, None]
    true_mass = (kept_mass + torch.logit(share)) * here
    start = _least_squares(features, true_mass, (share * (1 - share) + 1e-2) * here)
    return _newton(features, target, sizes, kept_mass, start) / scale


def _least_squares(features: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    weight = weight / weight.mean(1, keepdim=True).clamp(min=1e-12)
    gram, cross = _gram(features, weight), (features * (weight * target)[..., None]).mean(1)
    return _solve(gram + _RIDGE * torch.eye(gram.shape[-1], device=gram.device), cross)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """In float64, which not every device has."""
    solution: Tensor = torch.linalg.solve(matrix.cpu().double(), right.cpu().double())
    return solution.to(matrix)


def _gram(features: Tensor, weight: Tensor) -> Tensor:
    return features.transpose(1, 2) @ (features * weight[..., None]) / features.shape[1]


def _newton(features: Tensor, target: Tensor, weight: Tensor, less: Tensor, start: Tensor) -> Tensor:
    """The logistic fit, with a ridge towards where it starts; a step is shortened until it helps."""

    def cost(logits: Tensor, weights: Tensor) -> Tensor:
        fit = (weight * (nn.functional.softplus(logits) - target * logits)).mean(1)
        return fit + 0.5 * _RIDGE * (weights - start).square().sum(1)

    weights, logits = start, (features @ start[..., None])[..., 0] - less
    reached = cost(logits, weights)
    for _ in range(_STEPS):
        share = torch.sigmoid(logits)
        slope = ((weight * (share - target))[:, None] @ features)[:, 0] / features.shape[1]
        slope = slope + _RIDGE * (weights - start)
        curvature = _gram(features, weight * share * (1 - share)) + 1.01 * _RIDGE * torch.eye(
            features.shape[-1], device=features.device
        )
        step = _solve(curvature, slope)
        change, done = (features @ step[..., None])[..., 0], torch.zeros_like(reached, dtype=torch.bool)
        for length in (1.0, 0.4, 0.15, 0.05):
            tried = cost(logits - length * change, weights - length * step)
            better = (tried <= reached) & ~done
            weights = torch.where(better[:, None], weights - length * step, weights)
            logits = torch.where(better[:, None], logits - length * change, logits)
            reached, done = torch.where(better, tried, reached), done | better
    return weights
