"""Running a model for what its modules take and give: its inputs, its mode and its hooks."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from textwrap import shorten
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from rectilinear.errors import JobError, RectilinearError, RequestError, first_line
from rectilinear.models.find_blocks import text_config


def base_of(model: nn.Module) -> nn.Module:
    """The base model, which gives hidden states and no logits, where there is one."""
    base = getattr(model, "base_model", model)
    return base if isinstance(base, nn.Module) else model


def runnable(model: nn.Module) -> nn.Module:
    """The module to call for hidden states: the base model, or all of it where hooks on it get the weights ready."""
    return model if model._forward_pre_hooks else base_of(model)


def run(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> None:
    """One forward pass, for its hooks: on the model's device, without gradients, cache or logits."""
    args, kwargs = arguments_for(model, inputs)
    with torch.no_grad(), naming_the_model():
        runnable(model)(*args, **kwargs)


@contextmanager
def naming_the_model() -> Iterator[None]:
    """Turn what a model raises on inputs that it cannot take into a `JobError`; memory that runs out stays as it is."""
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        yield
    except (RectilinearError, Enough, MemoryError):
        raise
    except Exception as error:
        if should_reduce_batch_size(error):
            raise
        raise JobError(
            f"the model does not run on these inputs: {type(error).__name__}: {first_line(error)}"
        ) from error


def arguments_for(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs on the model's device, and no cache."""
    device = device_of(model)
    options = {"use_cache": False} if may_cache(model) else {}
    if isinstance(inputs, Tensor):
        return (inputs.to(device),), options
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return (), {**options, **moved}


def may_cache(model: nn.Module) -> bool:
    """Whether a model can be told to decode with a cache or without one."""
    parameters = inspect.signature(runnable(model).forward).parameters
    return "use_cache" in parameters or hasattr(text_config(getattr(model, "config", None)), "use_cache")


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is that is not on disk; the CPU for a model without any."""
    devices = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
    return next(devices, torch.device("cpu"))


def pick_device(device: str) -> torch.device:
    """The device of that name; for ``auto`` CUDA, then MPS, then the CPU.

    Raises:
        RequestError: no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = shorten(first_line(error).split(". ")[0], 80, placeholder=" ...")
        raise RequestError(f"device {device!r} is not to be had here ({reason}); try `device=cpu`") from None
    if picked.type == "meta":
        raise RequestError("expected a device that computes such as cpu, cuda:0 or mps, got 'meta'")
    return picked


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given, so that the time that it took can be read."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


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
def hooked(modules: Iterable[nn.Module], after: Callable[..., Any]) -> Iterator[None]:
    """While open, ``after(module, args, kwargs, output)`` is called once a module ran; what it returns is the output.

    A module that is there twice calls it once.
    """
    with ExitStack() as handles:
        for module in dict.fromkeys(modules):
            handles.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield


@contextmanager
def hooked_before(modules: Iterable[nn.Module], before: Callable[..., Any]) -> Iterator[None]:
    """While open, ``before(module, args, kwargs)`` is called as a module begins; what it returns are the arguments."""
    with ExitStack() as handles:
        for module in dict.fromkeys(modules):
            handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
        yield


class Enough(Exception):
    """All that was wanted of a forward pass has been seen."""
