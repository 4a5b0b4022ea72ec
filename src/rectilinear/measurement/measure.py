"""Measuring a model: from a name and a text to its linearity profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rectilinear.core.moments import holds_float64
from rectilinear.core.scores import score_block
from rectilinear.data.fingerprint import fingerprint
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
from rectilinear.measurement.profile import ACCURACY, BlockRecord, Profile, block_record, find_warnings
from rectilinear.measurement.records import DataRecord, record_environment, record_model
from rectilinear.models.batches import BatchSize, check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.blocks import BlockStack, find_blocks
from rectilinear.models.capture import device_of
from rectilinear.models.load import DType, check_rows
from rectilinear.models.origin import Origin, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@reporting_exhausted_memory
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
    batch_size: BatchSize = "auto",
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
    check_batch_size(batch_size)
    origin = Origin(model, revision, trust_remote_code, device, dtype)
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

    # Before the weights, which may take long: everything that can be refused without them.
    reading = Text(text, max_tokens, seq_len, column, config, split, seed)
    rows = origin.rows(reading, tokenizer)
    known = {"source", "seq_len"}
    source = _Source(
        str(text), rows.fingerprint, seq_len, {key: value for key, value in asdict(reading).items() if key not in known}
    )
    module = origin.load()

    def attempt(size: int) -> Profile:
        return _profile(origin, module, torch.split(rows.ids, size), source, settings, blocks, progress)

    return with_batch_size(attempt, batch_size, module, seq_len)


@dataclass(frozen=True)
class _Source:
    """Where the inputs come from."""

    name: str
    fingerprint: str
    seq_len: int | None
    reading: dict[str, Any]


def _profile(
    origin: Origin,
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
        model=record_model(module, origin, stack, width),
        data=data,
        settings={**asdict(settings), "blocks": stack.path, "batch_size": batch_size, **source.reading},
        environment=record_environment(module),
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
