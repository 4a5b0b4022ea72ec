"""What a decoder says comes next: for whole rows at once, or step by step with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from rectilinear.errors import JobError, RequestError, broken_promise
from rectilinear.models.running import device_of, evaluating, naming_the_model


@dataclass(frozen=True, eq=False)
class DecodingCache:
    """What a decoder returned to be continued from, and the tokens of each row that it stands for.

    `name` is that of the output's field and of the parameter that takes it back; `value` is a `transformers.Cache`, or
    whatever else the model makes, and steps may change it in place.
    """

    name: str
    value: Any
    tokens: int

    @property
    def counted(self) -> int | None:
        """How many tokens of each row it says that it holds; None where it does not count them."""
        if not isinstance(self.value, Cache) or not self.value.layers:
            return None
        try:
            return int(self.value.get_seq_length())
        except ValueError:  # transformers' answer where no layer is an attention
            return None


def row_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits ``[rows, seq_len, vocabulary]`` of token ids ``[rows, seq_len]``.

    Without gradients and without a cache; on the device and in the dtype that the model gives them.

    Raises:
        RequestError: the model gives no such logits.
    """
    logits, _ = _forward(model, ids, _taken(model, use_cache=False))
    if logits.shape[:-1] != ids.shape:
        raise RequestError(f"expected logits {[*ids.shape, 'vocabulary']}, got {[*logits.shape]}")
    return logits


def check_decoder(model: nn.Module, ids: Tensor, name: str = "") -> None:
    """Refuse a model whose tokens see those after them, as an encoder's do, so that its losses say nothing.

    It is run on the first tokens of ``ids`` ``[rows, seq_len]``, and on the same with another last one. A model that
    does not run on so few passes.

    Raises:
        RequestError: the logits of all tokens before that one change with it, or it gives none.
    """
    one = ids[:1, :8].to(device_of(model))
    other = one.clone()
    other[:, -1] = torch.where(one[:, -1] > 0, one[:, -1] - 1, 1)
    try:
        with evaluating(model):
            logits = row_logits(model, torch.cat([one, other]))[:, :-1].float()
    except JobError:
        return
    moved = (logits[0] - logits[1]).abs().amax(-1)
    if len(moved) and (moved > 1e-3 * logits.abs().max()).all():
        raise RequestError(
            f"expected a decoder, got {name or type(model).__name__}, whose tokens see those after them, and so what "
            "they are to predict; such a model can be measured, not evaluated or linearized"
        )


def next_logits(
    model: nn.Module, ids: Tensor, cache: DecodingCache | None = None
) -> tuple[Tensor, DecodingCache | None]:
    """Logits ``[rows, vocabulary]`` after token ids ``[rows, seq_len]`` that follow those in a cache.

    Without gradients. Logits of earlier tokens are not computed where the model can leave them out.

    Returns:
        The logits and the cache that holds these ids too, which may be the one that was given; None
        where the model has none to give.

    Raises:
        RequestError: the model gives no logits.
        JobError: it has a cache, but returns none, takes none back, or does not keep all tokens in it.
    """
    kind, options = type(model).__name__, _taken(model, use_cache=True, logits_to_keep=1)
    logits, output = _forward(model, ids, options | ({cache.name: cache.value} if cache else {}))
    if "logits_to_keep" in options and logits.shape[1] != 1:
        raise broken_promise("transformers", f"have {kind} compute the logits of one token where `logits_to_keep=1`")
    tokens = ids.shape[1] + (cache.tokens if cache else 0)
    after = _cache_of(model, output, tokens)
    if after is None and (cache or "use_cache" in options):
        raise broken_promise("transformers", f"have {kind} return its cache where `use_cache=True`")
    if after and after.counted not in (None, tokens):
        raise broken_promise("transformers", f"have {tokens} tokens in the cache of {kind}, not {after.counted}")
    return logits[:, -1], after


def check_continued(model: nn.Module, ids: Tensor, logits: Tensor, cache: DecodingCache | None) -> None:
    """Raise `JobError` for a step from a cache that cannot count its tokens, if the cache made no difference.

    That is, if the logits ``[rows, vocabulary]`` that a model gave for ids ``[rows, 1]`` and the cache are those after
    the ids alone.
    """
    if cache and cache.counted is None and torch.equal(next_logits(model, ids)[0], logits):
        kind = type(model).__name__
        raise broken_promise("transformers", f"have {kind} go on from what it returned as {cache.name!r}")


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache keeps in memory: of every tensor its layers hold, shared memory once.

    A tensor that is a view counts with all the memory that it keeps alive.
    """
    cache = cache.value if isinstance(cache, DecodingCache) else cache
    held = [vars(layer) for layer in cache.layers] if hasattr(cache, "layers") else cache
    storages = (tensor.untyped_storage() for tensor in tensors_in(held))
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def cache_bytes_of_layers(model: nn.Module, ids: Tensor) -> list[int] | None:
    """Bytes that each layer of the cache keeps of token ids ``[1, seq_len]``; None without layers of a `Cache`."""
    _, cache = next_logits(model, ids)
    if cache is None or not isinstance(cache.value, Cache):
        return None
    return [sum(each.numel() * each.itemsize for each in tensors_in(vars(layer))) for layer in cache.value.layers]


def _taken(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of some keyword arguments that the model has parameters for, or that its configuration has defaults for."""
    named, config = signature(model.forward).parameters, getattr(model, "config", None)
    known = [name for name in options if name in named or (_takes_any(named) and hasattr(config, name))]
    return {name: options[name] for name in known}


def _takes_any(parameters: Mapping[str, Parameter]) -> bool:
    return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())


def _forward(model: nn.Module, ids: Tensor, options: dict[str, Any]) -> tuple[Tensor, Any]:
    """Logits of a forward pass without gradients, and all that it returns."""
    with torch.no_grad(), naming_the_model():
        output = model(ids.to(device_of(model)), **options)
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise RequestError(
            f"expected a causal language model, which returns .logits, got {type(model).__name__}, "
            f"which returns {type(output).__name__}"
        )
    return logits, output


def _cache_of(model: nn.Module, output: Any, tokens: int) -> DecodingCache | None:
    """The output's field that is a `Cache`; else one that is no tensor and that the model takes back by its name."""
    named = signature(model.forward).parameters
    fields = dict(output) if isinstance(output, Mapping) else vars(output)
    caches = [name for name, value in fields.items() if isinstance(value, Cache)]
    others = [name for name in fields if name in named and not isinstance(fields[name], (Tensor, NoneType))]
    for name in caches or others:
        if name in named or _takes_any(named):
            return DecodingCache(name, fields[name], tokens)
        raise JobError(f"expected {type(model).__name__} to take back the cache that it returns as {name!r}")
    return None


def tensors_in(held: Any) -> Iterator[Tensor]:
    """All tensors in what a cache or one of its layers keeps."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (Mapping, list, tuple)):
        for part in held.values() if isinstance(held, Mapping) else held:
            yield from tensors_in(part)
    elif hasattr(held, "__dict__") and not callable(held):  # what stand-ins remember
        yield from tensors_in(vars(held))
