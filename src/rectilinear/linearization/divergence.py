"""How far a model's predictions move when something in it is replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.pieces import count_rows
from rectilinear.models.surgery import Edits
from rectilinear.ranks import current
from rectilinear.text.batches import Batch, tensors_of

#: Tokens whose predictions are compared.
TOKENS = 2048


def first_rows(bench: Workbench, tokens: int = TOKENS) -> dict[int, int]:
    """How many rows of which batches that run in this process are the first of so many tokens, at least one."""
    found, left = dict[int, int](), tokens
    for number, batch in enumerate(bench.batches):
        rows, length = tensors_of(batch)[0].shape[:2]
        if left > 0:
            found[number] = min(rows, -(-left // length))
            left -= found[number] * length
    return {number: found[number] for number in bench.schedule.order if number in found}


def to_judge(held_out: Tensor, size: int) -> Sequence[Batch]:
    """Batches of so many rows of those that nothing is fitted on, ``[rows, seq_len]``, to compare replacements on."""
    return torch.split(held_out[: -(-TOKENS // held_out.shape[1])], size) if len(held_out) else ()


def judged_rows(bench: Workbench) -> dict[int, int]:
    """The rows that replacements are compared on: those that nothing is fitted on, where there are such."""
    if not bench.judged:
        return first_rows(bench)
    return {number: count_rows(bench.judged[number - len(bench.batches)]) for number in bench.judged_here}


class Divergence:
    """Compares predictions with the original's, which are kept.

    Args:
        rows: how many of which batches of the streams that it is asked about.
    """

    def __init__(self, rows: Mapping[int, int]) -> None:
        self._rows = rows
        self._original: dict[int, Tensor] = {}

    @torch.no_grad()
    def of(self, streams: Streams, edits: Edits, *, edited: bool = False) -> float:
        """Mean divergence (KL) of the original's predictions from those with some edits, in nats a token.

        The edits are at the depth where the streams stand, or after it; of the model as edited so far where that is
        said, else of the original.
        """
        moved, tokens = 0.0, 0
        for number, rows in self._rows.items():
            if number not in self._original:
                self._original[number] = streams.logits(number, {})[:rows].float().log_softmax(-1)
            found = streams.logits(number, edits, edited=edited)[:rows].float().log_softmax(-1)
            for wanted, own in zip(self._original[number], found, strict=True):  # row by row, for memory
                moved += float((wanted.exp() * (wanted - own)).sum())
            tokens += found[..., 0].numel()
        parts = current().gather((moved, tokens))
        return max(sum(part[0] for part in parts), 0.0) / sum(part[1] for part in parts)
