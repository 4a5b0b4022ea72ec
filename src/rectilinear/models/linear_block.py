"""Linear stand-ins for decoder blocks, attentions and MLPs, with cached decoding in constant memory.

This file travels with every checkpoint that holds such stand-ins, so it imports torch and
transformers only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

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
        sum_s u^(t-s) r_s / sum_s u^(t-s)   over the tokens s <= t of the sequence,

    so that rate 1 is the running mean.
    """

    def __init__(self, width: int, *, present: bool = False, taps: int = 0, rates: Sequence[float] = ()) -> None:
        super().__init__()
        self.width, self.present, self.taps, self.rates = width, present, taps, tuple(rates)

    @property
    def size(self) -> int:
        """Number of features."""
        return self.width * (1 + self.present + self.taps + len(self.rates))

    def start(self, x: Tensor) -> State:
        """The state before the first token of ``x``, ``[rows, tokens, width]``."""
        rows, rates, finer = len(x), len(self.rates), torch.promote_types(x.dtype, torch.float32)
        return State(
            x.new_zeros(rows, self.taps, self.width),
            x.new_zeros(rates, rows, self.width, dtype=finer),
            x.new_zeros(rates, rows, dtype=finer),
        )

    def stream(
        self, x: Tensor, real: Tensor | None = None, state: State | None = None
    ) -> Iterator[tuple[Tensor, State]]:
        """Features ``[rows, chunk, size]`` of successive chunks of tokens, and the state after each.

        Args:
            x: ``[rows, tokens, width]``.
            real: ``[rows, tokens]`` bool, false for padding; None where nothing is.
            state: of the tokens before; None at the start of a sequence.
        """
        state = state or self.start(x)
        parts = torch.split(x, _CHUNK, 1)
        masks = (None,) * len(parts) if real is None else torch.split(real, _CHUNK, 1)
        for part, mask in zip(parts, masks, strict=True):
            features, state = self._step(part, mask, state)
            yield features, state

    def _step(self, x: Tensor, real: Tensor | None, state: State) -> tuple[Tensor, State]:
        tokens, finer = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        normalised = nn.functional.rms_norm(x.to(finer), (self.width,), eps=1e-6)
        ones = x.new_ones(x.shape[:2], dtype=finer)
        if real is not None:  # not a product: what stands at padding may be NaN
            normalised = torch.where(real[..., None], normalised, 0.0)
            ones = ones * real
        present = normalised.to(x.dtype)
        line = torch.cat([state.recent, present], 1)
        features = [x, *([present] if self.present else [])]
        features += [line[:, self.taps - tap : self.taps - tap + tokens] for tap in range(1, self.taps + 1)]
        sums, weights = state.sums, state.weights
        if self.rates:
            rates = torch.tensor(self.rates, dtype=finer, device=x.device)[:, None, None]
            age = torch.arange(tokens, device=x.device)
            past = rates[..., None] ** (age + 1)[:, None]
            decay = torch.where(age[:, None] >= age, rates ** (age[:, None] - age).clamp(min=0), 0.0)[:, None]
            running = decay @ normalised + past * sums[:, :, None]
            lengths = (decay @ ones[..., None] + past * weights[:, :, None, None]).squeeze(-1)
            means = running / lengths.clamp(min=1e-6)[..., None]
            features += [mean.to(x.dtype) for mean in means]
            sums, weights = running[:, :, -1], lengths[:, :, -1]
        # Copies: a view would keep the whole chunk in memory.
        return torch.cat(features, -1), State(line[:, tokens:].clone(), sums.clone(), weights.clone())


