"""What stand-ins remember of a sequence, beside all else that is in their layer of transformers' cache.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from torch import Tensor
from transformers.cache_utils import (
    BaseQuantizedLayer,
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
)


class State(Protocol):
    """What a stand-in remembers of a sequence, in tensors."""

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> State:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""


class KeptState:
    """A stand-in's `State` after some tokens, and what it takes to go back to fewer of them.

    Attributes:
        length: tokens seen.
        lost: whether tokens were taken back of which nothing was recorded.
    """

    def __init__(self, recording: bool) -> None:
        self.recording, self.length, self.lost = recording, 0, False
        self.state: State | None = None
        self.past: list[tuple[int, Callable[[int], State | None]]] = []

    def advance(self, state: State | None, tokens: int, rewind: Callable[[int], State | None]) -> None:
        """Take the state after some more tokens; ``rewind`` gives the one after fewer of them."""
        self.state = state
        self.length += tokens
        if self.recording:
            self.past.append((tokens, rewind))

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

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> None:
        """Change every tensor; ``change`` takes one and the number of the axis that rows are on."""
        self.past = []
        if self.state is not None:
            self.state = self.state.each_row(change)


class StandInLayer:
    """Beside a class of transformers' cache layers: one that keeps states of stand-ins too.

    Tokens are taken back (`crop`) as transformers has it for layers of fixed size: after `activate_past_recording` the
    layer keeps, of every call since the last `crop`, what it takes to go back to any token of it.
    """

    kept_states: dict[str, KeptState]
    keeps_past: bool
    hands_over = False  # whether keys and values are not kept: their attention, a stand-in, keeps what it needs
    is_compileable = False

    def kept_state(self, role: str) -> KeptState:
        """The state of the stand-in that has a role in this layer."""
        return self.kept_states.setdefault(role, KeptState(self.keeps_past))

    def get_seq_length(self) -> int:
        """Tokens seen: by what is no stand-in, where that counts any, else by the stand-ins."""
        counted = getattr(super(), "get_seq_length", int)()
        return int(counted or max((each.length for each in self.kept_states.values()), default=0))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values, and give all that are kept; or count them, and give them as they come."""
        layer: Any = super()
        if not self.hands_over:
            kept: tuple[Tensor, Tensor] = layer.update(key_states, value_states, *args, **kwargs)
            return kept
        if not isinstance(self, BaseQuantizedLayer):
            layer.update(key_states[..., :0], value_states[..., :0])
        return key_states, value_states

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be taken back."""
        return self.keeps_past and (not self._in_use or bool(super().is_croppable))  # type: ignore[misc]

    @property
    def _in_use(self) -> bool:
        """Whether what is no stand-in keeps anything here, or counts tokens."""
        return getattr(self, "keys", None) is not None or self._keeps_states

    @property
    def _keeps_states(self) -> bool:
        """Whether a recurrence keeps anything here."""
        tables = (value for value in vars(self).values() if isinstance(value, dict))
        return any(isinstance(part, Tensor) for table in tables for part in table.values())

    def __reduce__(self) -> Any:
        return _blank_layer, (type(self).__mro__[2],), vars(self)

    def _both(self, name: str, *args: Any) -> None:
        method = getattr(super(), name, None)
        if method is not None and self._in_use:
            method(*args)

    def reset(self) -> None:
        """Forget all tokens."""
        self._both("reset")
        self.kept_states = {}

    def activate_past_recording(self) -> None:
        """From now on keep what it takes to take tokens back."""
        self.keeps_past = True
        for each in self.kept_states.values():
            each.recording = True
        method = getattr(super(), "activate_past_recording", None)
        if method is not None:
            method()

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens back; see `KeptState.crop`."""
        if isinstance(self, LinearAttentionCacheLayerMixin) and not self._keeps_states:
            if isinstance(self, CacheLayerMixin) and self.keys is not None:  # of an attention beside what is gone
                DynamicLayer.crop(self, tokens_to_remove)  # type: ignore[arg-type]
        else:
            self._both("crop", tokens_to_remove)
        for each in self.kept_states.values():
            each.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose rows, for beam search."""
        self._both("reorder_cache", beam_idx)
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Choose rows."""
        self._both("batch_select_indices", indices)
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self._both("batch_repeat_interleave", repeats)
        for each in self.kept_states.values():
            each.each_row(lambda tensor, rows: tensor.repeat_interleave(repeats, rows))

    def _select(self, indices: Tensor) -> None:
        for each in self.kept_states.values():
            each.each_row(lambda tensor, rows: tensor.index_select(rows, indices.to(tensor.device)))

    def offload(self) -> None:
        """Move what is no stand-in's; these are small."""
        self._both("offload")

    def prefetch(self) -> None:
        """Move what is no stand-in's back."""
        self._both("prefetch")


def _blank_layer(layer: Any) -> Any:
    """Such a layer without attributes yet: what a pickle of one begins with."""
    made = stand_in_layer_class(layer)
    return made.__new__(made)


@cache
def stand_in_layer_class(layer: Any) -> Any:
    """A class of cache layers that keep states of stand-ins too."""
    # Without a layer type of its own, by which transformers would make such layers for others.
    return type(f"StandIn{layer.__name__}", (StandInLayer, layer), {"_layer_type": None})


def layer_beside(cache: Any, index: int, recording: bool) -> Any:
    """A layer of a cache as a `StandInLayer`, with all that is in it already.

    Raises:
        RuntimeError: it is of a fixed number of tokens.
    """
    held: Cache = getattr(cache, "self_attention_cache", cache)
    while len(held.layers) <= index:
        held.layers.append((held.layer_class_to_replicate or DynamicLayer)())
    layer: Any = held.layers[index]
    if any(isinstance(each, StaticLayer) for each in held.layers):
        # Masks for keys of a fixed number would be taken for masks of the tokens so far.
        raise RuntimeError("expected a cache that grows, got a static one; try the default cache_implementation")
    if isinstance(layer, StandInLayer):
        return layer
    kind: Any = type(layer)
    made = stand_in_layer_class(kind)
    beside = held.layers[index] = made.__new__(made)
    recorded = recording or getattr(layer, "record_past", False)
    vars(beside).update(vars(layer), kept_states={}, keeps_past=recorded)
    return beside


def count_tokens(layer: Any, role: str, like: Tensor) -> None:
    """Count the tokens of ``like``, ``[rows, tokens, width]``, in a layer whose own user has been replaced.

    Keys and values without any width keep the length that masks are made by; a recurrent state, that there is one.
    """
    quantised = isinstance(layer, BaseQuantizedLayer)  # which can do nothing with these; lengths are the stand-in's
    if role != "recurrent" and isinstance(layer, CacheLayerMixin) and not quantised:
        nothing = like.new_zeros(len(like), 1, like.shape[1], 0)
        layer.update(nothing, nothing)
    if role != "attention" and isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)
