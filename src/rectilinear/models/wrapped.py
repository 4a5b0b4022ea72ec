"""A model as a trainer holds it: sharded, wrapped for mixed precision, in training mode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import nn

from rectilinear.models.capture import device_of


class Whole(nn.Module):
    """A model that is always run from its outermost module, head included.

    Where parameters are sharded, the outermost module gathers those that belong to no block.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*args, **kwargs)


def trained_model(trainer: Any) -> tuple[nn.Module, nn.Module]:
    """The model that a transformers Trainer trains: what to run for its hidden states, and itself without wrappers."""
    from transformers.distributed.fsdp import is_fsdp_managed_module

    bare: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    sharded = trainer.is_fsdp_enabled or is_fsdp_managed_module(trainer.model)
    return (Whole(trainer.model, getattr(bare, "config", None)) if sharded else bare), bare


def architecture_of(model: nn.Module) -> str:
    """Name of a model's class; of the one it had before it was sharded, which makes it another."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """While open, a model runs in the precision of its weights: no autocast, nor the one put around its ``forward``."""
    original = vars(model).get("_original_forward")  # accelerate's, which wraps in place
    wrapped = vars(model).get("forward")
    if original is not None:
        model.forward = original
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        if original is not None:
            model.forward = wrapped  # type: ignore[assignment]


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
