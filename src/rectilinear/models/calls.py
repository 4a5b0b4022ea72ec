"""What the modules of a block are called with, what they return, and what they keep in a cache, in one pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from rectilinear.models.capture import first_value
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.linear_block import hidden_argument
from rectilinear.models.running import hooked, hooked_before, may_cache, run
from rectilinear.models.stand_ins import StandIn, named_arguments


class Call:
    """What a module was called with, and what it returned: both, and copies of its hidden states as they were then."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs, self.output = args, kwargs, None  # type: tuple[Any, ...], dict[str, Any], Any
        self.given = hidden_argument(args, kwargs)
        self.x = None if self.given is None else self.given.clone()
        self.y: Any = None

    def returned(self, output: Any) -> None:
        """Note what the module returned."""
        self.output, y = output, first_value(output)
        self.y = y.clone() if isinstance(y, Tensor) else y

    @property
    def values(self) -> list[Any]:
        """All that the module returned."""
        if isinstance(self.output, Mapping):
            return [*self.output.values()]
        return [*self.output] if isinstance(self.output, (tuple, list)) else [self.output]

    def named(self, module: nn.Module) -> dict[str, Any]:
        """Arguments by the names that the module has for them."""
        return named_arguments(module, self.args, self.kwargs)

    def again(self, module: nn.Module, changes: Mapping[str, Any] = MappingProxyType({})) -> Any:
        """What the module gives for the same arguments but some, by their names."""

        def anew(name: str, value: Any) -> Any:
            if name in changes:
                return changes[name]
            return self.x.clone() if self.x is not None and value is self.given else value

        names = [*inspect.signature(module.forward).bind_partial(*self.args).arguments]
        args = [anew(name, value) for name, value in zip(names, self.args, strict=False)]
        args += self.args[len(args) :]
        return first_value(module(*args, **{name: anew(name, value) for name, value in self.kwargs.items()}))


def record_calls(model: nn.Module, stack: BlockStack, ids: Tensor) -> dict[nn.Module, list[Call]]:
    """The calls of all modules of blocks in one pass, in the order in which they began."""
    calls: dict[nn.Module, list[Call]] = {}
    open_calls: list[Call] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        open_calls.append(Call(args, kwargs))
        calls.setdefault(module, []).append(open_calls[-1])

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        open_calls.pop().returned(output)

    modules = [module for block in stack for module in block.modules()]
    with hooked(modules, after), hooked_before(modules, before):
        run(model, ids)
    return calls


#: What a module keeps in which layers of a cache.
Kept = set[tuple[str, int]]


def record_kept(model: nn.Module, stack: BlockStack, ids: Tensor) -> dict[nn.Module, Kept] | None:
    """What modules keep in transformers' cache; None where the model keeps things elsewhere as it decodes."""
    if not may_cache(model):
        return {}
    running: list[nn.Module] = []
    kept: dict[nn.Module, Kept] = {}
    caches: list[Cache] = []

    def noting(role: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            layer = inspect.signature(method).bind(*args, **kwargs).arguments["layer_idx"]
            for module in running:
                kept.setdefault(module, set()).add((role, layer))
            return method(*args, **kwargs)

        return noted

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append(module)
        for cache in (value for value in (*args, *kwargs.values()) if isinstance(value, Cache)):
            cache = getattr(cache, "self_attention_cache", cache)
            if not any(cache is known for known in caches):
                caches.append(cache)
                for name, role in _KEEPS.items():
                    setattr(cache, name, noting(role, getattr(cache, name)))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        running.pop()

    modules = [module for block in stack for module in block.modules()]
    with hooked(modules, after), hooked_before(modules, before):
        run(model, {"input_ids": ids, "use_cache": True})
    for module in modules:  # these count tokens in their layers by themselves
        if isinstance(module, StandIn) and module.cache_layers:
            roles = ("attention", "recurrent") if module.role == "both" else (module.role,)
            kept[module] = {(role, layer) for role in roles for layer in module.cache_layers}
    return kept if caches else None


#: How a module keeps keys and values, or a state, in a cache of transformers.
_KEEPS = {"update": "attention", "update_conv_state": "recurrent", "update_recurrent_state": "recurrent"}


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are the same numbers, whatever their shapes."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.numel() != other.numel():
        return False
    return torch.equal(one.flatten(), other.flatten())


@contextmanager
def random_weights(module: nn.Module) -> Iterator[None]:
    """While open, a module's matrices are random."""
    own = {parameter: parameter.data for parameter in module.parameters() if parameter.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    try:
        for parameter, data in own.items():
            noise = torch.randn(data.shape, generator=generator) / max(data.shape[-1], 1) ** 0.5
            parameter.data = noise.to(data) if data.ndim > 1 else data
        yield
    finally:
        for parameter, data in own.items():
            parameter.data = data


def changing(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A hook before a module that changes the hidden states among its arguments."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = hidden_argument(args, kwargs)

        def swap(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) and value is given else value

        return tuple(map(swap, args)), {name: swap(value) for name, value in kwargs.items()}

    return before


def rounding(tensor: Tensor, exact: float) -> float:
    """How large a relative difference may be rounding: ``exact`` in float32, more where precision is less."""
    return max(exact, 16 * torch.finfo(tensor.dtype).eps)


def added_argument(module: nn.Module, call: Call) -> str | None:
    """The argument that a module adds to its output as it is: what is added to it comes out."""
    y, x = call.y, call.x
    if not isinstance(y, Tensor) or not y.is_floating_point() or x is None:
        return None
    others = {name: value for name, value in call.named(module).items() if value is not call.given}
    for name, value in others.items():
        if isinstance(value, Tensor) and (value.shape, value.dtype) == (y.shape, y.dtype):
            shift = y.detach().roll(1, -1)
            try:
                changed = call.again(module, {name: value + shift})
            except Exception:  # whatever a module needs that it has only in its model
                continue
            if changed is not None and bool((changed - y - shift).norm() <= rounding(y, 1e-3) * shift.norm()):
                return name
    return None
