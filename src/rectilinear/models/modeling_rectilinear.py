"""Linear stand-ins for decoder blocks, attentions and MLPs, and the decoders that hold them.

This file and `causal_filter` travel, byte for byte, with every checkpoint that holds stand-ins, so they import torch
and transformers only. The classes that such a checkpoint names, ``RectilinearLlamaForCausalLM`` and
``RectilinearLlamaConfig`` say, are made from transformers' own when they are asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache, DynamicLayer

from .causal_filter import CausalFilter, FilterCache, State


class PaddingMask:
    """A forward pre-hook of the decoder that notes for its stand-ins which tokens are real and which of a document."""

    def __init__(self) -> None:
        self.mask = self.positions = self.lengths = None  # type: Any

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the attention mask, positions and lengths of documents of this forward pass."""
        if len(args) > 1:
            kwargs = {**kwargs, **inspect.signature(module.forward).bind_partial(*args).arguments}
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


class LinearBlock(nn.Module):
    """A linear map of a `CausalFilter`'s features, in place of a block or of a part of one.

    Args:
        width: of the hidden states.
        kind: ``drop`` (an update of zero), ``mean`` (a constant), ``affine`` or ``filter``.
        residual: whether the map is an update that is added to the input, as in a whole block.
        outputs: length of the tuple that is returned; 0 for the bare hidden states.
        cache_index: which layer of the cache keeps the filter's state; None for a part without cache.
        present, taps, rates: see `CausalFilter`.
        rank: of the map; None for full rank.
        padding: where the attention mask is to be had.
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str,
        residual: bool,
        outputs: int = 0,
        cache_index: int | None = None,
        rank: int | None = None,
        padding: PaddingMask | None = None,
        **options: Any,
    ) -> None:
        # By name: a subclass also has the class of what it stands for among its bases.
        nn.Module.__init__(self)
        self.kind, self.residual, self.outputs, self.rank = kind, residual, outputs, rank
        self.layer_idx, self.records_past = cache_index, False
        self.padding = padding or PaddingMask()
        self.filter = CausalFilter(width, **options)
        size, layers = self.filter.size, list[nn.Module]()
        if kind == "mean":
            layers = [Constant(width)]
        elif kind != "drop":
            layers = [nn.Linear(size, rank, bias=False), nn.Linear(rank, width)] if rank else [nn.Linear(size, width)]
        self.map = nn.Sequential(*layers) if layers else None

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        own = {name: getattr(self, name) for name in ("kind", "residual", "outputs", "rank")}
        features = {name: getattr(self.filter, name) for name in ("width", "present", "taps")}
        return {**features, **own, "cache_index": self.layer_idx, "rates": list(self.filter.rates)}

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``[rows, tokens, width]`` to the same shape, in the form that the replaced module returned it.

        A transformers `Cache` among the arguments keeps the state between calls.
        """
        layer = self._cache_layer([*args, *kwargs.values()])
        tokens, state = hidden_states.shape[-2], layer.state if layer else None
        rewind: Callable[[int], State | None] = lambda kept: None  # noqa: E731
        if self.map is None:
            update = torch.zeros_like(hidden_states)
        else:
            x = hidden_states.reshape(-1, tokens, self.filter.width)
            noted = (self.padding.of_last(tokens), self.padding.starts_of_last(tokens))
            real, starts = (None if each is None else each.to(x.device).expand(len(x), -1) for each in noted)
            rewind, parts = partial(self.filter.state_within, x, real, state, starts), []
            for features, after in self.filter.stream(x, real, state, starts):
                parts.append(self.map(features))
                state = after
            update = torch.cat(parts, 1).view_as(hidden_states)
        if layer:
            layer.advance(state, tokens, rewind)
        output = hidden_states + update if self.residual else update
        return (output, *[None] * (self.outputs - 1)) if self.outputs else output

    def _cache_layer(self, arguments: list[Any]) -> FilterCache | None:
        caches = [value for value in arguments if hasattr(value, "update") and not isinstance(value, Mapping)]
        kept = next((value for value in caches if isinstance(value, Cache)), None)
        if kept is None and caches and self.filter.remembers:  # of continuous batching, say
            name = type(caches[0]).__name__
            raise RuntimeError(f"expected a Cache of transformers for a filter's state, got {name}")
        if kept is None or self.layer_idx is None:
            return None
        while len(kept.layers) <= self.layer_idx:
            kept.layers.append((kept.layer_class_to_replicate or DynamicLayer)())
        layer = kept.layers[self.layer_idx]
        if layer.is_compileable:
            # Masks for keys of a fixed number would be taken for masks of the tokens so far.
            raise RuntimeError("expected a cache that grows, got a static one; try the default cache_implementation")
        if not isinstance(layer, FilterCache):
            layer = kept.layers[self.layer_idx] = FilterCache()
            layer.record_past = self.records_past
        if layer.lost and self.filter.remembers:
            raise RuntimeError(
                "expected a cache that goes on, got one that tokens were taken back from, which a filter's state does "
                "not allow unless activate_past_recording() was called; try to start with a new cache"
            )
        return layer


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
    """A `LinearBlock` like the module it is to replace: on its device, in its precision, of its class.

    Some models read a block's attributes, so that these are its own too.
    """
    # Its matrices, that is: norms may be kept in a finer precision.
    like = next((p for p in old.parameters() if p.ndim > 1 and p.is_floating_point()), torch.empty(0))
    replaced: Any = type(old)
    kind = replaced if isinstance(old, LinearBlock) else stand_in_class(replaced)
    with torch.device(like.device):
        new: LinearBlock = kind(**options, padding=padding)
    for key, value in vars(old).items():
        if isinstance(value, (str, int, float)) and not hasattr(new, key):
            setattr(new, key, value)
    return new.to(like.dtype).train(old.training)


