"""What there is to know of a model: its structure and size, the text that it takes, the hash of its weights."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import BlockStack, context_of, text_config, width_of
from rectilinear.text.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def describe(model: PreTrainedModel, stack: BlockStack) -> dict[str, Any]:
    """What there is to know of a decoder and its block stack without weights.

    Returns:
        ``architecture``, ``blocks`` (path of the stack), ``found_by``, ``block_class``,
        ``num_blocks``, ``width``, ``parameters``, ``block_parameters`` (of all blocks),
        ``vocabulary`` and ``context`` in tokens (None where the model has no limit).
    """
    classes = sorted({type(block).__name__ for block in stack})
    return {
        "architecture": type(model).__name__,
        "blocks": stack.path,
        "found_by": stack.rule,
        "block_class": "/".join(classes),
        "num_blocks": len(stack),
        "width": width_of(model.config),
        "parameters": count_parameters([model]),
        "block_parameters": count_parameters(list(stack)),
        "vocabulary": getattr(text_config(model.config), "vocab_size", None),
        "context": context_of(model.config),
    }


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules, shared ones once."""
    unique = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    return sum(unique.values())


def weights_sha256(model: nn.Module) -> str | None:
    """SHA-256 of a line ``name dtype [shape] SHA-256-of-its-bytes`` for each tensor of the state dict, by name.

    None where bytes are not to be had: quantised models may hold weights that are no plain tensors.
    """
    state = sorted(model.state_dict().items())
    try:
        with ThreadPoolExecutor() as pool:
            digests = [*pool.map(lambda named: fingerprint([named[1]]), state)]
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
    return fingerprint(
        f"{name} {tensor.dtype} {[*tensor.shape]} {digest}\n"
        for (name, tensor), digest in zip(state, digests, strict=True)
    )


def check_context(config: PretrainedConfig | None, seq_len: int) -> None:
    """Refuse rows longer than the model's context.

    Raises:
        RequestError: they are.
    """
    context = context_of(config)
    if context is not None and context < seq_len:
        raise RequestError(
            f"expected rows within the model's context of {context} tokens, "
            f"got rows of {seq_len}; try `seq_len={context}`"
        )


def check_rows(config: PretrainedConfig | None, ids: Tensor) -> None:
    """Refuse token ids ``[rows, seq_len]`` that the model cannot take; tensors that are not ids pass.

    Raises:
        RequestError: rows longer than its context, or an id outside its vocabulary.
    """
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        return
    check_context(config, ids.shape[1])
    vocabulary, largest = getattr(text_config(config), "vocab_size", None), int(ids.max())
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise RequestError(
            f"expected token ids below the model's vocabulary of {vocabulary}, got {largest}; "
            "is this the model's own tokenizer?"
        )
