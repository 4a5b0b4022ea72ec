"""Running a model and handing over what goes into and comes out of each block, one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.func import functional_call

from rectilinear.errors import JobError
from rectilinear.models.find_blocks import text_config

#: Called with a block's index, its input and its output, as the block returned them.
Consume = Callable[[int, Tensor, Tensor], None]


class Passage(NamedTuple):
    """What a module took and gave in one call: ``[rows, seq_len, width]`` each.

    `form` is the length of the tuple that it returned, 0 for a bare tensor.
    """

    x: Tensor
    y: Tensor
    form: int


def runnable(model: nn.Module) -> nn.Module:
    """The module to call for hidden states: the base model where there is one (no logits)."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def run(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> None:
    """One forward pass, for its hooks: on the model's device, without gradients, cache or logits."""
    args, kwargs = _arguments(model, inputs)
    with torch.no_grad():
        runnable(model)(*args, **kwargs)


def _arguments(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs on the model's device, and no cache."""
    device = device_of(model)
    options = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}
    if isinstance(inputs, Tensor):
        return (inputs.to(device),), options
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return (), {**options, **moved}


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no outputs beside what is asked for; every submodule's own mode is restored at the end.

    Outputs that a configuration may ask for, as ``output_router_logits`` after fine-tuning, cost memory, and models may
    not be able to generate from padded rows with them.
    """
    training = [module for module in model.modules() if module.training]
    config = getattr(model, "config", None)
    configs = [part for part in (config, text_config(config)) if hasattr(part, "__dict__")]
    asked = [(part, name) for part in configs for name in vars(part) if name.startswith("output_")]
    asked = [(part, name) for part, name in asked if getattr(part, name) is True]
    model.eval()
    for part, name in asked:
        setattr(part, name, False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for part, name in asked:
            setattr(part, name, True)


@contextmanager
def own_randomness(*devices: torch.device) -> Iterator[None]:
    """Random states of Python, numpy and torch, on the CPU and some devices, are afterwards what they were before."""
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


@contextmanager
def hooked(
    modules: Iterable[nn.Module], after: Callable[..., Any], before: Callable[..., Any] | None = None
) -> Iterator[None]:
    """While open, ``before(module, args, kwargs)`` and ``after(module, args, kwargs, output)`` are called as one runs.

    A module that is there twice calls them once.
    """
    with ExitStack() as handles:
        for module in dict.fromkeys(modules):
            handles.enter_context(module.register_forward_hook(after, with_kwargs=True))
            if before is not None:
                handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        yield


@contextmanager
def capture_blocks(
    blocks: Sequence[nn.Module], consume: Consume, *, final: nn.Module | None = None, copy: bool = True
) -> Iterator[None]:
    """While open, hand ``(index, input, output)`` of each block to ``consume`` as it runs.

    Nothing is kept: an input lives until its block returns. A block that writes over its input is noticed at its first
    call and given to ``consume`` with a copy of what came in.

    Args:
        blocks: the block stack.
        consume: what to do with a pair.
        final: where given, the last block's output is taken from this module's output instead: the last hidden state
            after the final norm, as the paper has it.
        copy: where false, nothing is ever copied, so that gradients flow as they would, and a block that writes over
            its input is an error.

    Raises:
        JobError: while running, a block without a tensor input or output, or that may not write over it.
    """
    waiting: dict[int, tuple[Tensor, Tensor, int]] = {}  # input, what is handed over, version
    overwriting: dict[int, bool] = {}
    # A module that stands several times in the stack runs as each of its indices in turn.
    turns = {block: cycle([i for i, other in enumerate(blocks) if other is block]) for block in blocks}
    current: dict[nn.Module, int] = {}
    last = len(blocks) - 1

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if block not in turns:
            raise JobError("expected the model itself to run, got a copy as of torch.nn.DataParallel; try torchrun")
        index = current[block] = next(turns[block])
        x = _input_of(index, args, kwargs)
        # Only a tensor's version tells whether it was written over; inference tensors have none.
        cloned = copy and (x.is_inference() or overwriting.get(index, True))
        waiting[index] = (x, x.clone() if cloned else x, _version(x))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        index = last if module is final else current[module]
        if final is not None and index == last and module is not final:
            return
        if index not in waiting:
            raise JobError(f"block {index}: its output came without its input")
        original, x, version = waiting.pop(index)
        changed = _version(original) != version
        overwriting.setdefault(index, changed or original.is_inference())
        if changed and not copy:
            raise JobError(f"block {index}: expected a block that leaves its input as it is, got one that changes it")
        y = _output_of(index, output)
        if x.shape != y.shape:
            raise JobError(f"block {index}: expected an output shaped like its input {[*x.shape]}, got {[*y.shape]}")
        consume(index, x, y)

    with hooked(blocks, after, before), hooked([] if final is None else [final], after):
        yield


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _input_of(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    for candidate in (*args[:1], kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(candidate, Tensor) and candidate.is_floating_point():
            return candidate
    raise JobError(f"block {index}: expected hidden states as first argument or hidden_states=, got none")


def _output_of(index: int, output: Any) -> Tensor:
    tensor = first_value(output)
    if not isinstance(tensor, Tensor):
        raise JobError(f"block {index}: expected a tensor or a tuple that starts with one, got {type(tensor).__name__}")
    return tensor


def first_value(output: Any) -> Any:
    """Where a module's hidden states are in what it returns: the first of several values, else the whole."""
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return output


