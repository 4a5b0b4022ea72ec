"""Blocks whose weights stay on disk until they are run; transformers keeps track of them, and accelerate reads them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import BlockStack, find_blocks
from rectilinear.models.memory import available_memory, return_memory
from rectilinear.models.settings import Loading
from rectilinear.ranks import current

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def streaming(skeleton: PreTrainedModel | None, loading: Loading, place: torch.device) -> dict[str, Any]:
    """Options of ``from_pretrained`` by which the weights of blocks stay on disk; none where they are to be in memory.

    Args:
        skeleton: the model without weights; None for what cannot be loaded so.
        loading: how it is loaded: so, or not; where that is left open, so if it does not fit in memory.
        place: device of all else.

    Raises:
        RequestError: what cannot be loaded so is to be.
    """
    if skeleton is None:
        if loading.stream:
            raise RequestError(
                "expected `stream` with a causal language model and weights of its own, got a GGUF file, an adapter or "
                "another kind of model"
            )
        return {}
    if loading.stream is False:
        return {}
    if loading.stream is None:
        dtype = skeleton.config.dtype or torch.float32 if loading.dtype == "auto" else getattr(torch, loading.dtype)
        there = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_memory()
        if all(current().gather(skeleton.num_parameters() * dtype.itemsize < there)):
            return {}
    try:
        stack = find_blocks(skeleton)
    except RequestError:
        if loading.stream:
            raise
        return {}
    # What has to be written anew to be read by blocks, as experts that are put together; it is gone with the process.
    folder = tempfile.mkdtemp(prefix="rectilinear-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": disk_map(skeleton, stack, str(place)), "offload_folder": folder}


def disk_map(model: nn.Module, stack: BlockStack, device: str) -> dict[str, Any]:
    """A device map by which blocks are on disk, and everything else on a device."""
    found: dict[str, Any] = {stack.path_of(index): "disk" for index in range(len(stack))}

    def descend(module: nn.Module, path: str) -> None:
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found[f"{path}{name}"] = device
        for name, child in module.named_children():
            where = f"{path}{name}"
            if stack.path.startswith(f"{where}."):
                descend(child, f"{where}.")
            elif where != stack.path:
                found[where] = device

    descend(model, "")
    return found


def on_disk(module: nn.Module) -> bool:
    """Whether any of a module's weights are on disk."""
    return any(_hook_of(each) for each in module.modules())


@contextmanager
def in_memory(module: nn.Module) -> Iterator[None]:
    """While open, weights of a module that are on disk are in memory, read once; it is a module like any other."""
    held = [(each, hook) for each in module.modules() if (hook := _hook_of(each))]
    try:
        for each, hook in held:
            hook.pre_forward(each)
            hook.original_devices = {}  # where they would be read to once more
            remove_hook_from_module(each)
        yield
    finally:
        for each, hook in held:
            if not _hook_of(each):
                hook.post_forward(each, None)
                add_hook_to_module(each, hook)
        if held:
            return_memory()


def read_weight(model: nn.Module, name: str) -> Tensor:
    """A tensor of a model's state dict that is on disk."""
    path, _, own = name.rpartition(".")
    weight: Tensor = vars(model.get_submodule(path))["_hf_hook"].weights_map[own]
    return weight


def _hook_of(module: nn.Module) -> AlignDevicesHook | None:
    """What reads a module's weights from where they are; None for a module whose weights are in memory."""
    hook = vars(module).get("_hf_hook")
    return hook if isinstance(hook, AlignDevicesHook) and hook.offload else None
