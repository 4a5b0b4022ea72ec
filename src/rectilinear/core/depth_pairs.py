"""Moments of hidden states at every depth with those at every later one.

With ``H_i`` the centred states at depth i (0: before the first block), the Gram matrices ``H_i' H_j`` of all ``i <= j``
give the moments of every pair ``x = h_i``, ``d = h_j - h_i``:

    gram = Hi'Hi,    cross = Hi'Hj - Hi'Hi,    energy = tr(Hj'Hj) - 2 tr(Hi'Hj) + tr(Hi'Hi)

Differences of large numbers are among them, so products are float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rectilinear.core.block_moments import NonFiniteError
from rectilinear.core.moments import Moments
from rectilinear.core.sinks import REFERENCE_TOKENS, norms_of, sink_limits

# Most tokens of one product: their states at all depths are in float64 at once.
_TOKENS = 2048


@dataclass(frozen=True, eq=False)
class DepthMoments:
    """Moments of hidden states of some tokens at all depths.

    Attributes:
        count: number of tokens n.
        means: ``[depths, p]`` float64.
        grams: one of each depth i, ``[p, depths - i, p]`` float64: centred products with the states at i and later.
        eps: of the coarsest dtype that states were in.
    """

    count: int
    means: Tensor
    grams: Sequence[Tensor]
    eps: float

    def taken_into(self, other: DepthMoments) -> DepthMoments:
        """Moments of both samples together, in the memory of the other's, which are not to be used again."""
        count, weight = self.count + other.count, self.count * other.count / (self.count + other.count)
        shift = other.means - self.means
        for depth, (one, two) in enumerate(zip(self.grams, other.grams, strict=True)):
            two.add_(one).addcmul_(shift[depth, :, None, None], shift[None, depth:], value=weight)
        means = self.means + other.count / count * shift
        return DepthMoments(count, means, other.grams, max(self.eps, other.eps))

    def pair(self, first: int, last: int) -> Moments:
        """Moments of ``x`` at one depth and ``d`` from there to a later one."""
        gram, products = self.grams[first][:, 0], self.grams[first][:, last - first]
        energy = self.grams[last][:, 0].trace() - 2 * products.trace() + gram.trace()
        return Moments(
            count=self.count,
            mean_x=self.means[first],
            mean_d=self.means[last] - self.means[first],
            cross=products - gram,
            energy=max(float(energy), 0.0),
            gram=gram,
            rounding=torch.finfo(torch.float64).eps * gram.diagonal(),
        )


#: States ``[tokens, p]`` of some tokens at each depth, and which of the tokens are sinks, ``[tokens]`` bool.
DepthTokens = tuple[list[Tensor], Tensor]


def tell_sinks(found: Iterable[tuple[Sequence[Tensor], Tensor | None]], sink_ratio: float) -> Iterator[DepthTokens]:
    """Tokens and which of them are attention sinks: those that are one at any depth.

    Args:
        found: states ``[tokens, p]`` at each depth, on one device, and ``[tokens]`` bool, those that are to count as
            sinks whatever their norms are, or None.
        sink_ratio: a norm beyond this many times the median there, over the first 256 tokens, makes one.

    Raises:
        NonFiniteError: a state is NaN or infinite.
    """
    limits: Tensor | None = None
    waiting: list[tuple[list[Tensor], Tensor | None]] = []  # until there are as many tokens

    def told() -> Iterator[DepthTokens]:
        for states, apart in waiting:
            norms = norms_of(*map(Tensor.float, states))
            if not norms.isfinite().all():
                raise NonFiniteError
            sinks = (norms > limits).any(0)  # type: ignore[operator]  # which are there by then
            yield states, sinks if apart is None else sinks | apart
        waiting.clear()

    for states, apart in found:
        if not len(states[0]):
            continue
        kept = list(states) if limits is not None else [each.clone() for each in states]
        waiting.append((kept, apart))
        if limits is None and sum(len(first) for (first, *_), _ in waiting) >= REFERENCE_TOKENS:
            limits = _limits(waiting, sink_ratio)
        if limits is not None:
            yield from told()
    if waiting:
        limits = _limits(waiting, sink_ratio)
        yield from told()


def _limits(waiting: Sequence[tuple[list[Tensor], Any]], sink_ratio: float) -> Tensor:
    norms = torch.cat([norms_of(*map(Tensor.float, states)) for states, _ in waiting], 1)
    return sink_limits(norms[:, :REFERENCE_TOKENS], sink_ratio)


class DepthAccumulator:
    """Gathers `DepthMoments` batch by batch, those of attention sinks apart; sums are in host memory."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Sums] = {}

    def add(self, states: Sequence[Tensor], sinks: Tensor) -> None:
        """Add tokens: states ``[tokens, p]`` at each depth, and which are sinks, ``[tokens]`` bool."""
        for kind, chosen in (("regular", ~sinks), ("sinks", sinks)):
            if chosen.any():
                sums = self._kinds.setdefault(kind, _Sums())
                for part in torch.split(chosen.nonzero().flatten(), _TOKENS):
                    sums.add([each[part] for each in states])

    def freeze(self) -> tuple[DepthMoments | None, DepthMoments | None]:
        """Moments of all tokens, and of those that are no sinks; the accumulator is empty then."""
        found = {kind: self._kinds.pop(kind).freeze() for kind in [*self._kinds]}
        regular, sinks = found.get("regular"), found.get("sinks")
        return regular.taken_into(sinks) if regular and sinks else regular or sinks, regular


class _Sums:
    """Sums of states and of their products around a provisional centre."""

    def __init__(self) -> None:
        self._count, self._eps = 0, 0.0

    def add(self, states: Sequence[Tensor]) -> None:
        """Add ``[tokens, p]`` at each depth."""
        self._eps = max(self._eps, *(torch.finfo(each.dtype).eps for each in states))
        stacked = torch.stack([each.to("cpu", torch.float64) for each in states], 1)  # [tokens, depths, p]
        tokens, depths, width = stacked.shape
        if not self._count:
            self._centre = stacked.mean(0)
            self._sum = torch.zeros_like(self._centre)
            self._grams = [stacked.new_zeros(width, depths - depth, width) for depth in range(depths)]
        stacked -= self._centre
        self._sum += stacked.sum(0)
        flat = stacked.flatten(1)
        for depth, gram in enumerate(self._grams):
            gram.view(width, -1).addmm_(stacked[:, depth].T, flat[:, depth * width :])
        self._count += tokens

    def freeze(self) -> DepthMoments:
        """The moments so far."""
        mean = self._sum / self._count
        for depth, gram in enumerate(self._grams):
            gram.addcmul_(mean[depth, :, None, None], mean[None, depth:], value=-self._count)
        return DepthMoments(self._count, self._centre + mean, self._grams, self._eps)


def depth_pairs(depths: int) -> Iterator[tuple[int, int]]:
    """Each depth with each later one."""
    return ((first, last) for first in range(depths) for last in range(first + 1, depths))


def bytes_of_pairs(depths: int, width: int) -> int:
    """What the moments of all pairs take, of regular tokens and of sinks."""
    return depths * (depths + 1) * width**2 * 8
