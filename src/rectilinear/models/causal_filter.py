"""Causal linear filters: their features, and what they remember of a sequence.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Tokens that are filtered at once: a decaying mean over T tokens is a product with a [T, T] matrix.
_CHUNK = 256


class State(NamedTuple):
    """What a filter remembers of a sequence: its size does not grow with the tokens seen.

    Attributes:
        recent: ``[rows, taps, width]``, the last normalised inputs, zero for padding.
        sums: ``[rates, rows, width]`` float32 or finer, decaying sums of all normalised inputs.
        weights: ``[rates, rows]``, the same sums of ones.
    """

    recent: Tensor
    sums: Tensor
    weights: Tensor

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> State:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        return State(change(self.recent, 0), change(self.sums, 1), change(self.weights, 1))


class CausalFilter(nn.Module):
    """The features of a causal linear filter.

    With ``r_t = x_t / rms(x_t)`` (zero for padding) the features of token t are

        x_t,  r_t (where ``present``),  r_{t-1} .. r_{t-taps},  and for each rate u
        sum_s u^(t-s) r_s / sum_s u^(t-s)   over the tokens s <= t of the document,

    so that rate 1 is the running mean.
    """

    def __init__(self, width: int, *, present: bool = False, taps: int = 0, rates: Sequence[float] = ()) -> None:
        super().__init__()
        self.width, self.present, self.taps, self.rates = width, present, taps, tuple(rates)

    @property
    def size(self) -> int:
        """Number of features."""
        return self.width * (1 + self.present + self.taps + len(self.rates))

    @property
    def remembers(self) -> bool:
        """Whether the features of a token depend on others."""
        return bool(self.taps or self.rates)

    def start(self, x: Tensor) -> State:
        """The state before the first token of ``x``, ``[rows, tokens, width]``."""
        rows, rates, finer = len(x), len(self.rates), torch.promote_types(x.dtype, torch.float32)
        return State(
            x.new_zeros(rows, self.taps, self.width),
            x.new_zeros(rates, rows, self.width, dtype=finer),
            x.new_zeros(rates, rows, dtype=finer),
        )

    def stream(
        self, x: Tensor, real: Tensor | None = None, state: State | None = None, starts: Tensor | None = None
    ) -> Iterator[tuple[Tensor, State]]:
        """Features ``[rows, chunk, size]`` of successive chunks of tokens, and the state after each.

        Args:
            x: ``[rows, tokens, width]``.
            real: ``[rows, tokens]`` bool, false for padding; None where nothing is.
            state: of the tokens before; None at the start of a sequence.
            starts: ``[rows, tokens]`` bool, true for the first token of each document but the first of a row; None
                where a row is one document.
        """
        state = state or self.start(x)
        parts = torch.split(x, _CHUNK, 1)
        nothing = (None,) * len(parts)
        masks = nothing if real is None else torch.split(real, _CHUNK, 1)
        cuts = nothing if starts is None else torch.split(starts, _CHUNK, 1)
        for part, mask, cut in zip(parts, masks, cuts, strict=True):
            features, state = self._step(part, mask, cut, state)
            yield features, state

    def state_within(
        self, x: Tensor, real: Tensor | None, state: State | None, starts: Tensor | None, kept: int
    ) -> State | None:
        """The state after the first ``kept`` of the tokens that `stream` was given."""
        if kept:
            real, starts = (None if each is None else each[:, :kept] for each in (real, starts))
            *_, (_, state) = self.stream(x[:, :kept], real, state, starts)
        return state

    def _step(self, x: Tensor, real: Tensor | None, starts: Tensor | None, state: State) -> tuple[Tensor, State]:
        tokens, finer = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        normalised = nn.functional.rms_norm(x.to(finer), (self.width,), eps=1e-6)
        ones = x.new_ones(x.shape[:2], dtype=finer)
        if real is not None:  # not a product: what stands at padding may be NaN
            normalised = torch.where(real[..., None], normalised, 0.0)
            ones = ones * real
        present = normalised.to(x.dtype)
        line = torch.cat([state.recent, present], 1)
        shifted = [line[:, self.taps - tap :][:, :tokens] for tap in range(1, self.taps + 1)]
        recent = line[:, tokens:]
        if starts is not None:
            # Of each place in the line the number of its document, 0 for the one that the state is of.
            numbers = nn.functional.pad(starts.cumsum(1), (self.taps, 0))
            current = numbers[:, self.taps :]
            shifted = [
                part * (numbers[:, self.taps - tap :][:, :tokens] == current)[..., None]
                for tap, part in enumerate(shifted, 1)
            ]
            recent = recent * (numbers[:, tokens:] == numbers[:, -1:])[..., None]
        features = [x, *([present] if self.present else []), *shifted]
        sums, weights = state.sums, state.weights
        if self.rates:
            rates = torch.tensor(self.rates, dtype=finer, device=x.device)[:, None, None]
            age = torch.arange(tokens, device=x.device)
            past = rates[..., None] ** (age + 1)[:, None]
            decay = torch.where(age[:, None] >= age, rates ** (age[:, None] - age).clamp(min=0), 0.0)[:, None]
            if starts is not None:
                decay = decay * (current[:, :, None] == current[:, None, :])
                past = past * (current == 0)[..., None]
            running = decay @ normalised + past * sums[:, :, None]
            lengths = (decay @ ones[..., None] + past * weights[:, :, None, None]).squeeze(-1)
            means = running / lengths.clamp(min=1e-6)[..., None]
            features += [mean.to(x.dtype) for mean in means]
            sums, weights = running[:, :, -1], lengths[:, :, -1]
        # Copies: a view would keep the whole chunk in memory.
        return torch.cat(features, -1), State(recent.clone(), sums.clone(), weights.clone())
