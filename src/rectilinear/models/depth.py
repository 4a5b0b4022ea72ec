"""What it takes for a model to keep only some of its blocks: its configuration, and the indices in its blocks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rectilinear.errors import RequestError, first_line
from rectilinear.models.find_blocks import BlockStack, find_blocks, text_config
from rectilinear.models.stand_ins import StandIn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Where in a block a module says which block it is in: path of the module and name of the attribute.
Place = tuple[str, str]


def reduced(model: PreTrainedModel, stack: BlockStack, kept: Sequence[int]) -> PreTrainedModel:
    """What transformers builds, without weights, for this model without all but some of its blocks.

    Which fields of the configuration say how many blocks there are, and which have something to say of each, is found
    by trying: what is built must have the blocks that stay, and all else as it was.

    Raises:
        RequestError: there is no such configuration.
    """
    if not kept:
        raise RequestError(f"expected at least one block of {len(stack)} to stay, got none")
    reasons = []
    for config in _candidates(model.config, kept, len(stack)):
        try:
            with torch.device("meta"):
                built = type(model)(_as_read(config))
                rebuilt = find_blocks(built, stack.path)
        except Exception as error:  # whatever an architecture's own checks raise
            reasons.append(f"the architecture cannot be built without these blocks ({first_line(error)})")
            continue
        reason = _difference(model, stack, kept, built, rebuilt)
        if reason is None:
            return built
        reasons.append(reason)
    raise RequestError(reasons[0])


def check_removal(model: PreTrainedModel, stack: BlockStack, kept: Sequence[int]) -> None:
    """Raise `RequestError` where transformers cannot build a model with only the blocks that are kept."""
    if len(kept) < len(stack):
        reduced(model, stack, kept)


def remove_blocks(model: PreTrainedModel, stack: BlockStack, kept: Sequence[int], built: PreTrainedModel) -> None:
    """Take all but some blocks out of a model, which then is as what was built for these, in configuration too."""
    blocks = find_blocks(model, stack.path).blocks
    chosen = [blocks[index] for index in kept]
    sequential = isinstance(model.get_submodule(stack.path), nn.Sequential)
    model.set_submodule(stack.path, nn.Sequential(*chosen) if sequential else nn.ModuleList(chosen))
    for new, (old, block) in enumerate(zip(kept, chosen, strict=True)):
        _move_cache_layers(block, old, new)
    theirs = dict(built.named_modules())
    for path, module in _with_skeletons(model):
        if path in theirs:
            attributes = vars(theirs[path])
            # Also which weights are saved once, by their paths.
            names = {*_plain(vars(module)), *(name for name in attributes if "tied_weights" in name)}
            vars(module).update({name: attributes[name] for name in names if name in attributes})
    vars(text_config(model.config)).update(vars(text_config(built.config)))


def _with_skeletons(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules by their paths, and those that stand-ins keep of what they stand for."""
    for path, module in model.named_modules():
        if (skeleton := vars(module).get("skeleton")) is None:
            yield path, module
        else:
            yield from ((f"{path}.{name}".rstrip("."), inside) for name, inside in skeleton.named_modules())


def _move_cache_layers(block: nn.Module, old: int, new: int) -> None:
    """Have stand-ins use the layer of the cache that is that of their block's new index."""
    for module in block.modules():
        if isinstance(module, StandIn):
            shift = (new - old) * len(module.cache_layers)  # as many layers as each block has
            module.cache_layers = tuple(layer + shift for layer in module.cache_layers)


def _index_places(blocks: Sequence[nn.Module]) -> set[Place]:
    """Where blocks hold their own index: attributes that are 0 in the first, 1 in the second and so on."""
    places = [_plain_attributes(block) for block in blocks]
    if len(blocks) < 2:
        return {place for place in places[0] if place[1] == "layer_idx"}
    return {
        place
        for index, each in enumerate(places)
        for place, value in each.items()
        if type(value) is int
        and index
        and all(other[place] == where for where, other in enumerate(places) if place in other)
    }


def _as_read(config: Any) -> Any:
    """A configuration as it is read again, by which some of them check that their fields agree."""
    type(config).from_dict(config.to_dict())
    return config


