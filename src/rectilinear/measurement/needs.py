"""What a measurement will need, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from rectilinear.core.block_moments import bytes_of_moments
from rectilinear.errors import RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.models.memory import available_memory
from rectilinear.models.offload import on_disk

# The share of the free memory that the moments of all blocks may take; else blocks are gone through one by one.
_SHARE = 0.5


@dataclass(frozen=True)
class Needs:
    """Bytes and operations that a measurement takes.

    Attributes:
        weights: bytes of the model's parameters.
        moments: bytes of the moments of everything that is measured, at most.
        states: bytes of the hidden states of all rows at one depth, where blocks are gone through one by one; else 0.
        operations: floating-point operations of the forward pass (two for each weight of the blocks and token) and of
            the moments (three products of ``width`` by ``width`` a token: Gram, cross, shifted).
    """

    weights: int
    moments: int
    states: int
    operations: float

    def __str__(self) -> str:
        parts = [f"{self.weights / 1e9:.2f} GB of weights", f"{self.moments / 1e9:.2f} GB of moments"]
        parts += [f"{self.states / 1e9:.2f} GB of hidden states"] * bool(self.states)
        return ", ".join(parts) + f", {self.operations / 1e12:.1f} TFLOP"


def find_needs(
    module: nn.Module,
    blocks: Sequence[nn.Module],
    width: int,
    tokens: int,
    measurement: Measurement,
    *,
    stream: bool | None = None,
) -> Needs:
    """What it takes to measure blocks of a ``width`` on some ``tokens``; as a ``stream`` or not, if that is asked for.

    Where ``states`` are needed, blocks are gone through one by one: as is asked for, where weights are on disk, and
    where the moments of all blocks together would take more than half of the memory that is free.

    Raises:
        RequestError: the moments do not fit in memory.
    """
    free, targets = available_memory(), len(measurement.target)
    of_block = bytes_of_moments(width, measurement.folds) * targets
    if stream is None:
        stream = on_disk(module) or of_block * len(blocks) > _SHARE * free
    moments = of_block if stream else of_block * len(blocks)
    if moments > free:
        what = f"{moments / 1e9:.1f} GB for moments of {'one block' if stream else f'{len(blocks)} blocks'}"
        hint = "fewer `folds`" if stream else "`stream=True`"
        raise RequestError(f"expected memory for {what} of width {width}, got {free / 1e9:.1f} GB; try {hint}")
    parameters = [parameter for block in dict.fromkeys(blocks) for parameter in block.parameters()]
    return Needs(
        weights=sum(parameter.numel() * parameter.itemsize for parameter in module.parameters()),
        moments=moments,
        states=tokens * width * parameters[0].itemsize if stream and parameters else 0,
        operations=tokens * (2 * sum(p.numel() for p in parameters) + 6 * width**2 * targets * len(blocks)),
    )