class _Enough(Exception):
    """All that was wanted of a forward pass has been seen."""


def run_until(model: nn.Module, inputs: Tensor | Mapping[str, Any], modules: Sequence[nn.Module]) -> list[Passage]:
    """Input and output of some modules in one forward pass, which goes no further than the last of them.

    Both are copies: a module may write over its input, and what comes after it over its output.

    Raises:
        JobError: one of them did not run, or has no tensor in or out.
    """
    given: dict[nn.Module, Tensor] = {}
    seen: dict[nn.Module, Passage] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given.setdefault(module, _input_of(modules.index(module), args, kwargs).clone())

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module not in seen:
            form = len(output) if isinstance(output, (tuple, list)) else 0
            seen[module] = Passage(given[module], _output_of(modules.index(module), output).clone(), form)
        if len(seen) == len(set(modules)):
            raise _Enough

    with suppress(_Enough), hooked(modules, after, before):
        run(model, inputs)
    if missing := [type(module).__name__ for module in modules if module not in seen]:
        raise JobError(f"expected every module to be replaced to run, but {missing[0]} did not")
    return [seen[module] for module in modules]


def states_after(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    modules: Sequence[nn.Module],
    weights: Mapping[nn.Parameter, Tensor] | None = None,
    *,
    logits: bool = False,
) -> tuple[list[Tensor], Tensor | None]:
    """Hidden states after some modules in one forward pass, and its logits; with gradients where they are enabled.

    Args:
        model, inputs: of the forward pass.
        modules: whose outputs are wanted, ``[rows, seq_len, width]`` each.
        weights: tensors that take the place of parameters of the model.
        logits: whether to go on to the logits; else the pass goes no further than the last of the modules.
    """
    runner = model if logits else runnable(model)
    seen: dict[nn.Module, Tensor] = {}
    output: Any = None

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen[module] = first_value(output).clone()  # what comes after may write over it
        if not logits and len(seen) == len(set(modules)):
            raise _Enough

    args, kwargs = _arguments(model, inputs)
    named = {name: weights[own] for name, own in runner.named_parameters() if own in weights} if weights else {}
    with suppress(_Enough), hooked(modules, note):
        output = functional_call(runner, named, args, kwargs)
    return [seen[module] for module in modules], output.logits if logits else None
