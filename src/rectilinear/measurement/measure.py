"""Measuring a model: from a name and a text to its linearity profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec

import torch
from torch import nn

import rectilinear
from rectilinear.core.moments import holds_float64
from rectilinear.core.scores import score_block
from rectilinear.data.fingerprint import fingerprint
from rectilinear.data.pack import pack_rows
from rectilinear.data.text import open_text
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.collect import (
    Batch,
    Convention,
    Products,
    Progress,
    Settings,
    collect_moments,
    count_rows,
    tensors_of,
)
from rectilinear.measurement.profile import (
    ACCURACY,
    BlockRecord,
    DataRecord,
    EnvironmentRecord,
    ModelRecord,
    Profile,
    block_record,
    find_warnings,
)
from rectilinear.models.blocks import BlockStack, find_blocks
from rectilinear.models.capture import device_of
from rectilinear.models.load import (
    DType,
    check_context,
    check_rows,
    load_config,
    load_model,
    load_tokenizer,
    pick_device,
    weights_sha256,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Arguments = ParamSpec("_Arguments")

# Tokens of one forward pass where the batch size is not given: enough to keep the device busy.
_BATCH_TOKENS_CPU, _BATCH_TOKENS_ACCELERATOR = 2048, 16384


def _reporting_exhausted_memory(function: Callable[_Arguments, Profile]) -> Callable[_Arguments, Profile]:
    @wraps(function)
    def reporting(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Profile:
        from accelerate.utils.memory import should_reduce_batch_size

        try:
            return function(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            exhausted = "No executable batch size" in str(error)  # accelerate's word for: not even one row
            if isinstance(error, MemoryError) or exhausted or should_reduce_batch_size(error):
                raise JobError("out of memory; try a smaller --batch-size, shorter rows or fewer --folds") from error
            raise

    return reporting


@_reporting_exhausted_memory
def measure(
    model: str | Path | nn.Module,
    text: str | Path | Iterable[Batch],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    blocks: str | None = None,
    max_tokens: int = 100_000,
    seq_len: int = 256,
    folds: int = 4,
    convention: Convention = "block",
    sink_ratio: float = 10.0,
    products: Products = "auto",
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    column: str = "text",
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Profile how linear each block of a decoder is on some text.

    Args:
        model: Hub id, path, ``"storyteller"``, or any module. A module is measured where it is,
            as it is; its mode, hooks and weights are left as they were.
        text: a text source (see `rectilinear.data.text.open_text`), or batches: tensors
            ``[rows, seq_len]`` or mappings of keyword arguments, where ``attention_mask`` marks
            padding, which never enters.
        tokenizer: for text and a module; default: the one of the module's ``name_or_path``.
        blocks: dotted path of the block stack; default: found by structure.
        max_tokens, seq_len: text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens.
        folds, convention, sink_ratio, products: see `Settings`.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        device, dtype, revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        column, config, split, seed: of the text source.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met: no such model, text, column or block stack; text
            shorter than one row; rows longer than the model's context.
        JobError: activations that are not finite, a block without a tensor in or out, memory that
            does not suffice.
    """
    settings = Settings(folds, convention, sink_ratio, products)
    if batch_size != "auto" and batch_size < 1:
        raise RequestError(f"expected a batch size of at least 1, got {batch_size}")
    if not isinstance(model, nn.Module):
        pick_device(device)
    origin = _Origin(model, revision, trust_remote_code, device, dtype)
    if not isinstance(text, (str, Path)):
        if isinstance(text, (Mapping, torch.Tensor)):
            raise RequestError("expected a list of batches, got one batch; try [batch]")
        batches = list(text)
        module = origin.load()
        for batch in batches:
            for ids in tensors_of(batch)[:1]:
                check_rows(getattr(module, "config", None), ids)
        parts = [part for batch in batches for tensor in tensors_of(batch) for part in (f"{[*tensor.shape]}", tensor)]
        source = _Source("batches", fingerprint(parts), None, {})
        return _profile(origin, module, batches, source, settings, blocks, progress)

    documents = open_text(text, column=column, config=config, split=split, seed=seed)
    # Before the weights, which may take long: everything that can be refused without them.
    architecture = origin.config()
    check_context(architecture, seq_len)
    tokenizer = tokenizer or origin.tokenizer()
    rows = pack_rows(documents, _tokenize_with(tokenizer), seq_len, max_tokens)
    check_rows(architecture, rows.ids)
    reading = {"max_tokens": max_tokens, "column": column, "config": config, "split": split, "seed": seed}
    source = _Source(str(text), rows.fingerprint, seq_len, reading)
    module = origin.load()

    def attempt(size: int) -> Profile:
        return _profile(origin, module, torch.split(rows.ids, size), source, settings, blocks, progress)

    if batch_size != "auto":
        return attempt(batch_size)
    from accelerate.utils import find_executable_batch_size

    on_cpu = device_of(module).type == "cpu"
    size = max(1, (_BATCH_TOKENS_CPU if on_cpu else _BATCH_TOKENS_ACCELERATOR) // seq_len)
    halves = iter(size // 2**k for k in range(1, 64))
    halving = find_executable_batch_size(attempt, starting_batch_size=size, reduce_batch_size_fn=lambda: next(halves))
    profile: Profile = halving()
    return profile


@dataclass(frozen=True)
class _Origin:
    """Where the model comes from."""

    model: str | Path | nn.Module
    revision: str | None
    trust_remote_code: bool
    device: str
    dtype: DType

    def config(self) -> Any:
        if isinstance(self.model, nn.Module):
            return getattr(self.model, "config", None)
        return load_config(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        name = getattr(self.model, "name_or_path", "") if isinstance(self.model, nn.Module) else self.model
        if not name:
            raise RequestError("expected tokenizer= for a model without name_or_path, got none")
        return load_tokenizer(name, revision=self.revision, trust_remote_code=self.trust_remote_code)

    def load(self) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return self.model
        module: nn.Module = load_model(
            self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
        )
        return module

    def record(self, module: nn.Module, blocks: int, width: int) -> ModelRecord:
        named = getattr(module, "name_or_path", "") if isinstance(self.model, nn.Module) else self.model
        commit = getattr(getattr(module, "config", None), "_commit_hash", None)
        return ModelRecord(
            id=str(named or type(module).__name__),
            revision=commit or self.revision,
            architecture=type(module).__name__,
            num_blocks=blocks,
            width=width,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            sha256=weights_sha256(module),
        )


@dataclass(frozen=True)
class _Source:
    """Where the inputs come from."""

    name: str
    fingerprint: str
    seq_len: int | None
    reading: dict[str, Any]


def _profile(
    origin: _Origin,
    module: nn.Module,
    batches: Sequence[Batch],
    source: _Source,
    settings: Settings,
    blocks: str | None,
    progress: Progress | None,
) -> Profile:
    stack = find_blocks(module, blocks)
    rows = sum(map(count_rows, batches))
    if not rows:
        raise RequestError("expected at least one row to measure, got none")
    records, width, tokens = _score_blocks(module, stack, batches, settings, progress)
    if settings.products == "auto" and any(record.solve.error > ACCURACY for record in records):
        # Float32 was taken on the evidence of the first tokens, and the rest proved it wrong.
        exact = replace(settings, products="float64")
        records, width, tokens = _score_blocks(module, stack, batches, exact, progress)
    idle = sorted(set(range(len(stack))) - {record.index for record in records})
    if not records:
        raise JobError(
            f"no block of {stack.path or 'the stack'} ran on a token; is every token masked? "
            "If not, try --blocks with another path"
        )
    data = DataRecord(
        source=source.name, fingerprint=source.fingerprint, tokens=tokens, rows=rows, seq_len=source.seq_len
    )
    warnings = find_warnings(records, data, width, settings.folds)
    if idle:
        warnings.append(f"blocks {idle} never ran on these inputs and are left out")
    batch_size = max(map(count_rows, batches))
    return Profile(
        model=origin.record(module, len(stack), width),
        data=data,
        settings={**asdict(settings), "blocks": stack.path, "batch_size": batch_size, **source.reading},
        environment=_environment(module),
        blocks=tuple(records),
        warnings=tuple(warnings),
    )


def _score_blocks(
    module: nn.Module, stack: BlockStack, batches: Sequence[Batch], settings: Settings, progress: Progress | None
) -> tuple[list[BlockRecord], int, int]:
    """The records of the blocks that ran, their width, and the number of tokens."""
    moments = collect_moments(module, stack, batches, settings, progress)
    device = device_of(module)
    solver = device if holds_float64(device) else torch.device("cpu")
    records, width, tokens = [], 0, 0
    for index in range(len(stack)):
        block = moments.pop(0)  # freed once scored
        if block.count:
            scores = score_block(block.to(solver))
            records.append(block_record(index, scores))
            width, tokens = len(scores.all_tokens.moments.mean_x), max(tokens, scores.all_tokens.tokens)
        if progress:
            progress("blocks", index + 1, len(stack))
    return records, width, tokens


def _environment(module: nn.Module) -> EnvironmentRecord:
    from importlib.metadata import PackageNotFoundError, version

    try:
        transformers: str | None = version("transformers")
    except PackageNotFoundError:
        transformers = None
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return EnvironmentRecord(
        rectilinear=rectilinear.__version__,
        torch=torch.__version__,
        transformers=transformers,
        device=str(device_of(module)),
        dtype=str(dtype).removeprefix("torch."),
    )


def _tokenize_with(tokenizer: PreTrainedTokenizerBase) -> Any:
    # verbose=False: documents longer than the context are cut into rows, no need to warn.
    return lambda texts: tokenizer(texts, verbose=False)["input_ids"]
