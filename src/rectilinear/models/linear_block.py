"""Linear stand-ins for decoder blocks, attentions and MLPs.

This file travels with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from .causal_filter import CausalFilter, State
from .stand_in_cache import count_tokens
from .stand_ins import PaddingMask, StandIn, named_arguments, one_or_all


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


class LinearBlock(StandIn, nn.Module):
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

    @property
    def remembers(self) -> bool:
        """Whether its filter does."""
        return self.filter.remembers

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        own = {name: getattr(self, name) for name in ("kind", "residual", "outputs", "rank")}
        features = {name: getattr(self.filter, name) for name in ("width", "present", "taps")}
        unusual = {"role": "both", "listed": False, "adds": None, "passes": {}}
        told = {name: getattr(self, name) for name, usual in unusual.items() if getattr(self, name) != usual}
        return {
            **features,
            **own,
            "cache_index": one_or_all(self.cache_layers),
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
        layers = self._layers_in([*args, *kwargs.values()])
        kept = self._state_in(layers)
        update, state, rewind = self._update(x, cast(Any, kept.state) if kept else None)
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
        real, starts = self._noted(x)
        rewind, parts = partial(self.filter.state_within, x, real, state, starts), []
        for features, after in self.filter.stream(x, real, state, starts):
            parts.append(self.map(features))
            state = after
        return torch.cat(parts, 1), state, rewind

    def _passed(self, place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return named_arguments(self.skeleton, args, kwargs)[self.passes[place]] if place in self.passes else None


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The hidden states among a module's arguments: the first, or the one of that name, or the first of any."""
    given = (*args[:1], kwargs.get("hidden_states"), *kwargs.values(), *args[1:])
    return next((each for each in given if isinstance(each, Tensor) and each.is_floating_point()), None)


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
