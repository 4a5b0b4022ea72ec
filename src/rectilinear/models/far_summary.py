"""What attention with a bounded memory remembers of the tokens that it does not keep: sums of values by centroid.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Weights of keys are exponentials of scores less an offset, within so many nats of it.
_RANGE = 40.0


class FarSums(NamedTuple):
    """Running sums over the tokens of a document that are not kept.

    Attributes:
        weighted: ``[rows, heads, shared * centroids, width + 1]``, for each key-value head, query head of it and
            centroid the sum of the weighted values, and of the weights.
        values: ``[rows, heads, width]``, the sum of the values.
    """

    weighted: Tensor
    values: Tensor

    @classmethod
    def none(cls, values: Tensor, count: int) -> FarSums:
        """Before the first token, of values ``[rows, heads, tokens, width]`` and so many weights of each."""
        rows, heads, _, width = values.shape
        zeros = values.new_zeros(rows, heads, width, dtype=torch.promote_types(values.dtype, torch.float32))
        return cls(zeros.new_zeros(rows, heads, count, width + 1), zeros)

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> FarSums:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        return FarSums(*(change(tensor, 0) for tensor in self))

    def seen(self, values: Tensor, weights: Tensor, far: Tensor, continues: Tensor) -> FarSums:
        """The sums that each of some tokens sees, with an axis of tokens before the last two, or the last one.

        Args:
            values, weights: ``[rows, heads, keys, ...]``, of tokens that the sums do not have yet.
            far: ``[rows, tokens, keys]`` bool, which of these each token is to see as far ones.
            continues: ``[rows, tokens]`` bool, whether a token is of the document that the sums are of.
        """
        rows, heads, _, width = values.shape
        ones = nn.functional.pad(values.to(weights.dtype), (0, 1), value=1.0)
        each = (weights[..., None] * ones[..., None, :]).flatten(3)
        mask = far[:, None].to(weights.dtype)
        weighted = (mask @ each).view(rows, heads, -1, weights.shape[-1], width + 1)
        goes_on = continues[:, None, :, None].to(weights.dtype)
        weighted = weighted + goes_on[..., None] * self.weighted[:, :, None]
        return FarSums(weighted, mask @ ones[..., :-1] + goes_on * self.values[:, :, None])

    def with_one(self, value: Tensor, weights: Tensor) -> FarSums:
        """The sums with those of a token more of each row, ``[rows, heads, 1, ...]``."""
        one = nn.functional.pad(value.to(weights.dtype), (0, 1), value=1.0)
        return FarSums(self.weighted + weights.transpose(-1, -2) * one, self.values + one[:, :, 0, :-1])

    def after(self, values: Tensor, weights: Tensor, left: Tensor, continues: Tensor) -> FarSums:
        """The sums with those of tokens that ``left``, ``[rows, keys]``, anew in rows whose document does not go on."""
        every = self.seen(values, weights, left[:, None], continues[:, None])
        return FarSums(every.weighted[:, :, 0], every.values[:, :, 0])


class Near(NamedTuple):
    """What a query saw of the tokens that are kept, ``[rows, heads, tokens]`` each: logarithms of sums of exponentials.

    Attributes:
        kept: of all scores of what is kept.
        window, sinks: of those of the last tokens, and of the first ones.
    """

    kept: Tensor
    window: Tensor
    sinks: Tensor


class FarSummary(nn.Module):
    """One more entry of the softmax of each query head, in place of all tokens that are not kept.

    With queries q and keys k before rotary embedding, s the scaling of scores, ``R`` (``turn``) the mean rotation of a
    query towards far keys, and centroids ``c_j`` of a head's queries ``R q``, a token that is not kept any more adds
    ``exp(s c_j . k - o_j) [v, 1]`` to the sums ``[V_j, Z_j]``, with offsets ``o_j``. A query gets

        g = softmax_j(- s |R q - c_j|^2)         u = sum_j g_j V_j / Z_j       the value
        l = w . features                                                       the logarithm of its mass

    The features are those of `Far.features`; docs/linearization.md has them too.

    Args:
        heads: query heads; ``shared`` of them have the same keys and values.
        shared: see there.
        centroids: for each query head.
        width: of queries and keys.
        rotary: how the rotary embedding turns these, in ``halves`` or in ``pairs``; None for no embedding.
        frequencies: by how much it turns each two entries from one position to the next.
    """

    def __init__(
        self,
        heads: int,
        shared: int,
        centroids: int,
        width: int,
        rotary: str | None = None,
        frequencies: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.heads, self.shared, self.count, self.width = heads, shared, centroids, width
        self.rotary, self.frequencies = rotary, [*frequencies]
        self.centroids = nn.Parameter(torch.zeros(heads, centroids, width))
        self.offsets = nn.Parameter(torch.zeros(heads, centroids))
        self.weights = nn.Parameter(torch.zeros(heads, self.features_of(width, centroids)))
        self.turn = nn.Parameter(torch.stack([torch.ones(width), torch.zeros(width)]))

    @staticmethod
    def features_of(width: int, centroids: int) -> int:
        """How many features the mass depends on."""
        return 7 + 2 * width + centroids - 1

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        return {
            "heads": self.heads,
            "shared": self.shared,
            "centroids": self.count,
            "width": self.width,
            "rotary": self.rotary,
            "frequencies": self.frequencies,
        }

    def forward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centroids, offsets, weights and turn, from wherever they are kept."""
        return self.centroids, self.offsets, self.weights, self.turn

    def there(self) -> Far:
        """The summary with its tensors at hand."""
        return Far(self.shared, self.count, self.width, self.rotary, tuple(self.frequencies), *self())


