"""Inputs that are tokens already: tensors, tokenised datasets, loaders and lists of these, as batches for a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rectilinear.errors import RequestError

#: Inputs of one forward pass: a tensor ``[rows, ...]``, or keyword arguments, among them an
#: ``attention_mask`` ``[rows, seq_len]`` where there is padding.
Batch = Tensor | Mapping[str, Any]

# Rows of different lengths that are padded to one batch.
_ROWS = 8


def as_batches(source: Any) -> Tensor | list[Batch] | None:
    """Batches of what holds tokens, in order; None for a source of text, which `open_text` reads.

    Args:
        source: token ids ``[rows, seq_len]``; rows of ids, or rows with ``input_ids`` and perhaps ``attention_mask``,
            in a list or a `datasets.Dataset`; or batches, in a list, a `torch.utils.data.DataLoader` or an iterator:
            tensors, mappings of keyword arguments, or tuples that begin with a tensor. ``labels`` are left out.

    Returns:
        Rows of one length as a tensor ``[rows, seq_len]`` int64, to be cut as memory allows. Else batches: those that
        were given, or rows of different lengths, some at a time, padded on the right with an ``attention_mask``.

    Raises:
        RequestError: one batch instead of several, or what is neither text nor tokens.
    """
    if isinstance(source, Tensor) and source.ndim == 2 and _is_integral(source):
        return source.long()
    if isinstance(source, Tensor) or (isinstance(source, Mapping) and "input_ids" in source):
        got = f"one tensor {[*source.shape]} of {source.dtype}" if isinstance(source, Tensor) else "one batch"
        raise RequestError(f"expected token ids [rows, seq_len] or a list of batches, got {got}; try [batch]")
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, Iterable):
        return None
    items = iter(source)
    if (first := next(items, None)) is None:
        return []
    texts = first.values() if isinstance(first, Mapping) and "input_ids" not in first else [first]
    if any(isinstance(text, str) for text in texts):
        if items is source:
            raise RequestError("expected batches from an iterator, got a text; try a list of the texts")
        return None
    items = chain([first], items)
    return _pad([_row(item) for item in items]) if _is_row(first) else [_batch(item) for item in items]


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    values = batch.values() if isinstance(batch, Mapping) else [batch]
    return [value for value in values if isinstance(value, Tensor)]


def first_row(batch: Batch) -> Batch:
    """A batch of the first row alone, to try things out on."""
    if isinstance(batch, Mapping):
        return {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return batch[:1]


def ids_of(batch: Batch, decoder: bool = False) -> Tensor | None:
    """Token ids ``[rows, seq_len]`` of a batch, or of a decoder's own; None where it has none."""
    ids = batch.get("decoder_input_ids" if decoder else "input_ids") if isinstance(batch, Mapping) else batch
    return ids if isinstance(ids, Tensor) and ids.ndim == 2 and _is_integral(ids) else None


def _is_integral(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _is_row(item: Any) -> bool:
    """Whether it is ids of one row, not a batch of several."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else item
    if isinstance(ids, Tensor):
        return ids.ndim == 1 and _is_integral(ids)
    return isinstance(ids, Sequence) and all(isinstance(token, int) for token in ids)


def _row(item: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask ``[seq_len]``."""
    if not _is_row(item):
        raise RequestError(f"expected rows of token ids, got {type(item).__name__} among them")
    parts = item if isinstance(item, Mapping) else {"input_ids": item}
    ids = torch.as_tensor(parts["input_ids"], dtype=torch.int64)
    return ids, torch.as_tensor(parts.get("attention_mask", torch.ones_like(ids)), dtype=torch.int64)


def _pad(rows: Sequence[tuple[Tensor, Tensor]]) -> Tensor | list[Batch]:
    if len({len(ids) for ids, _ in rows}) == 1 and all(bool(mask.all()) for _, mask in rows):
        return torch.stack([ids for ids, _ in rows])
    columns = zip(("input_ids", "attention_mask"), zip(*rows, strict=True), strict=True)
    padded = {name: [*column] for name, column in columns}
    return [
        {name: pad_sequence(column[start : start + _ROWS], batch_first=True) for name, column in padded.items()}
        for start in range(0, len(rows), _ROWS)
    ]


def _batch(item: Any) -> Batch:
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], Tensor):  # of a TensorDataset
        return item[0]
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name != "labels"}
    if isinstance(item, Tensor):
        return item
    raise RequestError(f"expected batches of tensors [rows, ...], got {type(item).__name__}")
