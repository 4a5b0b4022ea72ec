"""A token more for attention with a bounded memory that is full: all heads at once, whatever their windows.

It is what `bounded_step.look` gives, of rows in which every head keeps all that it can and sees all of that: where each
kept token stands, and which one leaves, is the same at every step. This file travels with checkpoints as
`modeling_rectilinear` does, so it imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .bounded_step import Group, Heads, Looked, Terms, by_window, remembered, weighted
from .far_summary import Far, FarSums
from .kept_tokens import KeptTokens, Places


class Layout(NamedTuple):
    """Where the tokens of a full memory stand: those of each head together, its first ones and then its last ones.

    A token more is put behind them, once for each head. Numbers are of these places, ``int64``.

    Attributes:
        heads: key-value heads by window, in whose order tokens stand.
        sizes: how many tokens each of them keeps.
        windows: ``[heads]``, of each key-value head.
        sinks: first tokens of a document that are kept.
        seen: ``[heads, most]``, what each head sees, and any place behind that.
        there: ``[heads, most]`` bool, which of these it sees.
        first: ``[most]`` bool, which of these are first tokens.
        ages: ``[heads, most]``, how many tokens before the last each is, of those that are no first ones.
        stay: ``[kept]``, what is kept afterwards.
        leave: ``[heads]``, what is not.
    """

    heads: tuple[Heads, ...]
    sizes: tuple[int, ...]
    windows: Tensor
    sinks: int
    seen: Tensor
    there: Tensor
    first: Tensor
    ages: Tensor
    stay: Tensor
    leave: Tensor


@remembered
def lay_out(windows: tuple[int, ...], sinks: int, heads: int, queries: int, device: torch.device) -> Layout:
    """The layout for so many key-value and query heads; ``windows`` are of each key-value head, or one of all."""
    groups, _ = by_window(windows, heads, queries, device)
    sizes = tuple(sinks + group.window - 1 for group in groups)
    every = windows if len(windows) == heads else windows * heads
    ordered = sorted(range(heads), key=lambda head: every[head])  # as groups have them
    begins = dict(zip(ordered, _before([sinks + every[head] - 1 for head in ordered]), strict=True))
    kept, most = sum(sinks + window - 1 for window in every), sinks + max(every)
    seen, stays = list[list[int]](), dict[int, list[int]]()
    for head, window in enumerate(every):
        places = [*range(begins[head], begins[head] + sinks + window - 1), kept + head]
        stays[head] = places[:sinks] + places[sinks + 1 :]
        seen.append(places)
    ages = [[window - 1 - place + sinks for place in range(most)] for window in every]
    with torch.inference_mode(False):  # for all calls to come
        return Layout(
            groups,
            sizes,
            torch.tensor(every, device=device),
            sinks,
            torch.tensor([places + [0] * (most - len(places)) for places in seen], device=device),
            torch.tensor([[place < len(places) for place in range(most)] for places in seen], device=device),
            torch.arange(most, device=device) < sinks,
            torch.tensor(ages, device=device),
            torch.tensor([place for head in ordered for place in stays[head]], dtype=torch.long, device=device),
            torch.tensor([places[sinks] for places in seen], device=device),
        )


def _before(sizes: Sequence[int]) -> list[int]:
    """How much is before each of some parts."""
    return [sum(sizes[:number]) for number in range(len(sizes))]


class FullState(NamedTuple):
    """What is kept of a sequence where every key-value head keeps all that it can.

    Attributes:
        keys, values: ``[rows, kept, width]``, as a `Layout` says.
        positions: ``[rows, kept]`` int64, see `Places`.
        length: ``[rows]`` int64, tokens of the document so far.
        sums: of the others, of all key-value heads; None without a far summary.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    length: Tensor
    sums: FarSums | None

    @classmethod
    def of(cls, groups: Sequence[Group], layout: Layout) -> FullState:
        """The same as heads by window keep it, which has to be full."""
        kept = [group.tokens for group in groups]
        positions = [tokens.positions[:, None].expand(-1, tokens.keys.shape[1], -1) for tokens in kept]
        sums = _in_order([group.sums for group in groups], layout)
        keys, values = ([tokens.keys for tokens in kept], [tokens.values for tokens in kept])
        return cls(
            _one_after_another(keys), _one_after_another(values), _one_after_another(positions), kept[0].length, sums
        )

    def groups(self, layout: Layout) -> tuple[Group, ...]:
        """As heads by window keep it."""
        found, begin = list[Group](), 0
        for heads, size in zip(layout.heads, layout.sizes, strict=True):
            count, rows = len(layout.windows[heads.shared]), len(self.keys)
            here = slice(begin, begin + count * size)
            keys, values = (each[:, here].view(rows, count, size, each.shape[-1]) for each in (self.keys, self.values))
            positions = self.positions[:, begin : begin + size]
            first = torch.arange(layout.sinks, device=keys.device).expand(rows, -1)
            last = self.length[:, None] + torch.arange(1 - heads.window, 0, device=keys.device)
            ranks, none = torch.cat([first, last], 1), torch.zeros_like(self.length)
            tokens = KeptTokens(keys, values, ranks, positions, none, self.length)
            found.append(Group(tokens, self.sums and FarSums(*(each[:, heads.shared] for each in self.sums))))
            begin = here.stop
        return tuple(found)

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> FullState:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        keys, values, positions, length = (change(tensor, 0) for tensor in self[:4])
        return FullState(keys, values, positions, length, self.sums and self.sums.each_row(change))


