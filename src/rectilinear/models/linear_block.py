"""Linear stand-ins for decoder blocks, attentions and MLPs.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from .causal_filter import CausalFilter, State
from .filter_cache import count_tokens, layer_beside


class PaddingMask:
    """A forward pre-hook of the decoder that notes for its stand-ins which tokens are real and which of a document."""

    def __init__(self) -> None:
        self.mask = self.positions = self.lengths = None  # type: Any

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention mask, positions and lengths of documents of this forward pass."""
        if len(args) > 1:
            kwargs = named_arguments(module, args, kwargs)
        names = ("attention_mask", "position_ids", "cu_seq_lens_q")
        self.mask, self.positions, self.lengths = (kwargs.get(name) for name in names)

    def of_last(self, tokens: int) -> Tensor | None:
        """``[rows, tokens]`` bool, true where one of the last tokens is real; None where all are."""
        mask = self._mask()
        if mask is not None and mask.ndim == 4:  # a token sees itself unless it is padding
            mask = mask[:, 0].diagonal(mask.shape[-1] - mask.shape[-2], -2, -1)
        return None if mask is None else mask[:, -tokens:]

    def starts_of_last(self, tokens: int) -> Tensor | None:
        """``[rows, tokens]`` bool, true where one of the last tokens begins a document in a row of several.

        Documents in one row are told apart by a mask ``[rows, 1, queries, keys]`` or, where there is no mask, by
        positions that do not go on or by lengths that were summed up, as transformers' own attentions tell them.
        None where every row is one document.
        """
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


