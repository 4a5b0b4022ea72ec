"""Causal linear filters: their features, and what they remember of a sequence in a layer of the cache.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

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


class FilterCache(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """A cache layer that holds a filter's `State` in place of keys and values.

    Tokens are taken back (`crop`) as transformers has it for layers of fixed size: after `activate_past_recording`
    the layer keeps, of every call since the last `crop`, what it takes to go back to any token of it.
    """

    is_sliding = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_initialized = True
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        """Forget all tokens."""
        self.length, self.lost = 0, False
        self.state: State | None = None
        self.past: list[tuple[int, Callable[[int], State | None]]] = []

    def advance(self, state: State | None, tokens: int, rewind: Callable[[int], State | None]) -> None:
        """Take the state after some more tokens; ``rewind`` gives the one after fewer of them."""
        self.state = state
        self.length += tokens
        if self.record_past:
            self.past.append((tokens, rewind))

    def activate_past_recording(self) -> None:
        """From now on keep what it takes to take tokens back."""
        self.record_past = True

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back."""
        return self.record_past

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` tokens, or all but so many where that is positive.

        Where they were not recorded the state is lost, which is an error at the next token, not here: whoever is done
        with a cache may crop it too.
        """
        remove = -tokens_to_remove if tokens_to_remove <= 0 else max(self.length - tokens_to_remove, 0)
        past, self.past = self.past, []
        self.length -= remove
        while remove > 0 and past:
            tokens, rewind = past.pop()
            self.state = rewind(max(tokens - remove, 0))
            remove -= tokens
        self.lost = self.lost or remove > 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of keys, as full attention has them."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: there are no keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse keys and values: no attention is left at this layer."""
        raise RuntimeError("expected no attention at this layer, got keys and values")

    def offload(self) -> None:
        """Stay: the state is small."""

    def prefetch(self) -> None:
        """Stay: the state is small."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose rows, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Choose rows."""
        self._each(lambda tensor, rows: tensor.index_select(rows, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._each(lambda tensor, rows: tensor.repeat_interleave(repeats, rows))

    def _each(self, change: Callable[[Tensor, int], Tensor]) -> None:
        self.past = []
        if self.state is not None:
            recent, sums, weights = self.state
            self.state = State(change(recent, 0), change(sums, 1), change(weights, 1))