def watch_padding(model: nn.Module, stack: str, padding: PaddingMask) -> RemovableHandle:
    """Have the decoder, the parent of the block stack at a dotted path, note its attention mask."""
    return model.get_submodule(stack.rpartition(".")[0]).register_forward_pre_hook(padding, with_kwargs=True)


class FilterGenerationMixin:
    """A decoder whose configuration says where its stand-ins are, and which ways of generating these allow."""

    # As the main model of assisted generation it would have to take tokens back at every step.
    _is_stateful = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        parent: Any = super()
        parent.__init__(config, *args, **kwargs)
        model: Any = self
        padding = PaddingMask()
        watch_padding(model, config.rectilinear["stack"], padding)
        for options in config.rectilinear["blocks"]:
            options = dict(options)
            path = options.pop("path")
            new = stand_in(model.get_submodule(path), padding, **options)
            model.set_submodule(path, new)
            model._no_split_modules.add(type(new).__name__)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; what writes drafts for another model keeps what it takes to take tokens back."""
        drafts = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
        for block in self._stand_ins():
            block.records_past = drafts
        parent: Any = super()
        return parent.generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it, unless there are filters: they keep a state, for which paged caches have no place.

        Raises:
            RuntimeError: there are.
        """
        if any(block.filter.remembers for block in self._stand_ins()):
            raise RuntimeError("expected a model without filters for continuous batching, got one; try generate()")
        parent: Any = super()
        return parent.init_continuous_batching(*args, **kwargs)

    def _stand_ins(self) -> Iterator[LinearBlock]:
        model: Any = self
        return (module for module in model.modules() if isinstance(module, LinearBlock))


@cache
def linearized_config(stock: Any) -> Any:
    """The configuration class of a decoder with stand-ins, given transformers' class of the stock one.

    Its ``model_type`` is its own, so that nothing loads such a checkpoint as the stock architecture, with weights left
    out.
    """
    made: Any = type(f"Rectilinear{stock.__name__}", (stock,), {"model_type": f"rectilinear_{stock.model_type}"})
    made.register_for_auto_class()
    return made


@cache
def linearized_model(stock: Any, stock_config: Any) -> Any:
    """The class of a decoder with stand-ins, given transformers' classes of the stock one and of its configuration."""
    # Some configurations, Exaone's say, share the model class of others.
    other = "" if stock.config_class is stock_config else f"__{stock_config.__name__}"
    attributes = {"config_class": linearized_config(stock_config)}
    made: Any = type(f"Rectilinear{stock.__name__}{other}", (FilterGenerationMixin, stock), attributes)
    made.register_for_auto_class("AutoModelForCausalLM")
    return made


def __getattr__(name: str) -> Any:
    """A class that a checkpoint or a pickle names, made from transformers' class whose name is in it."""
    stock, _, stock_config = name.removeprefix("Rectilinear").partition("__")
    if not name.startswith("Rectilinear") or not hasattr(transformers, stock):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: Any = getattr(transformers, stock)
    if issubclass(found, transformers.PretrainedConfig):
        return linearized_config(found)
    return linearized_model(found, getattr(transformers, stock_config) if stock_config else found.config_class)