class Far(NamedTuple):
    """A `FarSummary` whose tensors are at hand, see there."""

    shared: int
    centroids_a_head: int
    width: int
    rotary: str | None
    frequencies: tuple[float, ...]
    centroids: Tensor
    offsets: Tensor
    weights: Tensor
    turn: Tensor

    def without_rotation(self, states: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys ``[rows, heads, tokens, width]`` as before the rotary embedding.

        ``positions`` are ``[rows, tokens]``, or ``[rows, heads, tokens]``.
        """
        if self.rotary is None:
            return states
        cos, sin = rotation_of(positions, self.frequencies, self.rotary)
        if positions.ndim < states.ndim - 1:  # of all heads
            cos, sin = cos[:, None], sin[:, None]
        return turned(states, cos.to(states.dtype), -sin.to(states.dtype), self.rotary)

    def turn_queries(self, queries: Tensor) -> Tensor:
        """Queries before rotary embedding as they are on average towards far keys."""
        cos, sin = self.turn.to(queries.dtype)
        return turned(queries, cos, sin, self.rotary or "halves")

    def weigh(self, keys: Tensor, positions: Tensor, scaling: float, heads: Tensor | slice = slice(None)) -> Tensor:
        """Weights ``[rows, heads, tokens, shared * centroids]`` of keys ``[rows, heads, tokens, width]`` in the sums.

        For positions see `without_rotation`.

        The heads are those key-value heads, of all, that ``heads`` says.
        """
        keys = self.without_rotation(keys, positions)
        centroids = self.centroids.view(-1, self.shared * self.centroids_a_head, self.width)[heads].to(keys.dtype)
        offsets = self.offsets.view(-1, 1, self.shared * self.centroids_a_head)[heads].to(keys.dtype)
        exponents = keys @ centroids.transpose(-1, -2) * scaling - offsets
        finer = torch.promote_types(exponents.dtype, torch.float32)
        return exponents.to(finer).clamp(-_RANGE, _RANGE).exp()

    def look(self, queries: Tensor, near: Near, sums: Tensor, counts: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """The value and the logarithm of the mass that queries before rotary embedding get for far tokens.

        Args:
            queries: ``[rows, heads, tokens, width]``.
            near: what they saw of the tokens that are kept.
            sums: ``[rows, heads, tokens, centroids, width of values + 1]``, at each query.
            counts: ``[rows, 1 or heads, tokens]``, far tokens of each.
            scaling: of scores.

        Gives ``[rows, heads, tokens, width of values]`` and ``[rows, heads, tokens]``, minus infinity where there are
        no far tokens.
        """
        features, value = self.features(queries, near, sums, counts, scaling)
        return value, self.mass(features, counts)

    def mass(self, features: Tensor, counts: Tensor) -> Tensor:
        """The logarithm of the mass by what it depends on; see `look`."""
        found = (features * self.weights[:, None].to(features.dtype)).sum(-1)
        return found.masked_fill(counts <= 0, -torch.inf)

    def features(
        self, queries: Tensor, near: Near, sums: Tensor, counts: Tensor, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """What the mass depends on, ``[rows, heads, tokens, features]``, and the value; see `look`."""
        queries = queries.to(sums.dtype)
        seen = self.turn_queries(queries)
        centroids = self.centroids.to(sums.dtype)
        squares = seen.square().sum(-1, keepdim=True) + centroids.square().sum(-1)[:, None]
        closeness = (2 * seen @ centroids.transpose(-1, -2) - squares) * scaling
        share = closeness.softmax(-1)
        total = sums[..., -1].clamp(min=1e-30)
        masses = total.log() + self.offsets[:, None].to(sums.dtype)
        value = (share[..., None] * (sums[..., :-1] / total[..., None])).sum(-2)
        logs = counts.clamp(min=1).to(sums.dtype).log()[..., None].expand(*queries.shape[:-1], 1)
        near_sinks = torch.stack([near.window, near.sinks], -1).clamp(min=-_RANGE)
        parts = [
            torch.ones_like(logs),
            logs,
            near_sinks.to(sums.dtype),
            queries,
            queries.square(),
            (share * masses).sum(-1, keepdim=True),
            masses.mean(-1, keepdim=True),
            closeness.amax(-1, keepdim=True),
            share[..., 1:],
        ]
        return torch.cat(parts, -1), value


def mixed(kept: Tensor, kept_mass: Tensor, value: Tensor, mass: Tensor) -> Tensor:
    """What heads give, ``[rows, heads, tokens, width]``, of kept and far tokens, by the logarithms of both masses."""
    share = torch.sigmoid(mass - kept_mass)[..., None].to(value.dtype)
    return kept + share * (value - kept)


def rotation_of(positions: Tensor, frequencies: Sequence[float], rotary: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[..., entries]`` that a rotary embedding turns entries by at some positions, in float32."""
    angles = positions[..., None].float() * torch.tensor(frequencies, device=positions.device)
    both = torch.cat([angles, angles], -1) if rotary == "halves" else angles.repeat_interleave(2, -1)
    return both.cos(), both.sin()


def turned(states: Tensor, cos: Tensor, sin: Tensor, rotary: str) -> Tensor:
    """States ``[..., width]`` with their first entries turned as rotary embeddings turn them, in halves or in pairs."""
    some, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
    if rotary == "halves":
        first, second = some.chunk(2, -1)
        partner = torch.cat([-second, first], -1)
    else:
        partner = torch.stack([-some[..., 1::2], some[..., ::2]], -1).flatten(-2)
    return torch.cat([some * cos + partner * sin, rest], -1).to(states.dtype)
