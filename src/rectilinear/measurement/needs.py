"""What a measurement will need, before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from rectilinear.core.block_moments import bytes_of_moments
from rectilinear.errors import RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import BlockStack, takes_own_inputs, width_of
from rectilinear.models.memory import available_memory
from rectilinear.models.offload import on_disk
from rectilinear.models.state_store import check_room, has_room

if TYPE_CHECKING:
    from rectilinear.measurement.inputs import Inputs

# The share of the free memory that the moments of all blocks may take; else blocks are gone through one by one.
_SHARE = 0.5

# Operations that take some minutes on a CPU.
_LONG = 1e13


@dataclass(frozen=True)
class Needs:
    """Bytes and operations that a job takes.

    Attributes:
        width: of the hidden states.
        weights: bytes of the model's parameters.
        moments: bytes of the moments that are in memory together, at most.
        states: bytes of the hidden states of all rows at one depth, where blocks are gone through one by one; else 0.
        operations: floating-point operations of forward passes (two for each weight and token) and of moments.
    """

    width: int
    weights: int
    moments: int
    states: int
    operations: float

    def __str__(self) -> str:
        parts = [f"{self.weights / 1e9:.2f} GB of weights"]
        parts += [f"{self.moments / 1e9:.2f} GB of moments"] * bool(self.moments)
        parts += [f"{self.states / 1e9:.2f} GB of hidden states"] * bool(self.states)
        return ", ".join(parts) + f", {self.operations / 1e12:.1f} TFLOP"


def find_needs(
    module: nn.Module, stack: BlockStack, inputs: Inputs, measurement: Measurement, stream: bool | None = None
) -> Needs | None:
    """What it takes to measure the blocks of a model on some inputs; as a ``stream`` or not, if that is asked for.

    None of a module that does not say how wide its hidden states are.

    Where ``states`` are needed, blocks are gone through one by one. Where that is left open, they are where weights are
    on disk or the moments of all blocks would take more than half of the memory that is free; and where it would take
    long, as a run that is stopped then goes on at its block, unless something else would run before them each time.

    Operations are those of a forward pass, and of three products of ``width`` by ``width`` a token and block: Gram,
    cross, shifted.

    Raises:
        RequestError: the moments do not fit in memory, or hidden states that have to be kept do not on disk.
    """
    width = width_of(getattr(module, "config", None))
    if width is None:
        return None
    free, targets, tokens = available_memory(), len(measurement.target), inputs.tokens
    of_block, blocks = bytes_of_moments(width, measurement.folds) * targets, len(stack)
    states = tokens * width * itemsize_of(stack)
    operations = tokens * (2 * count_parameters(stack.blocks) + 6 * width**2 * targets * blocks)
    if stream is None:
        long = operations > _LONG and has_room(states) and not takes_own_inputs(module, stack)
        stream = long or on_disk(module) or of_block * blocks > _SHARE * free
    moments = of_block if stream else of_block * blocks
    if moments > free:
        what = f"{moments / 1e9:.1f} GB for moments of {'one block' if stream else f'{blocks} blocks'}"
        hint = "fewer `folds`" if stream else "`stream=True`"
        raise RequestError(f"expected memory for {what} of width {width}, got {free / 1e9:.1f} GB; try {hint}")
    if stream:
        check_room(states)
    return Needs(width, bytes_of_weights(module), moments, states if stream else 0, operations)


def itemsize_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of a number of the hidden states that some modules give."""
    return next((parameter.itemsize for module in modules for parameter in module.parameters()), 0)


def bytes_of_weights(module: nn.Module) -> int:
    """Bytes of a module's parameters, wherever they are."""
    return sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())


def find_passes_needs(module: nn.Module, tokens: int) -> Needs:
    """What it takes to predict so many tokens."""
    width = width_of(getattr(module, "config", None)) or 0
    states = tokens * width * itemsize_of([module]) if on_disk(module) else 0
    check_room(states)
    return Needs(width, bytes_of_weights(module), 0, states, 2.0 * tokens * count_parameters([module]))
