"""What an attention function of transformers' registry is called with, and the matrix that comes after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rectilinear.models.bounded_attention import BoundedAttention, bounded_attention
from rectilinear.models.bounded_step import Terms
from rectilinear.models.calls import Call, rounding, same
from rectilinear.models.far_summary import rotation_of, turned
from rectilinear.models.running import hooked
from rectilinear.models.stand_ins import PaddingMask, named_arguments
from rectilinear.models.surgery import plain_matrices

#: More tokens than any row has.
ALL = 1 << 30

#: How rotary embeddings turn queries and keys.
LAYOUTS = ("halves", "pairs")

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
    """In place of an attention: one that gives what it gives, and keeps what it and its function were called with.

    Args:
        attention: see `rectilinear.models.attention_probe.find_attention`.
        padding: where the attention mask is to be had.
    """

    def __init__(self, attention: nn.Module, padding: PaddingMask) -> None:
        self.module: Any = bounded_attention(attention, padding, window=ALL, sinks=0)
        self.attention = attention
        self.call: Call | None = None  # all arguments by their names
        self.inputs: AttentionInputs | None = None
        self.output: Tensor | None = None  # of the function, [rows, tokens, heads, width]
        vars(self.module)["attend"] = self._attend
        self.module.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = Call((), named_arguments(self.attention, args, kwargs))

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


def find_rotary(recorder: Recorder, inputs: AttentionInputs) -> Rotary | None:
    """How an attention's rotary embedding turns queries and keys; None where it has none that can be undone.

    The embedding is an argument, cosines and sines. The attention that was recorded is called again with one that turns
    nothing: what turns the keys of that into those of the recorded ``inputs`` is the layout.
    """
    call = cast(Call, recorder.call)
    named = {name: value for name, value in call.named(recorder.module).items() if _is_rotation(value)}
    if not named:
        return None
    (name, rotation), *_ = named.items()
    call.again(recorder.module, {name: (torch.ones_like(rotation[0]), torch.zeros_like(rotation[1]))})
    plain = recorder.take().first(len(inputs.key)).key.float()
    cos, sin = (each.reshape(-1, *each.shape[-2:])[0].cpu().double() for each in rotation)
    turns = torch.atan2(sin * cos[0] - cos * sin[0], cos * cos[0] + sin * sin[0])  # since the first token
    for layout in LAYOUTS:
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


def _is_rotation(value: Any) -> bool:
    """Whether it is the cosines and sines of a rotary embedding, ``[rows, tokens, entries]`` each."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(each, Tensor) for each in value):
        return False
    return bool(value[0].shape == value[1].shape and value[0].ndim >= 2)


def find_output_map(recorder: Recorder) -> Tensor | None:
    """The matrix ``[heads * width, p]`` that what the heads give is multiplied by; None where there is none such."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        if args and same(args[0], recorder.output):
            weight = cast(Tensor, module.weight)
            found.append(weight.T if isinstance(module, nn.Linear) else weight)

    with hooked(plain_matrices(recorder.module), note):
        cast(Call, recorder.call).again(recorder.module)
    return found[0].detach() if found else None