class FilterCache(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """A cache layer that holds a filter's `State` in place of keys and values."""

    is_sliding = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.is_initialized = True
        self.length = 0
        self.state: State | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: there are no keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse keys and values: no attention is left at this layer."""
        raise RuntimeError("expected no attention at this layer, got keys and values")

    def advance(self, state: State | None, tokens: int) -> None:
        """Take the state after some more tokens."""
        self.state = state
        self.length += tokens

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of keys, as full attention has them."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.length, self.state = 0, None

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

    def _each(self, change: Any) -> None:
        if self.state is not None:
            recent, sums, weights = self.state
            self.state = State(change(recent, 0), change(sums, 1), change(weights, 1))


class PaddingMask:
    """A forward pre-hook of the decoder that notes its attention mask, for the stand-ins inside it."""

    def __init__(self) -> None:
        self.mask: Any = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the mask of this forward pass."""
        self.mask = kwargs.get("attention_mask")
        if self.mask is None and len(args) > 1:
            bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
            self.mask = bound.arguments.get("attention_mask")

    def of_last(self, tokens: int) -> Tensor | None:
        """``[rows, tokens]`` bool, true where one of the last tokens is real; None where all are."""
        mask = self.mask
        if isinstance(mask, Mapping):  # a mask for each kind of attention: all hide the same padding
            mask = next(iter(mask.values()), None)
        if not isinstance(mask, Tensor):
            return None
        if mask.ndim == 4:  # a token sees itself unless it is padding
            seen = mask[:, 0].diagonal(mask.shape[-1] - mask.shape[-2], -2, -1)
            mask = seen if mask.dtype is torch.bool else seen == 0
        return mask[:, -tokens:].bool()


class LinearBlock(nn.Module):
    """A linear map of a `CausalFilter`'s features, in place of a block or of a part of one.

    Args:
        width: of the hidden states.
        kind: ``drop`` (an update of zero), ``affine`` or ``filter``.
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
        present: bool = False,
        taps: int = 0,
        rates: Sequence[float] = (),
        rank: int | None = None,
        padding: PaddingMask | None = None,
    ) -> None:
        # By name: a subclass also has the class of what it stands for among its bases.
        nn.Module.__init__(self)
        self.kind, self.residual, self.outputs, self.rank = kind, residual, outputs, rank
        self.layer_idx = cache_index
        self.padding = padding or PaddingMask()
        self.filter = CausalFilter(width, present=present, taps=taps, rates=rates)
        self.map: nn.Module | None = None
        if kind != "drop":
            size = self.filter.size
            factors = [nn.Linear(size, rank, bias=False), nn.Linear(rank, width)] if rank else [nn.Linear(size, width)]
            self.map = nn.Sequential(*factors)

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        return {
            "width": self.filter.width,
            "kind": self.kind,
            "residual": self.residual,
            "outputs": self.outputs,
            "cache_index": self.layer_idx,
            "present": self.filter.present,
            "taps": self.filter.taps,
            "rates": list(self.filter.rates),
            "rank": self.rank,
        }

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """``[rows, tokens, width]`` to the same shape, in the form that the replaced module returned it.

        A transformers `Cache` among the arguments keeps the state between calls.
        """
        layer = self._cache_layer([*args, *kwargs.values()])
        tokens = hidden_states.shape[-2]
        state, parts = layer.state if layer else None, []
        if self.map is not None:
            x = hidden_states.reshape(-1, tokens, self.filter.width)
            real = self.padding.of_last(tokens)
            for features, after in self.filter.stream(x, None if real is None else real.to(x.device), state):
                parts.append(self.map(features))
                state = after
        if layer:
            layer.advance(state, tokens)
        update = torch.cat(parts, 1).view_as(hidden_states) if parts else torch.zeros_like(hidden_states)
        output = hidden_states + update if self.residual else update
        return (output, *[None] * (self.outputs - 1)) if self.outputs else output

    def _cache_layer(self, arguments: list[Any]) -> FilterCache | None:
        cache = next((value for value in arguments if isinstance(value, Cache)), None)
        if cache is None or self.layer_idx is None:
            return None
        while len(cache.layers) <= self.layer_idx:
            cache.layers.append((cache.layer_class_to_replicate or DynamicLayer)())
        layer = cache.layers[self.layer_idx]
        if layer.is_compileable:
            # Masks for keys of a fixed number would be taken for masks of the tokens so far.
            raise RuntimeError("expected a cache that grows, got a static one; try the default cache_implementation")
        if not isinstance(layer, FilterCache):
            layer = cache.layers[self.layer_idx] = FilterCache()
        return layer


def _blank(make: Callable[..., Any], *bases: type) -> Any:
    """An instance, without attributes yet, of a class that is made of others: what a pickle of one begins with."""
    made = make(*bases)
    return made.__new__(made)


@cache
def stand_in_class(replaced: type[nn.Module]) -> type[LinearBlock]:
    """`LinearBlock` as a kind of the class that it stands for.

    Transformers tells blocks by their class when it records hidden states or checkpoints gradients.
    """

    def __reduce__(self: LinearBlock) -> Any:
        return _blank, (stand_in_class, replaced), vars(self)

    return type(f"Linear{replaced.__name__}", (LinearBlock, replaced), {"__reduce__": __reduce__})


def stand_in(old: nn.Module, padding: PaddingMask, **options: Any) -> LinearBlock:
    """A `LinearBlock` like the module it is to replace: on its device, in its precision, of its class.

    Some models read a block's attributes, so that these are its own too.
    """
    # Its matrices, that is: norms may be kept in a finer precision.
    like = next((p for p in old.parameters() if p.ndim > 1 and p.is_floating_point()), torch.empty(0))
    replaced: Any = type(old)
    kind = type(old) if isinstance(old, LinearBlock) else stand_in_class(replaced)
    with torch.device(like.device):
        new = kind(**options, padding=padding)
    for key, value in vars(old).items():
        if isinstance(value, (str, int, float)) and not hasattr(new, key):
            setattr(new, key, value)
    return new.to(like.dtype).train(old.training)


def watch_padding(model: nn.Module, stack: str, padding: PaddingMask) -> RemovableHandle:
    """Have the decoder, the parent of the block stack at a dotted path, note its attention mask."""
    return model.get_submodule(stack.rpartition(".")[0]).register_forward_pre_hook(padding, with_kwargs=True)


@cache
def linearized_config(stock: Any) -> Any:
    """The configuration class of a decoder with stand-ins, given transformers' class of the stock one.

    Its ``model_type`` is its own, so that nothing loads such a checkpoint as the stock
    architecture, with weights left out.
    """

    class RectilinearConfig(stock):  # type: ignore[misc]
        model_type = f"rectilinear_{stock.model_type}"

        def __reduce__(self) -> Any:
            return _blank, (linearized_config, stock), vars(self)

    return RectilinearConfig


@cache
def linearized_model(stock: Any, stock_config: Any) -> Any:
    """The class of a decoder with stand-ins, given transformers' classes of the stock one and of its configuration."""

    class RectilinearForCausalLM(stock):  # type: ignore[misc]
        config_class = linearized_config(stock_config)
        # A filter cannot take tokens back, as assisted generation would have it.
        _is_stateful = True

        def __reduce__(self) -> Any:
            return _blank, (linearized_model, stock, stock_config), vars(self)

        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            padding = PaddingMask()
            watch_padding(self, config.rectilinear["stack"], padding)
            for options in config.rectilinear["blocks"]:
                path = options["path"]
                options = {name: value for name, value in options.items() if name != "path"}
                new = stand_in(self.get_submodule(path), padding, **options)
                self.set_submodule(path, new)
                self._no_split_modules.add(type(new).__name__)

    return RectilinearForCausalLM
