"""What an attention function of transformers' registry is called with, and the matrix that comes after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rectilinear.models.bounded_attention import BoundedAttention, bounded_attention
from rectilinear.models.bounded_step import Terms
from rectilinear.models.calls import rounding, same
from rectilinear.models.far_summary import rotation_of, turned
from rectilinear.models.stand_ins import PaddingMask

#: More tokens than any row has.
ALL = 1 << 30

_LAYOUTS = ("halves", "pairs")

# How far keys may be from those that are turned anew, relative to their size: angles add up over positions.
_CLOSE = 2e-3


@dataclass(frozen=True)
class Rotary:
    """How a rotary embedding turns queries and keys, see `FarSummary`."""

    layout: str
    frequencies: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Queries, keys and values of one call, ``[rows, heads, tokens, width]``, as the attention function has them.

    Attributes:
        query, key, value: with positions in the first two.
        terms: what else the function is told.
        positions: ``[rows, tokens]`` int64.
        real, starts: ``[rows, tokens]``, which tokens are no padding, and which begin a document; None for all, none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    terms: Terms
    positions: Tensor
    real: Tensor | None
    starts: Tensor | None

    def finer(self) -> AttentionInputs:
        """The same in float32, or in float64 where they are."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        states = {name: getattr(self, name).to(dtype) for name in ("query", "key", "value")}
        return replace(self, **states)

    def first(self, rows: int) -> AttentionInputs:
        """Those of the first rows."""
        names = ("query", "key", "value", "positions", "real", "starts")
        return replace(self, **{name: each[:rows] for name in names if (each := getattr(self, name)) is not None})


class Recorder:
    """In place of an attention: one that gives what it gives, and keeps what its function was last called with.

    Args:
        attention: see `rectilinear.models.attention_probe.find_attention`.
        padding: where the attention mask is to be had.
    """

    def __init__(self, attention: nn.Module, padding: PaddingMask) -> None:
        self.module: Any = bounded_attention(attention, padding, window=ALL, sinks=0)
        self.inputs: AttentionInputs | None = None
        self.output: Tensor | None = None  # of the function, [rows, tokens, heads, width]
        vars(self.module)["attend"] = self._attend

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        module: Any = self.module
        like = key.transpose(1, 2)
        self.inputs = AttentionInputs(query, key, value, terms, module._positions(like, 0), *module._noted(like))
        self.output = BoundedAttention.attend(module, query, key, value, terms)
        return self.output

    def take(self) -> AttentionInputs:
        """What the function was last called with, which is kept no longer."""
        inputs, self.inputs = self.inputs, None
        return cast(AttentionInputs, inputs)


def find_rotary(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Rotary | None:
    """How an attention's rotary embedding turns queries and keys; None where it has none that can be undone.

    The embedding is an argument, cosines and sines. The attention is called twice with the same arguments, once with
    one that turns nothing: what turns the keys of that into those of the other is the layout.
    """
    rotation = _rotation_in([*args, *kwargs.values()])
    if rotation is None:
        return None
    still = (torch.ones_like(rotation[0]), torch.zeros_like(rotation[1]))

    def without(value: Any) -> Any:
        same = isinstance(value, (tuple, list)) and len(value) == 2 and value[0] is rotation[0]
        return still if same else value

    recorder.module(*args, **kwargs)
    inputs = recorder.take()
    recorder.module(*map(without, args), **{name: without(value) for name, value in kwargs.items()})
    plain = recorder.take().key.float()
    cos, sin = (each.reshape(-1, *each.shape[-2:])[0].double() for each in rotation)
    turns = torch.atan2(sin * cos[0] - cos * sin[0], cos * cos[0] + sin * sin[0])  # since the first token
    for layout in _LAYOUTS:
        for angles in (turns[:, : cos.shape[1] // 2], turns[:, ::2], turns):
            frequencies = _frequencies(angles)
            if 2 * len(frequencies) > plain.shape[-1]:
                continue
            cosines, sines = rotation_of(inputs.positions, frequencies, layout)
            found = turned(plain, cosines[:, None], sines[:, None], layout)
            found = found * (inputs.key.float().norm() / found.norm())  # some embeddings lengthen what they turn
            if (found - inputs.key).norm() <= rounding(inputs.key, _CLOSE) * found.norm():
                return Rotary(layout, tuple(frequencies))
    return None


def _frequencies(angles: Tensor) -> list[float]:
    """Frequencies of angles ``[tokens, entries]`` at positions from 0 on, which may be coarse and are modulo a turn."""
    found, position = angles[1], 2
    while position < len(angles):
        turns = torch.round((found * position - angles[position]) / (2 * torch.pi))
        found = (angles[position] + 2 * torch.pi * turns) / position
        position *= 2
    return found.tolist()


def _rotation_in(arguments: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """The cosines and sines of a rotary embedding, ``[rows, tokens, entries]`` each, among an attention's arguments."""
    pairs = (each for each in arguments if isinstance(each, (tuple, list)) and len(each) == 2)
    for one, other in pairs:
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and one.ndim >= 2:
            return one, other
    return None


def find_output_map(
    attention: nn.Module, recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """The matrix ``[heads * width, p]`` that what the heads give is multiplied by; None where there is none such."""
    found: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        heads = recorder.output
        if heads is not None and same(given[0], heads):
            weight = cast(Tensor, module.weight)
            found.append(weight.T if isinstance(module, nn.Linear) else weight)

    plain = [each for each in attention.modules() if isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D"]
    handles = [module.register_forward_hook(note) for module in plain]
    try:
        recorder.module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0].detach() if found else None
