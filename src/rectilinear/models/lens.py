"""From hidden states to what comes next: what a decoder does after its last block, found by running it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.models.capture import capture_blocks, first_value
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.logits import row_logits
from rectilinear.models.running import device_of, evaluating, hooked


class Lens(nn.Module):
    """The modules that make logits of what the last block gives: a norm and the output embeddings.

    Attributes:
        norm: from hidden states to what the embeddings take; the identity where that is the same.
        head: the output embeddings.
    """

    def __init__(self, norm: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, head

    @torch.no_grad()
    def forward(self, states: Tensor) -> Tensor:
        """The ids ``[...]`` of the likeliest next tokens after hidden states ``[..., width]`` of any depth."""
        dtype = next(self.parameters()).dtype
        likeliest: Tensor = self.head(self.norm(states.to(dtype))).argmax(-1)
        return likeliest

    @torch.no_grad()
    def written(self, directions: Tensor, at: Tensor) -> Tensor:
        """How logits ``[n, vocabulary]`` change as each of directions ``[n, width]`` is added to a state ``[width]``.

        The derivative there, of the norm too.
        """
        parameter = next(self.parameters())
        state, ways = (each.to(parameter.device, parameter.dtype) for each in (at, directions))

        def along(way: Tensor) -> Tensor:
            changes: Tensor = torch.func.jvp(lambda given: self.head(self.norm(given)), (state,), (way,))[1]
            return changes

        return torch.stack([along(way) for way in ways]).float()


def find_lens(model: nn.Module, stack: BlockStack, ids: Tensor) -> Lens | None:
    """What a model does after its last block; None where that is not a module and the output embeddings.

    It is found on a few token ids ``[rows, seq_len]``: the module that is given the last block's output and gives
    what the output embeddings take. Its likeliest tokens are checked to be the model's own.
    """
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(embeddings, nn.Module):
        return None
    inside = {module for block in stack.blocks for module in block.modules()}
    candidates = [module for module in model.modules() if module not in inside and module is not embeddings]
    calls: list[tuple[nn.Module, Any, Any]] = []
    last: dict[str, Tensor] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        calls.append((module, given, first_value(output)))

    def keep(index: int, x: Tensor, y: Tensor) -> None:
        if index == len(stack) - 1:
            last["state"] = y

    few = ids[:2, :16].to(device_of(model))
    with evaluating(model), hooked([*candidates, embeddings], note), capture_blocks(stack.blocks, keep):
        logits = row_logits(model, few)
    state, taken = last.get("state"), [given for module, given, _ in calls if module is embeddings]
    if state is None or len(taken) != 1:
        return None
    between = (module for module, given, gave in calls if _same(given, state) and _same(gave, taken[0]))
    norm = nn.Identity() if _same(state, taken[0]) else next(between, None)
    if norm is None:
        return None
    lens = Lens(norm, embeddings)
    return lens if bool((lens(state) == logits.argmax(-1)).all()) else None


def _same(one: Any, other: Any) -> bool:
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.shape == other.shape
        and bool((one == other).all())
    )
