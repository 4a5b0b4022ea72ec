"""Where a part of a block calls an attention function of transformers' registry, found by running it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from rectilinear.errors import RequestError, first_line
from rectilinear.models.attention_record import ALL
from rectilinear.models.bounded_attention import bounded_attention
from rectilinear.models.calls import rounding
from rectilinear.models.capture import run_until
from rectilinear.models.parts import Part
from rectilinear.models.running import evaluating
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import swapped
from rectilinear.text.batches import Batch


def find_attention(model: nn.Module, part: Part, inputs: Batch | None = None) -> str:
    """Dotted path of the attention in a part that another attention function can take the place of.

    It is tried on ``inputs``, one batch, or else a few tokens: with a window that holds them all, bounded attention is
    to give what the model's own gives. What an attention has beside queries, keys, values and masks, as positions in
    its scores, shows then.

    Raises:
        RequestError: there is none.
    """
    whole = model.get_submodule(part.path)
    paths = [
        f"{part.path}.{name}".rstrip(".")
        for name, module in whole.named_modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    ]
    inputs = torch.arange(16)[None] if inputs is None else inputs
    reasons = {path: reason for path in paths if (reason := _why_not(model, path, inputs))}
    if len(paths) == len(reasons):
        why = next(iter(reasons.values()), "has no module with a configuration of attention functions")
        raise RequestError(
            f"expected an attention that calls transformers' registry of attention functions with all that it depends "
            f"on, got {part.path} ({type(whole).__name__}), which {why}; try `kind=filter`"
        )
    if part.role is not None and len(part.cache_layers) != 1:
        raise RequestError(
            f"expected an attention with one layer of the cache to bound, got {part.path} with "
            f"{len(part.cache_layers)}; try `kind=filter`"
        )
    return next(path for path in paths if path not in reasons)


def _why_not(model: nn.Module, path: str, inputs: Batch) -> str | None:
    module = model.get_submodule(path)
    if vars(module).get("_hf_hook") and [*module.parameters(recurse=False)]:
        return "has weights of its own on disk"
    new: Any = bounded_attention(module, PaddingMask(), window=ALL, sinks=0)
    try:
        with evaluating(model):
            wanted = run_until(model, inputs, [module])[0].y
            with swapped(model, {path: new}):
                found = run_until(model, inputs, [new])[0].y
    except Exception as error:  # whatever an architecture makes of another attention function
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise
        return f"does not run with another ({type(error).__name__}: {first_line(error)})"
    if new.times_called != 1:
        return f"calls it {new.times_called} times" if new.times_called else "never calls it"
    if found.shape != wanted.shape or not (found - wanted).norm() <= rounding(wanted, 1e-4) * wanted.norm():
        return "gives something else by the same weights"
    return None
