"""Taking parts of a model out and putting others in, its configuration kept in step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.models.capture import evaluating, first_value, hooked, run_until
from rectilinear.models.find_blocks import BlockStack, find_blocks, text_config
from rectilinear.models.modeling_rectilinear import LinearBlock, linearized_model, watch_padding
from rectilinear.settings import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: New modules by the dotted path of what they replace.
Edits = Mapping[str, nn.Module]


def find_target(stack: BlockStack, index: int, target: Target) -> str:
    """Dotted path of a block, or of its attention or MLP.

    The attention is the one direct child that its class calls so, the MLP the one other direct child with matrices.

    Raises:
        RequestError: there is no such child, or several, or it adds the residual stream itself.
    """
    where = f"{stack.path}.{index}" if stack.path else str(index)
    if target == "block":
        return where
    block = stack.blocks[index]
    kinds = {name: type(child).__name__ for name, child in block.named_children()}
    attentions = {name for name, kind in kinds.items() if "attention" in kind.lower()}
    weighty = {name for name in kinds if any(p.ndim > 1 for p in block.get_submodule(name).parameters())}
    found = sorted(attentions if target == "attention" else weighty - attentions)
    named = ", ".join(f"{name} ({kinds[name]})" for name in found) or "none"
    if len(found) != 1:
        raise RequestError(
            f"expected one {target} in block {index} ({type(block).__name__}), got {named}; try `target=block`"
        )
    if "residual" in inspect.signature(block.get_submodule(found[0]).forward).parameters:
        raise RequestError(
            f"expected an {target} whose output is added to the stream outside of it, got {named}, "
            "which adds it itself; try `target=block`"
        )
    return f"{where}.{found[0]}"


@contextmanager
def swapped(model: nn.Module, edits: Edits) -> Iterator[None]:
    """While open, the model has the edits' modules in the places of its own."""
    own = {path: model.get_submodule(path) for path in edits}
    try:
        _put(model, edits)
        yield
    finally:
        _put(model, own)


def _put(model: nn.Module, modules: Edits) -> None:
    for path, module in modules.items():
        model.set_submodule(path, module)


def find_projection(model: nn.Module, stack: BlockStack, index: int, inputs: Any) -> str:
    """Dotted path of a block's last projection, whose output goes straight into the residual stream.

    It is the last matrix to run that gives vectors of the stream's width. That its output is added as it is, is tried
    out on ``inputs``, one batch: what is added to it must come out of the block.

    Raises:
        RequestError: there is no such projection.
        JobError: the block's output is not finite.
    """
    block = stack.blocks[index]
    ran: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        ran.append((module, output.shape[-1]))

    projections = {
        module: name
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # a plain matrix too
    }
    with evaluating(model), hooked(projections, note):
        whole = run_until(model, inputs, [block])[0]
    if not whole.y.isfinite().all():
        raise JobError(f"block {index}: activations are NaN or infinite; try `dtype=float32`")
    wide = [module for module, width in ran if width == whole.y.shape[-1]]
    if not wide or not adds_straight(model, block, wide[-1], inputs, through=False):
        raise RequestError(
            f"folding needs a last projection that adds to the residual stream as it is; "
            f"block {index} ({type(block).__name__}) has none; try `kind=affine`"
        )
    return f"{find_target(stack, index, 'block')}.{projections[wide[-1]]}"


