"""What a decoder says comes next: for whole rows at once, or step by step with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.capture import device_of

# What decoders call the cache that they return and take back: most of them, Mamba's family, RWKV.
_CACHES = ("past_key_values", "cache_params", "state")


def row_logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits ``[rows, seq_len, vocabulary]`` of token ids ``[rows, seq_len]``.

    Without gradients and without a cache; on the device and in the dtype that the model gives them.

    Raises:
        RequestError: the model gives no such logits.
    """
    with torch.no_grad():
        output = model(ids.to(device_of(model)), **_taken(model, use_cache=False))
    logits = _logits_of(model, output)
    if logits.shape[:-1] != ids.shape:
        raise RequestError(f"expected logits {[*ids.shape, 'vocabulary']}, got {[*logits.shape]}")
    return logits


def next_logits(model: nn.Module, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """Logits ``[rows, vocabulary]`` after token ids ``[rows, seq_len]`` that follow those in a cache.

    Without gradients. Logits of earlier tokens are not computed where the model can leave them out.

    Returns:
        The logits and the cache that holds these ids too, which may be the one that was given; None
        where the model gives none.

    Raises:
        RequestError: the model gives no logits.
    """
    options = _taken(model, use_cache=True, logits_to_keep=1)
    if cache is not None:
        options |= _taken(model, **dict.fromkeys(_CACHES, cache))
    with torch.no_grad():
        output = model(ids.to(device_of(model)), **options)
    caches = (getattr(output, name, None) for name in _CACHES)
    return _logits_of(model, output)[:, -1], next((found for found in caches if found is not None), None)


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache keeps in memory: of every tensor its layers hold, shared memory once.

    A tensor that is a view counts with all the memory that it keeps alive.
    """
    held = [vars(layer) for layer in cache.layers] if hasattr(cache, "layers") else cache
    storages = (tensor.untyped_storage() for tensor in _tensors_in(held))
    return sum({(storage.device, storage.data_ptr()): storage.nbytes() for storage in storages}.values())


def _taken(model: nn.Module, **options: Any) -> dict[str, Any]:
    """Those of some keyword arguments that the model has parameters for."""
    parameters = signature(model.forward).parameters
    return {name: value for name, value in options.items() if name in parameters}


def _logits_of(model: nn.Module, output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise RequestError(
            f"expected a causal language model, which returns .logits, got {type(model).__name__}, "
            f"which returns {type(output).__name__}"
        )
    return logits


def _tensors_in(held: Any) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, (Mapping, list, tuple)):
        for part in held.values() if isinstance(held, Mapping) else held:
            yield from _tensors_in(part)
