"""What all stand-ins share: what they know of padding and documents, and their place in transformers' cache.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from .stand_in_cache import KeptState, layer_beside


class PaddingMask:
    """A forward pre-hook of the decoder that notes for its stand-ins which tokens are real and which of a document."""

    def __init__(self) -> None:
        self.mask = self.positions = self.lengths = None  # type: Any
        self._found: tuple[tuple[Any, ...] | None, dict[Any, Tensor | None]] = (None, {})

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention mask, positions and lengths of documents of this forward pass."""
        if len(args) > 1:
            kwargs = named_arguments(module, args, kwargs)
        names = ("attention_mask", "position_ids", "cu_seq_lens_q")
        self.mask, self.positions, self.lengths = (kwargs.get(name) for name in names)
        self._found = (None, {})

    def of_last(self, tokens: int) -> Tensor | None:
        """``[rows, tokens]`` bool, true where one of the last tokens is real; None where all are."""
        return self._once(self._of_last, tokens)

    def starts_of_last(self, tokens: int) -> Tensor | None:
        """``[rows, tokens]`` bool, true where one of the last tokens begins a document in a row of several.

        Documents in one row are told apart by a mask ``[rows, 1, queries, keys]`` or, where there is no mask, by
        positions that do not go on or by lengths that were summed up, as transformers' own attentions tell them.
        None where every row is one document.
        """
        return self._once(self._starts_of_last, tokens)

    def _once(self, find: Callable[[int], Tensor | None], tokens: int) -> Tensor | None:
        """What is found in a forward pass is found for all stand-ins: whether there is any, the device has to say."""
        noted, (known, found) = (self.mask, self.positions, self.lengths), self._found
        if known is None or any(one is not other for one, other in zip(known, noted, strict=True)):
            found = {}
            self._found = (noted, found)
        what = find.__name__, tokens
        if what not in found:
            found[what] = find(tokens)
        return found[what]

    def _of_last(self, tokens: int) -> Tensor | None:
        mask = self._mask()
        if mask is not None and mask.ndim == 4:  # a token sees itself unless it is padding
            mask = mask[:, 0].diagonal(mask.shape[-1] - mask.shape[-2], -2, -1)
        real = None if mask is None else mask[:, -tokens:]
        return None if real is None or real.all() else real

    def _starts_of_last(self, tokens: int) -> Tensor | None:
        mask, starts = self._mask(), None
        if mask is not None and mask.ndim == 4:
            offset = mask.shape[-1] - mask.shape[-2]
            begins = mask[:, 0].diagonal(offset, -2, -1) & ~mask[:, 0].tril(offset - 1).any(-1)
            starts = begins[:, -tokens:] & (torch.arange(tokens, device=mask.device) + offset > 0)
        elif mask is None and isinstance(self.positions, Tensor) and self.positions.shape[1:] == (tokens,):
            starts = self.positions.diff(dim=1, prepend=self.positions[:, :1] - 1) != 1
        elif mask is None and isinstance(self.lengths, Tensor):
            starts = torch.zeros(1, tokens, dtype=torch.bool, device=self.lengths.device)
            starts[0, self.lengths[1:-1].long()] = True
        return starts if starts is not None and starts.any() else None

    def _mask(self) -> Tensor | None:
        """The mask ``[rows, tokens]`` or ``[rows, 1, queries, keys]`` as bool, true for what is seen."""
        mask = self.mask
        if isinstance(mask, Mapping):  # a mask for each kind of attention: full attention sees most
            mask = mask.get("full_attention", next(iter(mask.values()), None))
        if not isinstance(mask, Tensor):
            return None
        return mask == 0 if mask.ndim == 4 and mask.dtype is not torch.bool else mask.bool()


class StandIn:
    """Beside a class of modules: what stands in for a part of a model.

    Attributes:
        kind: by which a configuration says what is made.
        cache_layers: the layers of the cache that the replaced module had, of which the first keeps the state.
        role: what the replaced module kept there: ``attention`` keys and values, ``recurrent`` a state, or ``both``.
        records_past: whether caches are to keep what it takes to take tokens back.
        padding: where the attention mask is to be had.
        entry: where the input comes from, where that is another module than this.
    """

    kind: str
    cache_layers: tuple[int, ...]
    role: str
    records_past = False
    padding: PaddingMask
    entry: Any = None

    @property
    def remembers(self) -> bool:
        """Whether what it gives for a token depends on others."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        raise NotImplementedError

    def _layers_in(self, arguments: Sequence[Any]) -> list[Any]:
        """The layers of a transformers `Cache` among some arguments that are this stand-in's; none without one."""
        caches = [value for value in arguments if hasattr(value, "update") and not isinstance(value, Mapping)]
        found = next((value for value in caches if isinstance(value, Cache)), None)
        if found is None and caches and self.remembers:  # of continuous batching, say
            name = type(caches[0]).__name__
            raise RuntimeError(f"expected a Cache of transformers for a stand-in's state, got {name}")
        return [] if found is None else [layer_beside(found, index, self.records_past) for index in self.cache_layers]

    def _state_in(self, layers: Sequence[Any]) -> KeptState | None:
        """What is kept in layers of a cache; None without any."""
        kept: KeptState | None = layers[0].kept_state(self.role) if layers else None
        if kept and kept.lost and self.remembers:
            raise RuntimeError(
                "expected a cache that goes on, got one that tokens were taken back from, which a stand-in's state "
                "does not allow unless activate_past_recording() was called; try to start with a new cache"
            )
        return kept

    def _noted(self, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Which of the last tokens are real and which begin a document, for ``like``, ``[rows, tokens, ...]``."""
        noted = (self.padding.of_last(like.shape[1]), self.padding.starts_of_last(like.shape[1]))
        real, starts = (None if each is None else each.to(like.device).expand(len(like), -1) for each in noted)
        return real, starts

    def _positions(self, like: Tensor, past: int) -> Tensor:
        """Positions ``[rows, tokens]`` int64 of the last tokens, for ``like``, ``[rows, tokens, ...]``, after some."""
        noted, shape = self.padding.positions, like.shape[:2]
        if isinstance(noted, Tensor) and noted.ndim == 2 and noted.shape[1] == shape[1]:
            return noted.to(like.device).expand(shape)
        return (torch.arange(shape[1], device=like.device) + past).expand(shape)


def one_or_all(indices: Sequence[int]) -> int | list[int] | None:
    """Layers of a cache as a configuration has them."""
    return None if not indices else indices[0] if len(indices) == 1 else [*indices]


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that a module has for them."""
    return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}


def watch_padding(model: nn.Module, stack: str, padding: PaddingMask) -> RemovableHandle:
    """Have the decoder, the parent of the block stack at a dotted path, note its attention mask."""
    return model.get_submodule(stack.rpartition(".")[0]).register_forward_pre_hook(padding, with_kwargs=True)
