"""Taking parts of a model out and putting others in, its configuration kept in step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectilinear.errors import JobError, RequestError
from rectilinear.models.biases import find_biases, give_biases
from rectilinear.models.capture import first_value, run_until, with_first
from rectilinear.models.depth import reduced, remove_blocks
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.modeling_rectilinear import linearized_model
from rectilinear.models.running import evaluating, hooked
from rectilinear.models.stand_ins import StandIn, watch_padding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: New modules by the dotted path of what they replace.
Edits = Mapping[str, nn.Module]


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

    projections = plain_matrices(block)
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
    return f"{stack.path_of(index)}.{projections[wide[-1]]}"


def plain_matrices(module: nn.Module) -> dict[nn.Module, str]:
    """The modules in another that are a matrix, with a bias perhaps, and their paths."""
    found = ((name, inside) for name, inside in module.named_modules())
    # The latter is transformers' own.
    return {each: name for name, each in found if isinstance(each, nn.Linear) or type(each).__name__ == "Conv1D"}


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
        return with_first(output, moved)

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


def folded_projection(projection: nn.Module, matrix: Tensor, bias: Tensor | None) -> nn.Module:
    """A projection whose output is that of another times a matrix ``[q, q]``, plus a bias ``[q]`` if one is given."""
    new: Any = copy.deepcopy(projection)
    # On the CPU: not every device has float64.
    weight, matrix = new.weight.cpu().double(), matrix.cpu().double()
    with torch.no_grad():
        # transformers' Conv1D keeps its weight as [in, out], torch's Linear as [out, in].
        new.weight.copy_(matrix.T @ weight if isinstance(new, nn.Linear) else weight @ matrix)
        if bias is not None and new.bias is None:
            new.bias = nn.Parameter(bias.to(new.weight), new.weight.requires_grad)
        elif bias is not None:
            new.bias.copy_(new.bias.cpu().double() @ matrix + bias.cpu().double())
    folded: nn.Module = new
    return folded


def _newly_biased(model: nn.Module, edits: Edits) -> str | None:
    """The path of a layer that has a bias by edits and none in the model; None where there is none such."""
    for path, new in edits.items():
        own = model.get_submodule(path)
        if isinstance(new, nn.Linear) and isinstance(own, nn.Linear) and new.bias is not None and own.bias is None:
            return path
    return None


def count_new_biases(model: PreTrainedModel, edits: Edits) -> int:
    """How many numbers the biases are that a model gets by edits: see `commit`. What they leave out has none."""
    path = _newly_biased(model, edits)
    if path is None:
        return 0
    layers = find_biases(model, path)[1]
    with swapped(model, edits):
        there = dict(model.named_modules(remove_duplicate=False))
    return sum(layer.out_features for name, layer in layers.items() if isinstance(there.get(name), nn.Linear))


def commit(model: PreTrainedModel, stack: BlockStack, edits: Edits, removed: Sequence[int]) -> None:
    """Make edits permanent, take blocks out, renumber those that stay, and bring the configuration in step.

    Where stand-ins are put in, the model becomes one of the classes of `linearized_model`; where projections have a
    bias that the model has none for, all get one for which the configuration has the same place.
    """
    while biased := _newly_biased(model, edits):
        give_biases(model, biased)
    if removed:  # what is to be built is found out while all is as the architecture has it
        kept = [index for index in range(len(stack)) if index not in removed]
        built = reduced(model, stack, kept)
        _put(model, edits)
        remove_blocks(model, stack, kept, built)
    else:
        _put(model, edits)
    stand_ins = {path: module for path, module in model.named_modules() if isinstance(module, StandIn)}
    if not stand_ins:
        return
    stock: tuple[Any, Any] = type(model), type(model.config)
    model_class = linearized_model(*stock)
    model.config.rectilinear = {
        "stack": stack.path,
        "blocks": [
            {"path": path, **module.options(), **_entry_of(model, module)} for path, module in stand_ins.items()
        ],
    }
    watch_padding(model, stack.path, next(iter(stand_ins.values())).padding)
    model._no_split_modules = {*(model._no_split_modules or ()), *(type(new).__name__ for new in stand_ins.values())}
    model.config.__class__, model.__class__ = model_class.config_class, model_class
    # As the stock architecture, transformers would save some weights under the names of older checkpoints, and
    # look for them under these; as any other it does neither.
    vars(model).pop("_weight_conversions", None)
    vars(model.config).pop("model_type", None)


def _entry_of(model: nn.Module, new: StandIn) -> dict[str, Any]:
    """Where the module is that takes a stand-in's input, for a config; nothing where that is the stand-in itself."""
    if new.entry is None:
        return {}
    (path,) = (path for path, module in model.named_modules() if module is new.entry)
    return {"entry": path, "entry_width": new.entry.width}
