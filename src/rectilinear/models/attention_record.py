"""What an attention function of transformers' registry is called with, and the matrix that comes after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rectilinear.models.bounded_attention import BoundedAttention, bounded_attention, find_rotation
from rectilinear.models.bounded_step import Terms
from rectilinear.models.calls import same
from rectilinear.models.far_summary import without_rotation
from rectilinear.models.stand_ins import PaddingMask

#: More tokens than any row has.
ALL = 1 << 30

_LAYOUTS = ("halves", "pairs")


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """Queries, keys and values of one call, ``[rows, heads, tokens, width]``, as the attention function has them.

    Attributes:
        query, key, value: with positions in the first two.
        terms: what else the function is told.
        rotation: cosines and sines of the rotary embedding; None for none.
        real, starts: ``[rows, tokens]``, which tokens are no padding, and which begin a document; None for all, none.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    terms: Terms
    rotation: tuple[Tensor, Tensor] | None
    real: Tensor | None
    starts: Tensor | None

    def finer(self) -> AttentionInputs:
        """The same in float32, or in float64 where they are."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        rotation = self.rotation and (self.rotation[0].to(dtype), self.rotation[1].to(dtype))
        states = {name: getattr(self, name).to(dtype) for name in ("query", "key", "value")}
        return replace(self, rotation=rotation, **states)


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
        self.inputs = AttentionInputs(query, key, value, terms, module._rotation, *module._noted(key.transpose(1, 2)))
        self.output = BoundedAttention.attend(module, query, key, value, terms)
        return self.output

    def take(self) -> AttentionInputs:
        """What the function was last called with, which is kept no longer."""
        inputs, self.inputs = self.inputs, None
        return cast(AttentionInputs, inputs)


def find_layout(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """How an attention's rotary embedding turns queries and keys, in ``halves`` or in ``pairs``; None where in neither.

    The attention is called twice with the same arguments, once with an embedding that turns nothing.
    """
    rotation = find_rotation([*args, *kwargs.values()])
    if rotation is None:
        return None
    still = (torch.ones_like(rotation[0]), torch.zeros_like(rotation[1]))

    def without(value: Any) -> Any:
        same = isinstance(value, (tuple, list)) and len(value) == 2 and value[0] is rotation[0]
        return still if same else value

    recorder.module(*args, **kwargs)
    turned = recorder.take()
    recorder.module(*map(without, args), **{name: without(value) for name, value in kwargs.items()})
    plain = recorder.take()
    for layout in _LAYOUTS:
        found = without_rotation(turned.key, rotation, layout)
        if found.shape == plain.key.shape and (found - plain.key).norm() <= 1e-3 * plain.key.norm():
            return layout
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