class Constant(nn.Module):
    """The same vector ``bias`` for every token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """``[rows, tokens, features]`` to ``[rows, tokens, width]``."""
        return self.bias.expand(*features.shape[:-1], -1)


class Entry(nn.Module):
    """Where the input of a stand-in comes from, in place of the first module of a part of several: it keeps what comes.

    What it gives, zeros ``[..., width]`` without any memory, goes through all that is left of the part.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.taken: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., width of the stream]`` to zeros ``[..., width]``."""
        self.taken = hidden_states
        return hidden_states.new_zeros(1).expand(*hidden_states.shape[:-1], self.width)


class LinearBlock(nn.Module):
    """A linear map of a `CausalFilter`'s features, in place of a block or of a part of one.

    Args:
        width: of the hidden states.
        kind: ``drop`` (an update of zero), ``mean`` (a constant), ``affine`` or ``filter``.
        residual: whether the map is an update that is added to the input, as in a whole block.
        outputs: how many values are returned; 0 for the bare hidden states.
        listed: whether these are in a list, not a tuple.
        passes: the arguments that further values are handed on from, by the places of these; the others are None.
        adds: the argument that is added to the output, where a part adds the residual stream itself.
        cache_index: the layer of the cache that keeps the filter's state, or those that the replaced module had, of
            which the first does; None for a part without cache.
        role: what the replaced module kept there: ``attention`` keys and values, ``recurrent`` a state, or ``both``.
        present, taps, rates: see `CausalFilter`.
        rank: of the map; None for full rank.
        entry: where the input comes from, where that is another module than this.
        padding: where the attention mask is to be had.
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str,
        residual: bool,
        outputs: int = 0,
        cache_index: int | Sequence[int] | None = None,
        rank: int | None = None,
        padding: PaddingMask | None = None,
        **options: Any,
    ) -> None:
        # By name: a subclass also has the class of what it stands for among its bases.
        nn.Module.__init__(self)
        self.kind, self.residual, self.outputs, self.rank = kind, residual, outputs, rank
        self.cache_layers = (cache_index,) if isinstance(cache_index, int) else tuple(cache_index or ())
        self.records_past = False
        self.role, self.listed = options.pop("role", "both"), options.pop("listed", False)
        self.adds, self.passes = options.pop("adds", None), dict(options.pop("passes", {}))
        # Not as a child: it has a place of its own in the model.
        vars(self)["entry"] = options.pop("entry", None)
        self.padding = padding or PaddingMask()
        self.filter = CausalFilter(width, **options)
        size, layers = self.filter.size, list[nn.Module]()
        if kind == "mean":
            layers = [Constant(width)]
        elif kind != "drop":
            layers = [nn.Linear(size, rank, bias=False), nn.Linear(rank, width)] if rank else [nn.Linear(size, width)]
        self.map = nn.Sequential(*layers) if layers else None

    def __getattr__(self, name: str) -> Any:
        """What is read from the replaced module by others: its structure is kept, on the ``meta`` device."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if (skeleton := vars(self).get("skeleton")) is None:
                raise
            return getattr(skeleton, name)

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        own = {name: getattr(self, name) for name in ("kind", "residual", "outputs", "rank")}
        features = {name: getattr(self.filter, name) for name in ("width", "present", "taps")}
        unusual = {"role": "both", "listed": False, "adds": None, "passes": {}}
        told = {name: getattr(self, name) for name, usual in unusual.items() if getattr(self, name) != usual}
        return {
            **features,
            **own,
            "cache_index": _one_or_all(self.cache_layers),
            "rates": list(self.filter.rates),
            **told,
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``[rows, tokens, ...]`` to the same shape, in the form that the replaced module returned it.

        The hidden states are the first argument, or the one of that name. A transformers `Cache` among the arguments
        keeps the state between calls.
        """
        hidden = self._entered() if self.entry else cast(Tensor, hidden_argument(args, kwargs))
        x = as_rows(hidden)
        layers = self._in_cache([*args, *kwargs.values()])
        kept = layers[0].filter_state(self.role) if layers else None
        if kept and kept.lost and self.filter.remembers:
            raise RuntimeError(
                "expected a cache that goes on, got one that tokens were taken back from, which a filter's state does "
                "not allow unless activate_past_recording() was called; try to start with a new cache"
            )
        update, state, rewind = self._update(x, kept.state if kept else None)
        if kept:
            for layer in layers:
                count_tokens(layer, self.role, x)
            kept.advance(state, x.shape[1], rewind)
        update = update.view_as(hidden)
        output = hidden + update if self.residual else update
        if self.adds is not None:
            output = output + named_arguments(self.skeleton, args, kwargs)[self.adds]
        if not self.outputs:
            return output
        values = [output, *(self._passed(str(place), args, kwargs) for place in range(1, self.outputs))]
        return values if self.listed else tuple(values)

    def _entered(self) -> Tensor:
        hidden: Tensor = self.entry.taken
        self.entry.taken = None
        return hidden

    def _update(self, x: Tensor, state: State | None) -> tuple[Tensor, State | None, Callable[[int], State | None]]:
        """The map of ``[rows, tokens, width]``, the filter's state after it, and what goes back within it."""
        if self.map is None:
            return torch.zeros_like(x), None, lambda kept: None
        if not self.filter.remembers:
            return self.map(x), None, lambda kept: None
        noted = (self.padding.of_last(x.shape[1]), self.padding.starts_of_last(x.shape[1]))
        real, starts = (None if each is None else each.to(x.device).expand(len(x), -1) for each in noted)
        rewind, parts = partial(self.filter.state_within, x, real, state, starts), []
        for features, after in self.filter.stream(x, real, state, starts):
            parts.append(self.map(features))
            state = after
        return torch.cat(parts, 1), state, rewind

    def _passed(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return named_arguments(self.skeleton, args, kwargs)[self.passes[place]] if place in self.passes else None

    def _in_cache(self, arguments: list[Any]) -> list[Any]:
        caches = [value for value in arguments if hasattr(value, "update") and not isinstance(value, Mapping)]
        found = next((value for value in caches if isinstance(value, Cache)), None)
        if found is None and caches and self.filter.remembers:  # of continuous batching, say
            name = type(caches[0]).__name__
            raise RuntimeError(f"expected a Cache of transformers for a filter's state, got {name}")
        return [] if found is None else [layer_beside(found, index, self.records_past) for index in self.cache_layers]


def _one_or_all(indices: Sequence[int]) -> int | list[int] | None:
    return None if not indices else indices[0] if len(indices) == 1 else [*indices]


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states among a module's arguments: the first, or the one of that name, or the first of any."""
    given = (*args[:1], kwargs.get("hidden_states"), *kwargs.values(), *args[1:])
    return next((each for each in given if isinstance(each, Tensor) and each.is_floating_point()), None)


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the names that a module has for them."""
    return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}


def as_rows(hidden: Tensor) -> Tensor:
    """Hidden states ``[rows, tokens, ...]`` as ``[rows, tokens, width]``; ``[tokens, width]`` as one row.

    Several residual streams are one vector.
    """
    return hidden.flatten(2) if hidden.ndim > 2 else hidden[None]


def _blank(replaced: Any) -> Any:
    """A stand-in without attributes yet: what a pickle of one begins with."""
    made = stand_in_class(replaced)
    return made.__new__(made)


@cache
def stand_in_class(replaced: Any) -> type[LinearBlock]:
    """`LinearBlock` as a kind of the class that it stands for.

    Transformers tells blocks by their class when it records hidden states or checkpoints gradients.
    """

    def __reduce__(self: LinearBlock) -> Any:
        return _blank, (replaced,), vars(self)

    return type(f"Linear{replaced.__name__}", (LinearBlock, replaced), {"__reduce__": __reduce__})


def stand_in(old: nn.Module, padding: PaddingMask, **options: Any) -> LinearBlock:
    """A `LinearBlock` like the module it is to replace: on its device, in its precision, of its class."""
    # Its matrices, that is: norms may be kept in a finer precision.
    like = next((p for p in old.parameters() if p.ndim > 1 and p.is_floating_point()), torch.empty(0))
    replaced: Any = type(old)
    kind = replaced if isinstance(old, LinearBlock) else stand_in_class(replaced)
    with torch.device(like.device):
        new: LinearBlock = kind(**options, padding=padding)
    vars(new)["skeleton"] = vars(old).get("skeleton") or _without_weights(old)
    return new.to(like.dtype).train(old.training)


def _without_weights(module: nn.Module) -> nn.Module:
    """A copy of a module whose tensors are on the ``meta`` device."""
    bare: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in module.buffers()}
    for tensor in module.parameters():
        bare[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), requires_grad=False)
    copied: nn.Module = copy.deepcopy(module, bare)
    return copied


def watch_padding(model: nn.Module, stack: str, padding: PaddingMask) -> RemovableHandle:
    """Have the decoder, the parent of the block stack at a dotted path, note its attention mask."""
    return model.get_submodule(stack.rpartition(".")[0]).register_forward_pre_hook(padding, with_kwargs=True)
