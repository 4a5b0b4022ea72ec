"""Attention of some queries with a bounded memory: what they see of the tokens before, and what is kept after them.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .far_summary import FarSums, Near
from .kept_tokens import KeptTokens, Places, join, keep, seen

_Made = TypeVar("_Made")

# Of a sum of exponentials, so that its logarithm is finite.
_LEAST = 1e-37


class Terms(NamedTuple):
    """What an architecture's attention adds to the usual one.

    Attributes:
        scaling: of the products of queries and keys.
        sliding: tokens that the attention itself sees at most, the querying one among them; None for all.
        softcap: the scores s are ``softcap tanh(s / softcap)``; None for the scores as they are.
        sinks: ``[heads]``, scores that a head has for nothing at all, whose value is zero; None for none.
        dropout: of the weights.
    """

    scaling: float
    sliding: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0


class Reach(NamedTuple):
    """How far a group of heads sees.

    Attributes:
        window, sinks: the last and the first tokens that it sees.
        weigh: gives the weights ``[rows, heads, tokens, ...]`` of keys ``[rows, heads, tokens, width]`` at positions
            ``[rows, tokens]`` in sums over far tokens; None without such sums.
    """

    window: int
    sinks: int
    weigh: Callable[[Tensor, Tensor], Tensor] | None


class Group(NamedTuple):
    """What the key-value heads of a window keep: some tokens, and with a far summary sums over the others."""

    tokens: KeptTokens
    sums: FarSums | None

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> Group:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        return Group(self.tokens.each_row(change), self.sums and self.sums.each_row(change))


class Looked(NamedTuple):
    """What some queries got: of tokens that are kept, and what they see of the others.

    Attributes:
        output: ``[rows, heads, tokens, width]``, of what is kept alone.
        near: see `Near`.
        sums: of the far tokens of each, ``[rows, heads, tokens, centroids, width + 1]``; None without a far summary.
        means: ``[rows, heads, tokens, width]``, means of the far tokens' values, for each query head.
        counts: ``[rows, heads, tokens]``, far tokens.
    """

    output: Tensor
    near: Near
    sums: Tensor | None
    means: Tensor | None
    counts: Tensor


def look(
    query: Tensor, key: Tensor, value: Tensor, before: Group, places: Places, reach: Reach, terms: Terms
) -> tuple[Looked, Group]:
    """What the query heads of some key-value heads get, and what these keep then.

    Args:
        query, key, value: ``[rows, heads, tokens, width]``.
        before: what is kept of the tokens before.
        places: where the tokens stand.
        reach: how far they see.
        terms: of the attention.
    """
    keys, values, there = join(before.tokens, key, value, places)
    visible = seen(places, there, reach.window, reach.sinks, terms.sliding)
    first = (there.ranks >= 0) & (there.ranks < reach.sinks)
    output, near = weighted(query, keys, values, visible[:, None, None], first, terms)
    counts = (places.ranks + 1 - reach.window - reach.sinks).clamp(min=0)[:, None].expand(-1, query.shape[1], -1)
    after, sums = keep(keys, values, there, reach.window, reach.sinks), before.sums
    if sums is None or reach.weigh is None:
        return Looked(output, near, None, None, counts), Group(after, None)
    weights = reach.weigh(keys, there.positions)
    ages = places.ranks[:, :, None] - there.ranks[:, None]
    old = (ages >= reach.window) & (there.ranks >= reach.sinks)[:, None]
    far = old & (places.documents[:, :, None] == there.documents[:, None])
    every = sums.seen(values, weights, far, places.documents == before.tokens.document[:, None])
    shared = query.shape[1] // key.shape[1]
    by_head = every.weighted.view(*every.weighted.shape[:3], shared, -1, values.shape[-1] + 1)
    means = every.values.repeat_interleave(shared, 1) / counts.clamp(min=1)[..., None]
    left = (there.documents == after.document[:, None]) & (there.ranks >= reach.sinks)
    left = left & (there.ranks <= after.length[:, None] - reach.window)
    ended = sums.after(values, weights, left, before.tokens.document == after.document)
    return Looked(output, near, by_head.transpose(2, 3).flatten(1, 2), means, counts), Group(after, ended)


def weighted(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, first: Tensor, terms: Terms
) -> tuple[Tensor, Near]:
    """Softmax attention ``[rows, heads, queries, width]`` on what is ``visible``, ``[rows, heads, 1, queries, keys]``.

    ``first``, ``[rows, keys]``, are the first tokens of documents, whose scores `Near` has by themselves.
    """
    rows, _, tokens, width = query.shape
    grouped = query.reshape(rows, keys.shape[1], -1, width)  # the query heads of a key-value head one after the other
    scores = (grouped @ keys.transpose(-1, -2) * terms.scaling).view(rows, keys.shape[1], -1, tokens, keys.shape[2])
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(~visible, -torch.inf)
    largest = scores.detach().amax(-1, keepdim=True)
    nothing = terms.sinks
    if nothing is not None:
        nothing = nothing.to(scores.dtype).view(1, keys.shape[1], -1, 1, 1)
        largest = torch.maximum(largest, nothing.detach())
    weights = (scores - largest).exp()
    # Apart: a total less a part of it cancels.
    kinds = torch.stack([~first, first], -1)[:, None].to(weights.dtype)
    window, sinks = (weights.flatten(2, 3) @ kinds).view(*weights.shape[:-1], 2).unbind(-1)
    total = window + sinks if nothing is None else window + sinks + (nothing - largest).exp()[..., 0]
    weights = nn.functional.dropout(weights / total[..., None], terms.dropout, terms.dropout > 0)
    output = (weights.to(query.dtype).flatten(2, 3) @ values.to(query.dtype)).view(*weights.shape[:-1], -1)
    output = output.flatten(1, 2)
    masses = torch.stack([total, window, sinks]).clamp(min=_LEAST).log() + largest[..., 0]
    return output, Near(*masses.flatten(2, 3).unbind())


class Heads(NamedTuple):
    """Heads that see as far as each other.

    Attributes:
        window: see `Reach`.
        shared: of keys and values, their numbers.
        queries: the query heads that have these, their numbers.
    """

    window: int
    shared: Tensor | slice
    queries: Tensor | slice


def remembered(make: Callable[..., _Made]) -> Callable[..., _Made]:
    """A function whose results, tuples with tensors, are kept for the next call with the same arguments.

    But not those of a traced model, whose tensors are of that trace.
    """
    kept: dict[Any, _Made] = {}

    def find(*given: Any) -> _Made:
        if given in kept:
            return kept[given]
        found = make(*given)
        if all(type(tensor) is Tensor for tensor in _tensors(found)):
            kept[given] = found
        return found

    return find


def _tensors(held: Any) -> list[Tensor]:
    if isinstance(held, tuple):
        return [tensor for each in held for tensor in _tensors(each)]
    return [held] if isinstance(held, Tensor) else []


@remembered
def by_window(
    windows: tuple[int, ...], heads: int, queries: int, device: torch.device
) -> tuple[tuple[Heads, ...], Tensor]:
    """So many key-value and query heads by their windows, and the places of query heads in these, one after the other.

    ``windows`` are of each key-value head, or one of all.
    """
    found, shared = list[Heads](), queries // heads
    with torch.inference_mode(False):  # for all calls to come
        every = torch.arange(queries, device=device)
        if len({*windows}) == 1:
            return (Heads(windows[0], slice(None), slice(None)),), every
        for window in sorted({*windows}):
            some = torch.tensor([head for head, own in enumerate(windows) if own == window], device=device)
            found.append(Heads(window, some, every.view(heads, shared)[some].flatten()))
        order = torch.cat([torch.as_tensor(some.queries) for some in found]).argsort()
    return tuple(found), order


def in_order(parts: Sequence[Looked], order: Tensor) -> Looked:
    """What heads of several windows got, in the order of the heads; see `by_window`."""
    if len(parts) == 1:
        return parts[0]

    def join_heads(tensors: Sequence[Any]) -> Any:
        return None if tensors[0] is None else torch.cat([*tensors], 1)[:, order]

    output, nears, *rest = zip(*parts, strict=True)
    return Looked(join_heads(output), Near(*map(join_heads, zip(*nears, strict=True))), *map(join_heads, rest))