def is_full(groups: Sequence[Group], windows: tuple[int, ...], sinks: int) -> bool:
    """Whether every row keeps all that the heads of each window can."""
    kept = [group.tokens.ranks for group in groups]
    sizes = [sinks + window - 1 for window in sorted({*windows})]
    long = all(ranks.shape[1] == size for ranks, size in zip(kept, sizes, strict=True))
    return long and bool((torch.cat(kept, 1) >= 0).all())


def _one_after_another(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors ``[rows, heads, kept, ...]`` as ``[rows, all that is kept, ...]``."""
    return torch.cat([tensor.flatten(1, 2) for tensor in tensors], 1)


def _in_order(sums: Sequence[FarSums | None], layout: Layout) -> FarSums | None:
    """Sums by window in the order of key-value heads."""
    known = [each for each in sums if each is not None]
    if len(known) < 2:
        return known[0] if known else None
    order = torch.cat([torch.as_tensor(heads.shared) for heads in layout.heads]).argsort()
    return FarSums(*(torch.cat(some, 1)[:, order] for some in zip(*known, strict=True)))


def look_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: FullState,
    places: Places,
    layout: Layout,
    asked: tuple[Terms, Far | None],
) -> tuple[Looked, FullState]:
    """What the heads get for one token more of each row, and what they keep then.

    Args:
        query, key, value: ``[rows, heads, 1, width]``.
        before: what is kept of the tokens before.
        places: where the tokens stand.
        layout: of what is kept.
        asked: the terms of the attention, and what there is of far tokens.
    """
    terms, far = asked
    keys, values = torch.cat([before.keys, key[:, :, 0]], 1), torch.cat([before.values, value[:, :, 0]], 1)
    positions = torch.cat([before.positions, places.positions.expand(-1, key.shape[1])], 1)
    visible, first = layout.there[None], layout.first
    if terms.sliding is not None:
        ages = places.ranks[:, :, None] - torch.arange(len(first), device=key.device)
        visible = visible & (torch.where(first, ages, layout.ages) < terms.sliding)
    seen = keys[:, layout.seen], values[:, layout.seen]
    output, near = weighted(query, *seen, visible[:, :, None, None], first[None], terms)
    shared = query.shape[1] // key.shape[1]
    counts = (places.ranks + 1 - layout.sinks - layout.windows).repeat_interleave(shared, 1)[..., None]
    stay, length = layout.stay, places.lengths[:, 0]
    after = FullState(keys[:, stay], values[:, stay], positions[:, stay], length, before.sums)
    if before.sums is None or far is None:
        return Looked(output, near, None, None, counts), after
    weighted_sums, sums = before.sums
    by_head = weighted_sums.view(*weighted_sums.shape[:2], shared, -1, values.shape[-1] + 1).flatten(1, 2)
    means = sums.repeat_interleave(shared, 1)[:, :, None] / counts.clamp(min=1)[..., None]
    left, at = keys[:, layout.leave, None], positions[:, layout.leave, None]
    weights = far.weigh(left, at, terms.scaling)
    after = after._replace(sums=before.sums.with_one(values[:, layout.leave, None], weights))
    return Looked(output, near, by_head[:, :, None], means, counts), after
