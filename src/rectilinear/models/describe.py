"""What there is to know of a model, as commands print it and result files record it, and which rows it takes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import rectilinear
from rectilinear.errors import JobError, RequestError
from rectilinear.models.find_blocks import BlockStack, context_of, text_config, width_of
from rectilinear.models.load import commit_of
from rectilinear.models.offload import read_weight
from rectilinear.models.running import device_of, evaluating, hooked_before, run
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.rows import TokenRows
from rectilinear.text.sources import name_source

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from rectilinear.models.origin import Origin


def describe(model: PreTrainedModel, stack: BlockStack) -> dict[str, Any]:
    """What there is to know of a decoder and its block stack without weights.

    Returns:
        ``architecture``, ``blocks`` (path of the stack), ``found_by``, ``block_class``, ``num_blocks``, ``width``,
        ``parameters``, ``block_parameters`` (of all blocks), ``vocabulary`` and ``context`` in tokens (None where the
        model has no limit).
    """
    return {
        "architecture": type(model).__name__,
        "blocks": stack.path,
        "found_by": stack.rule,
        "block_class": "/".join(sorted({type(block).__name__ for block in stack})),
        "num_blocks": len(stack),
        "width": width_of(model.config),
        "parameters": count_parameters([model]),
        "block_parameters": count_parameters(stack),
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

    def digest_of(named: tuple[str, Tensor]) -> str:
        name, tensor = named
        return fingerprint([read_weight(model, name) if tensor.is_meta else tensor])

    try:
        # Of weights on disk one tensor is in memory at a time.
        with ThreadPoolExecutor(1 if any(tensor.is_meta for _, tensor in state) else None) as pool:
            digests = [*pool.map(digest_of, state)]
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError):
        return None
    return fingerprint(
        f"{name} {tensor.dtype} {[*tensor.shape]} {digest}\n"
        for (name, tensor), digest in zip(state, digests, strict=True)
    )


def is_known(module: Any) -> bool:
    """Whether a module's code is of transformers or of this package, and did not come with a checkpoint."""
    return type(module).__module__.startswith(("transformers.", "rectilinear."))


def record_model(module: nn.Module, origin: Origin, stack: BlockStack | None, width: int | None) -> ModelRecord:
    """Describe a model that was loaded from ``origin``; reads all of its weights, for their hash."""
    commit = None if isinstance(origin.model, nn.Module) else commit_of(origin.model, origin.loading.revision)
    return ModelRecord(
        id=origin.name or type(module).__name__,
        revision=commit or origin.loading.revision,
        architecture=type(module).__name__,
        num_blocks=None if stack is None else len(stack),
        width=width,
        parameters=count_parameters([module]),
        sha256=weights_sha256(module),
        own_code=origin.loading.trust_remote_code and not is_known(module),
    )


def record_rows(source: Any, rows: TokenRows) -> DataRecord:
    """Describe the rows of a text source."""
    count, seq_len = rows.ids.shape
    return DataRecord(
        source=name_source(source),
        fingerprint=rows.fingerprint,
        tokens=count * seq_len,
        rows=count,
        seq_len=seq_len,
        documents=rows.count,
    )


def record_environment(module: nn.Module) -> EnvironmentRecord:
    """Describe the software, and where the model is and in which precision."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return EnvironmentRecord(
        rectilinear=rectilinear.__version__,
        torch=torch.__version__,
        transformers=version("transformers"),
        device=str(device_of(module)),
        dtype=str(dtype).removeprefix("torch."),
    )


def check_context(config: PretrainedConfig | None, seq_len: int) -> None:
    """Raise `RequestError` for rows longer than the model's context."""
    context = context_of(config)
    if context is not None and context < seq_len:
        raise RequestError(
            f"expected rows within the model's context of {context} tokens, "
            f"got rows of {seq_len}; try `seq_len={context}`"
        )


def check_positions(model: nn.Module, ids: Tensor) -> None:
    """Refuse rows ``[rows, seq_len]`` for which a table of learned positions, which may not begin at 0, has no room.

    The model is run on one token twice: an embedding that is asked for an index and the next one is such a table. A
    model that does not run on so few tokens passes, and so does one whose only embedding is that of its tokens.

    Raises:
        RequestError: rows are longer.
    """
    rooms: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = [value.flatten().tolist() for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        rooms.extend(module.num_embeddings - first for first, *then in asked if then == [first + 1])

    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if len(tables) > 1:
        with suppress(JobError), evaluating(model), hooked_before(tables, note):
            run(model, ids[:1, :1].repeat(1, 2))
    if rooms and min(rooms) < ids.shape[1]:
        raise RequestError(
            f"expected rows of at most {min(rooms)} tokens, for which the model has positions, got rows of "
            f"{ids.shape[1]}; try `seq_len={min(rooms)}`"
        )


def check_rows(config: PretrainedConfig | None, ids: Tensor) -> None:
    """Raise `RequestError` for token ids ``[rows, seq_len]`` beyond the model's context or vocabulary.

    Tensors that are not ids pass.
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
