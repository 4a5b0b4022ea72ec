"""Biases in a model that has none where its architecture has a place for some."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_biases(model: PreTrainedModel, path: str) -> tuple[str, dict[str, nn.Linear]]:
    """The field of the configuration that gives the linear layer at a path a bias, and all layers that get one by it.

    The field is found by trying: what transformers builds with it must be the model with these biases and nothing else.

    Raises:
        RequestError: there is no such field, or these layers' weights are not in memory.
    """
    own = _shapes(model)
    for name, config in _candidates(model.config):
        try:
            with torch.device("meta"):
                built = type(model)(config)
        except Exception:  # whatever an architecture's own checks raise
            continue
        theirs = _shapes(built)
        new = theirs.keys() - own.keys()
        layers = {each.removesuffix(".bias"): _layer(model, each) for each in new}
        linear = {layer: module for layer, module in layers.items() if type(module) is nn.Linear}
        if path in linear and len(linear) == len(new) and own == {each: theirs.get(each) for each in own}:
            if any(module.weight.is_meta for module in linear.values()):
                raise RequestError(
                    "expected weights in memory to put biases beside, got some on disk; try without `bias`"
                )
            return name, linear
    raise RequestError(
        f"expected an architecture with a place for a bias in {path}, got {type(model.config).__name__}, which has no "
        "field that gives it, and plain layers alone, a bias; try without `bias`"
    )


def give_biases(model: PreTrainedModel, path: str) -> None:
    """Give the linear layer at a path a bias of zero, and all others that its configuration has one for then.

    Raises:
        RequestError: as `find_biases`.
    """
    name, layers = find_biases(model, path)
    setattr(text_config(model.config), name, True)
    for layer in layers.values():
        layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_features), layer.weight.requires_grad)


def _candidates(config: Any) -> Iterator[tuple[str, Any]]:
    for name, value in text_config(config).to_dict().items():
        if value is False and "bias" in name:
            edited = copy.deepcopy(config)
            setattr(text_config(edited), name, True)
            yield name, edited


def _layer(model: nn.Module, name: str) -> nn.Module | None:
    """The module that has, or does not have yet, a tensor of this name."""
    try:
        return model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
