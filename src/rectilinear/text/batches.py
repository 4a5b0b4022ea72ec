"""Inputs that are tokens already: tensors, tokenised datasets, loaders and lists of these, as batches for a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
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
        source: token ids ``[rows, seq_len]``; a dataset, a list or a data frame of rows with ``input_ids``; a list of
            rows of ids; or batches, in a list, a `torch.utils.data.DataLoader` or an iterator: tensors, mappings of
            keyword arguments, or tuples that begin with a tensor. ``labels`` are left out.

    Returns:
        Rows of one length as a tensor ``[rows, seq_len]`` int64, to be cut as memory allows. Else batches: those that
        were given, or rows of different lengths, some at a time, padded on the right with an ``attention_mask``.

    Raises:
        RequestError: one batch instead of several, or what is neither text nor tokens.
    """
    if isinstance(source, Tensor) and source.ndim == 2 and _is_integral(source):
        return source.long()
    if isinstance(source, Tensor) or (isinstance(source, Mapping) and "input_ids" in source):
        raise RequestError("expected token ids [rows, seq_len] or a list of batches, got one batch; try [batch]")
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, Iterable):
        return None
    names = getattr(source, "column_names", None) or getattr(source, "columns", None)
    if names is not None:  # a dataset or a data frame
        return _as_rows(_records(source)) if "input_ids" in names else None
    items = iter(source)
    first = next(items, None)
    if first is None:
        return []
    if _is_text(first):
        if items is source:
            raise RequestError("expected batches from an iterator, got a text; try a list of the texts")
        return None
    items = (item for part in ([first], items) for item in part)
    return _as_rows(items) if _is_row(first) else [_as_batch(item) for item in items]


def _records(source: Any) -> Iterator[Any]:
    """Rows of a dataset, or of a data frame, which goes through the names of its columns."""
    if not hasattr(source, "columns") or hasattr(source, "column_names"):
        return iter(source)
    columns = [name for name in ("input_ids", "attention_mask") if name in source.columns]
    return ({**dict(zip(columns, row, strict=True))} for row in zip(*(source[name] for name in columns), strict=True))


def _is_text(item: Any) -> bool:
    values = item.values() if isinstance(item, Mapping) and "input_ids" not in item else [item]
    return any(isinstance(value, str) for value in values)


def _is_row(item: Any) -> bool:
    """Whether it is ids of one row, not a batch of several."""
    ids = item.get("input_ids") if isinstance(item, Mapping) else item
    if isinstance(ids, Tensor):
        return ids.ndim == 1 and _is_integral(ids)
    return isinstance(ids, Sequence) and not isinstance(ids, str) and all(isinstance(token, int) for token in ids)


def _is_integral(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _as_rows(items: Iterable[Any]) -> Tensor | list[Batch]:
    """One tensor where rows are of one length and no mask leaves tokens out, else batches."""
    rows = [_row(item, place) for place, item in enumerate(items)]
    if all(mask is None for _, mask in rows) and len({len(ids) for ids, _ in rows}) == 1:
        return torch.stack([ids for ids, _ in rows])
    batches: list[Batch] = []
    waiting = iter(rows)
    while group := [*islice(waiting, _ROWS)]:
        masks = [torch.ones_like(ids) if mask is None else mask for ids, mask in group]
        batches.append(
            {
                "input_ids": pad_sequence([ids for ids, _ in group], batch_first=True),
                "attention_mask": pad_sequence(masks, batch_first=True),
            }
        )
    return batches


def _row(item: Any, place: int) -> tuple[Tensor, Tensor | None]:
    """Ids ``[seq_len]``, and their mask where it leaves tokens out."""
    if not _is_row(item):
        raise RequestError(f"row {place}: expected a list of token ids, got {type(item).__name__}")
    if not isinstance(item, Mapping):
        return torch.as_tensor(item, dtype=torch.int64), None
    ids, mask = (item.get(name) for name in ("input_ids", "attention_mask"))
    mask = None if mask is None else torch.as_tensor(mask, dtype=torch.int64)
    return torch.as_tensor(ids, dtype=torch.int64), None if mask is None or bool(mask.all()) else mask


def _as_batch(item: Any) -> Batch:
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], Tensor):  # of a TensorDataset
        item = item[0]
    if isinstance(item, Mapping):
        return {name: value for name, value in item.items() if name != "labels"}
    if isinstance(item, Tensor):
        return item
    raise RequestError(f"expected batches of tensors [rows, ...], got {type(item).__name__}")