def adds_straight(model: nn.Module, block: nn.Module, part: nn.Module, inputs: Any, *, through: bool) -> bool:
    """Whether the output of a block's attention or MLP is added to the residual stream as it is.

    Then what is added to it comes out of the block or, for a part whose output goes ``through`` other parts before,
    reaches one of these. It is tried out on ``inputs``, one batch.
    """
    given: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        given.append(next((value.clone() for value in tensors if value.is_floating_point()), torch.empty(0)))

    def shifted(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        moved = first_value(output) + shift.view_as(first_value(output))
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    watched = [child for child in block.children() if child is not part] if through else []
    with evaluating(model):  # dropout would change the output too
        with hooked(watched, note):
            own, whole = run_until(model, inputs, [part, block])
        before, shift = list(given), whole.y.roll(1, -1)
        given.clear()
        with hooked([part], shifted), hooked(watched, note):
            moved = run_until(model, inputs, [block])[0]
    # What goes into the next part as it is, a norm say, is not yet added to anything.
    alike = [pair for pair in zip(before, given, strict=True) if pair[0].numel() == shift.numel()]
    reached = [(old, new) for old, new in alike if not torch.equal(old.flatten(), own.y.flatten())]
    changes = [(new - old).view_as(shift) for old, new in [(whole.y, moved.y), *reached]]
    return any(bool((change - shift).norm() <= 0.05 * shift.norm()) for change in changes)


def folded_projection(projection: nn.Module, matrix: Tensor, bias: Tensor) -> nn.Module:
    """A projection whose output is that of another times a matrix ``[q, q]``, plus a bias ``[q]`` if it has one."""
    new: Any = copy.deepcopy(projection)
    # On the CPU: not every device has float64.
    weight, matrix, bias = new.weight.cpu().double(), matrix.cpu().double(), bias.cpu().double()
    with torch.no_grad():
        # transformers' Conv1D keeps its weight as [in, out], torch's Linear as [out, in].
        new.weight.copy_(matrix.T @ weight if isinstance(new, nn.Linear) else weight @ matrix)
        if new.bias is not None:
            new.bias.copy_(new.bias.cpu().double() @ matrix + bias)
    folded: nn.Module = new
    return folded


def edited_config(config: Any, kept: Sequence[int], count: int) -> Any:
    """A copy of a configuration for some of its ``count`` blocks: their number, and lists with an entry a block."""
    config = copy.deepcopy(config)
    text = text_config(config)
    values = text.to_dict()
    text.num_hidden_layers = len(kept)
    for name, value in values.items():
        if isinstance(value, (list, tuple)) and len(value) == count and not name.endswith(("_id", "_ids")):
            setattr(text, name, type(value)(value[index] for index in kept))
    return config


def check_removal(model: PreTrainedModel, stack: BlockStack, kept: Sequence[int]) -> None:
    """Refuse to remove blocks where the configuration would then build others than those that stay.

    Raises:
        RequestError: it would, or cannot be built at all.
    """
    if len(kept) == len(stack):
        return
    if not kept:
        raise RequestError(f"expected at least one block of {len(stack)} to stay, got none")
    config = edited_config(model.config, kept, len(stack))
    try:
        with torch.device("meta"):
            rebuilt = find_blocks(type(model)(config), stack.path)
    except Exception as error:  # whatever an architecture's own checks raise
        raise RequestError(f"the architecture cannot be built without these blocks ({first_line(error)})") from None
    for new, old in enumerate(kept):
        if new >= len(rebuilt) or _structure(rebuilt.blocks[new]) != _structure(stack.blocks[old]):
            raise RequestError(
                f"expected blocks that can take each other's places, but {type(model.config).__name__} builds another "
                f"block {new} than block {old} is; try to keep all of them (`kind=affine`), or choose others"
            )


def _structure(block: nn.Module) -> dict[str, Any]:
    """Names and shapes of a block's tensors, and the plain attributes of its modules but for their place."""
    tensors = {name: tuple(tensor.shape) for name, tensor in block.state_dict(keep_vars=True).items()}
    plain = {
        f"{path}.{name}": value
        for path, module in block.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (str, int, float)) and not name.startswith("_") and name not in ("training", "layer_idx")
    }
    return {**tensors, **plain}


def commit(model: PreTrainedModel, stack: BlockStack, edits: Edits, removed: Sequence[int]) -> None:
    """Make edits permanent, take blocks out, renumber those that stay, and bring the configuration in step.

    Where stand-ins are put in, the model becomes one of the classes of `linearized_model`.
    """
    _put(model, edits)
    if removed:
        blocks = find_blocks(model, stack.path).blocks
        kept = [index for index in range(len(blocks)) if index not in removed]
        chosen = [blocks[index] for index in kept]
        sequential = isinstance(model.get_submodule(stack.path), nn.Sequential)
        model.set_submodule(stack.path, nn.Sequential(*chosen) if sequential else nn.ModuleList(chosen))
        for index, block in enumerate(chosen):
            for module in block.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = index  # type: ignore[assignment]
        vars(text_config(model.config)).update(vars(text_config(edited_config(model.config, kept, len(blocks)))))
    stand_ins = {path: module for path, module in model.named_modules() if isinstance(module, LinearBlock)}
    if not stand_ins:
        return
    stock: tuple[Any, Any] = type(model), type(model.config)
    model_class = linearized_model(*stock)
    model.config.rectilinear = {
        "stack": stack.path,
        "blocks": [{"path": path, **module.options()} for path, module in stand_ins.items()],
    }
    watch_padding(model, stack.path, next(iter(stand_ins.values())).padding)
    model._no_split_modules = {*(model._no_split_modules or ()), *(type(new).__name__ for new in stand_ins.values())}
    model.config.__class__, model.__class__ = model_class.config_class, model_class
    # As the stock architecture, transformers would save some weights under the names of older checkpoints, and
    # look for them under these; as any other it does neither.
    vars(model).pop("_weight_conversions", None)
    vars(model.config).pop("model_type", None)
