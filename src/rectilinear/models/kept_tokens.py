"""What attention with a bounded memory keeps of a sequence: the first tokens of a document, and the last ones.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where tokens stand.

    Attributes:
        ranks: ``[rows, tokens]`` int64, how many tokens of its document come before each; -1 for padding.
        documents: ``[rows, tokens]`` int64, which document of its row each belongs to.
        lengths: ``[rows, tokens]`` int64, how many tokens its document has up to each.
        positions: ``[rows, tokens]`` int64, by which positions are in queries and keys.
    """

    ranks: Tensor
    documents: Tensor
    lengths: Tensor
    positions: Tensor

    def part(self, begin: int, end: int) -> Places:
        """Those of some of the tokens."""
        return Places(*(each[:, begin:end] for each in self))


class KeptTokens(NamedTuple):
    """Keys and values of the tokens that a row still sees, all of one document.

    Attributes:
        keys, values: ``[rows, heads, kept, width]``.
        ranks, positions: ``[rows, kept]`` int64, see `Places`; ranks are -1 where a row keeps fewer than others.
        document, length: ``[rows]`` int64, the document that they are of, and how many tokens it has so far.
    """

    keys: Tensor
    values: Tensor
    ranks: Tensor
    positions: Tensor
    document: Tensor
    length: Tensor

    @classmethod
    def none(cls, keys: Tensor, values: Tensor) -> KeptTokens:
        """Before the first token of some keys and values ``[rows, heads, tokens, width]``."""
        ranks = torch.zeros(len(keys), 0, dtype=torch.long, device=keys.device)
        zeros = ranks.new_zeros(len(keys))
        return cls(keys[:, :, :0], values[:, :, :0], ranks, ranks, zeros, zeros)

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> KeptTokens:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        return KeptTokens(*(change(tensor, 0) for tensor in self))


def find_places(length: Tensor, positions: Tensor, real: Tensor | None, starts: Tensor | None) -> Places:
    """Where the next tokens stand.

    Args:
        length: ``[rows]`` int64, tokens of the document that goes on.
        positions: ``[rows, tokens]`` int64, see `Places`.
        real, starts: ``[rows, tokens]`` bool, true for what is no padding, and where a document begins; None where all
            are real, and where none begins.
    """
    counts = torch.ones_like(positions) if real is None else real.long()
    lengths, documents = counts.cumsum(1) + length[:, None], torch.zeros_like(counts)
    if starts is not None:
        lengths = lengths - torch.where(starts, lengths - counts, 0).cummax(1).values
        documents = starts.long().cumsum(1)
    ranks = lengths - 1 if real is None else torch.where(real, lengths - 1, -1)
    return Places(ranks, documents, lengths, positions)


def seen(queries: Places, keys: Places, window: int, sinks: int, sliding: int | None = None) -> Tensor:
    """Which keys each query sees, ``[rows, queries, keys]`` bool; padding sees itself, as something has to be seen.

    The keys end with those of the queries. A token sees the first ``sinks`` of its document and the last ``window``,
    itself among them; where the attention itself has a window, ``sliding``, no token out of that.
    """
    ages = queries.ranks[:, :, None] - keys.ranks[:, None]
    near = (ages < window) | (keys.ranks < sinks)[:, None]
    if sliding is not None:
        near = near & (ages < sliding)
    alike = queries.documents[:, :, None] == keys.documents[:, None]
    found = near & alike & (ages >= 0) & (keys.ranks >= 0)[:, None]
    padding = torch.diag_embed(queries.ranks < 0)
    return torch.cat([found[..., : -padding.shape[-1]], found[..., -padding.shape[-1] :] | padding], -1)


def join(kept: KeptTokens, keys: Tensor, values: Tensor, places: Places) -> tuple[Tensor, Tensor, Places]:
    """Keys and values ``[rows, heads, tokens, width]`` of what is kept and of the tokens after it, and their places."""
    documents = kept.document[:, None].expand_as(kept.ranks)
    earlier = Places(kept.ranks, documents, kept.ranks + 1, kept.positions)
    joined = Places(*(torch.cat(pair, 1) for pair in zip(earlier, places, strict=True)))
    return torch.cat([kept.keys, keys], 2), torch.cat([kept.values, values], 2), joined


def keep(keys: Tensor, values: Tensor, places: Places, window: int, sinks: int) -> KeptTokens:
    """What the tokens after some, ``[rows, heads, tokens, width]``, may still see of them."""
    # Copies: a view would keep what is of all tokens in memory.
    document, length = places.documents[:, -1].clone(), places.lengths[:, -1].clone()
    ranks = torch.where(places.documents == document[:, None], places.ranks, -1)
    wanted = (ranks >= 0) & ((ranks < sinks) | (ranks > length[:, None] - window))
    # The wanted ones first, in their order.
    chosen = wanted.long().argsort(dim=1, descending=True, stable=True)[:, : sinks + window - 1]

    def take(tensor: Tensor) -> Tensor:
        return tensor.gather(2, chosen[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[-1]))

    ranks = torch.where(wanted, ranks, -1).gather(1, chosen)
    return KeptTokens(take(keys), take(values), ranks, places.positions.gather(1, chosen), document, length)


def starting(kept: KeptTokens) -> KeptTokens:
    """The same as the next call has it, whose documents are counted anew."""
    return kept._replace(document=torch.zeros_like(kept.document))