def _candidates(config: Any, kept: Sequence[int], count: int) -> Iterator[Any]:
    """Configurations for some of ``count`` blocks, the most likely one first."""
    values = text_config(config).to_dict()
    counts = [name for name, value in values.items() if type(value) is int and value == count]
    layers = [name for name in counts if "layer" in name]
    several = [tuple(layers)] if len(layers) > 1 else []
    for depth in dict.fromkeys([("num_hidden_layers",), *several, *((name,) for name in counts)]):
        for by_index in (False, True):
            edited = copy.deepcopy(config)
            try:
                _edit(text_config(edited), values, depth, kept, count, by_index)
            except Exception:  # a field that cannot be set, or not to this
                continue
            yield edited


def _edit(
    text: Any, values: Mapping[str, Any], depth: Sequence[str], kept: Sequence[int], count: int, by_index: bool
) -> None:
    """Set the number of blocks, and what there is an entry of for each, or where they are listed, the indices."""
    for name in depth:
        setattr(text, name, len(kept))
    for name, value in values.items():
        if isinstance(value, dict) and "layer" in name and all(str(key).isdigit() for key in value):
            setattr(text, name, {kept.index(int(key)): value[key] for key in value if int(key) in kept})
        elif isinstance(value, (list, tuple)) and "token" not in name:
            if _lists_blocks(name, value, count) and (by_index or len(value) != count):
                setattr(text, name, type(value)(kept.index(each) for each in value if each in kept))
            elif len(value) == count:
                setattr(text, name, type(value)(value[index] for index in kept))


def _lists_blocks(name: str, value: Sequence[Any], count: int) -> bool:
    """Whether these may be indices of some of ``count`` blocks."""
    ascending = all(type(each) is int for each in value) and [*value] == sorted({*value} & {*range(count)})
    return bool(value) and ascending and re.search(r"layer|block|idx|indic", name) is not None


def _difference(
    model: PreTrainedModel, stack: BlockStack, kept: Sequence[int], built: nn.Module, rebuilt: BlockStack
) -> str | None:
    """Why what was built is not the model with only some blocks; None where it is."""
    name = type(model.config).__name__
    if len(rebuilt) != len(kept):
        return f"{name} has no field that the number of blocks at {stack.path} follows"
    if _outside(built, stack.path) != _outside(model, stack.path):
        return f"{name} builds other parts of the model too when it builds fewer blocks"
    places = _index_places(stack.blocks)
    for new, old in enumerate(kept):
        if unlike := _unlike(rebuilt.blocks[new], stack.blocks[old], places):
            return (
                f"expected blocks that can take each other's places, but {name} builds another block {new} than block "
                f"{old} is ({unlike}); try to keep all of them (`kind=affine`), or choose others"
            )
    return None


def _outside(model: nn.Module, path: str) -> dict[str, Any]:
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith(f"{path}.")
    }


def _unlike(new: nn.Module, old: nn.Module, places: set[Place]) -> str | None:
    """What of a block another does not have: a tensor of the same name and shape, a class, or a plain attribute."""
    for one, other in ((_tensors(new), _tensors(old)), (_attributes(new, places), _attributes(old, places))):
        for name in one.keys() | other.keys():
            if one.get(name) != other.get(name):
                return f"{name}: {one.get(name)}, not {other.get(name)}"
    return None


def _tensors(block: nn.Module) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in block.state_dict(keep_vars=True).items()}


def _attributes(block: nn.Module, places: set[Place]) -> dict[str, Any]:
    """Plain attributes of a block but for its index, and tables: these are taken over from what is built."""
    plain = _plain_attributes(block).items()
    return {".".join(place): value for place, value in plain if place not in places and not _is_table(value)}


def _plain_attributes(block: nn.Module) -> dict[Place, Any]:
    """Numbers and words, and tables of these, that modules of a block have as attributes, by where they are."""
    return {
        (path, name): value for path, module in block.named_modules() for name, value in _plain(vars(module)).items()
    }


#: What is so for now, and says nothing of what a module is.
_MODES = ("training", "gradient_checkpointing")


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    public = {name: value for name, value in attributes.items() if not name.startswith("_") and name not in _MODES}
    return {name: value for name, value in public.items() if isinstance(value, (str, int, float)) or _is_table(value)}


def _is_table(value: Any) -> bool:
    """Whether it is a list or a mapping of numbers and words, and of such."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    return parts is not None and all(isinstance(part, (str, int, float)) or _is_table(part) for part in parts)
