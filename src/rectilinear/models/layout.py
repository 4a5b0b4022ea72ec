"""Where rows and tokens are in the hidden states of a model, and which of these are of text: found by trying."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rectilinear.errors import JobError
from rectilinear.models.find_blocks import BlockStack, takes_own_inputs
from rectilinear.models.linear_block import hidden_argument
from rectilinear.models.running import Enough, evaluating, hooked_before, run
from rectilinear.text.batches import Batch, tensors_of

# Rows and tokens of two passes: which axis is which shows in how the sizes change, whatever the model's own are.
_SIZES = ((2, 5), (3, 7))


class Layout(NamedTuple):
    """Axes of rows and of tokens in hidden states, and where the first token of text is among the tokens.

    `extra` says whether there are other tokens than those of text: a prompt that a model puts before them, say;
    `decoder` whether the tokens are those of a decoder that takes inputs of its own beside an encoder's.
    """

    rows: int = 0
    tokens: int = 1
    start: int = 0
    extra: bool = False
    decoder: bool = False

    def by_rows(self, hidden: Tensor, rows: int, tokens: int | None) -> Tensor:
        """Hidden states as ``[rows, tokens, width]``: those of text alone, and several residual streams as one.

        Raises:
            ValueError: hidden states of another shape.
        """
        if hidden.ndim == 2 and len(hidden) % rows == 0:
            return hidden.view(rows, -1, hidden.shape[-1])
        if hidden.ndim < 3 or hidden.shape[self.rows] != rows:
            raise ValueError(f"expected hidden states [rows, seq_len, width], got {[*hidden.shape]} for {rows} rows")
        moved = hidden.movedim((self.rows, self.tokens), (0, 1)).flatten(2)
        return moved[:, self.start : self.start + tokens] if self.extra and tokens is not None else moved


def find_layout(model: nn.Module, stack: BlockStack, batch: Batch) -> Layout:
    """How hidden states lie in what the first block is given, on a few tokens of a batch of ids ``[rows, seq_len]``.

    For other batches, and where a model does not run on so few tokens, as most have it: rows, tokens, width.

    Raises:
        JobError: there are more hidden states than tokens, and none or several of them are a token's.
    """
    usual = Layout(decoder=takes_own_inputs(model, stack) and isinstance(batch, Mapping) and bool(_OWN & batch.keys()))
    if not hasattr(model, "config") and _is_usual(model, stack, batch):  # it may keep a state from call to call
        return usual
    sizes = _sizes(model, stack, batch)
    rows = [axis for axis, pair in sizes.items() if pair == (_SIZES[0][0], _SIZES[1][0])]
    tokens = [axis for axis in sizes if axis not in rows]
    if len(rows) != 1 or len(tokens) != 1:
        return usual
    found = usual._replace(rows=rows[0], tokens=tokens[0])
    if sizes[tokens[0]] == (_SIZES[0][1], _SIZES[1][1]):
        return found
    return found._replace(start=_start_of_text(model, stack, batch, found), extra=True)


def _is_usual(model: nn.Module, stack: BlockStack, batch: Batch) -> bool:
    """Whether the first block is given rows and tokens in this order, as a batch shows that has not as many of both."""
    ids, found = tensors_of(batch)[0], _first_input(model, stack, batch, go_on=False)
    return found is not None and found.ndim == 3 and found.shape[:2] == ids.shape and len(ids) != ids.shape[1]


#: What a batch has for a decoder that has an encoder beside it.
_OWN = {"decoder_input_ids", "decoder_attention_mask", "labels"}


def _sizes(model: nn.Module, stack: BlockStack, batch: Batch) -> dict[int, tuple[int, int]]:
    """Sizes in two passes, of axes that have others in the second; none where that cannot be tried."""
    first = next((value for value in tensors_of(batch) if value.ndim == 2 and not value.is_floating_point()), None)
    if first is None or not first.numel():
        return {}
    try:
        small, large = (_first_input(model, stack, _cut(batch, *sizes)) for sizes in _SIZES)
    except Exception:  # whatever a model needs that a few tokens do not have
        return {}
    if small is None or large is None or small.ndim != large.ndim or small.ndim < 3:
        return {}
    pairs = enumerate(zip(small.shape, large.shape, strict=True))
    return {axis: pair for axis, pair in pairs if pair[0] != pair[1]}


def _start_of_text(model: nn.Module, stack: BlockStack, batch: Batch, layout: Layout) -> int:
    """Where the first token's hidden states are among all: those of the third change with it."""
    rows, tokens = _SIZES[0]
    before = _first_input(model, stack, _cut(batch, rows, tokens))
    changed = _cut(batch, rows, tokens)
    for ids in tensors_of(changed):
        if not ids.is_floating_point():
            ids[:, 2] = torch.where(ids[:, 2] == ids[:, 1], ids[:, 0], ids[:, 1])
    after = _first_input(model, stack, changed)
    one, other = (tensor.movedim((layout.rows, layout.tokens), (0, 1)).flatten(2) for tensor in (before, after))
    moved = (one != other).any(-1).any(0).nonzero().flatten().tolist()
    if len(moved) != 1:
        raise JobError(
            f"expected hidden states of one token a place, got {one.shape[1]} places for {tokens} tokens, of which "
            f"{len(moved)} are one token's; which are of text cannot be told"
        )
    return int(moved[0]) - 2


def _first_input(model: nn.Module, stack: BlockStack, inputs: Batch, *, go_on: bool = True) -> Any:
    """What the first block is given in a pass, which may end there."""
    seen: list[Tensor | None] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        found = hidden_argument(args, kwargs)
        seen.append(None if found is None else found.clone())
        if not go_on:
            raise Enough

    with suppress(Enough), evaluating(model), hooked_before(stack.blocks[:1], note):
        run(model, inputs)
    return seen[0] if seen else None


def _cut(batch: Batch, rows: int, tokens: int) -> Any:
    """A batch of that size with ids of this one, none of them padding; what is no ``[rows, tokens]`` as it is."""
    if isinstance(batch, Mapping):
        sizes = {name: value for name, value in batch.items() if isinstance(value, Tensor) and value.ndim == 2}
        cut = {name: _cut(value, rows, tokens) for name, value in sizes.items()}
        return {**batch, **{name: torch.ones_like(v) if "mask" in name else v for name, v in cut.items()}}
    flat = batch.flatten()
    return flat.repeat(-(-rows * tokens // len(flat)))[: rows * tokens].view(rows, tokens).clone()
