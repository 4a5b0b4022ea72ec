"""Whether a model is in its element on rows as they begin: with the beginning-of-sequence token (BOS), or without."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.perplexity import token_losses
from rectilinear.models.logits import check_decoder, row_logits
from rectilinear.models.running import device_of, evaluating

# So many rows, and tokens of each, tell one from the other; the gap is that from which they are told, in nats a token.
_ROWS, _TOKENS, _GAP = 4, 64, 0.25


def bos_warnings(model: nn.Module, ids: Tensor, bos: int | None, lead: int | None) -> list[str]:
    """A line where the first rows are predicted far better with BOS before them than as they are, or without it.

    A decoder that was trained on rows which all begin with BOS may be out of its element on rows that begin anywhere,
    so that what is measured there is of another model, as it were.

    Args:
        model: whose losses are compared, on the same tokens after the same beginnings; nothing is said of one that
            gives no logits for what comes next.
        ids: rows ``[rows, seq_len]``.
        bos: id of the tokenizer's BOS; None where it has none.
        lead: the same where each row begins with it; where that is None, only rows that do not are looked at.
    """
    if bos is None or not hasattr(model, "config"):  # which may keep a state from call to call
        return []
    with_bos = lead is not None
    rows = ids if with_bos else ids[ids[:, 0] != bos]
    rows = rows[:_ROWS, : _TOKENS + with_bos].to(device_of(model))
    without = rows[:, 1:] if with_bos else rows
    if not len(without) or without.shape[1] < 2:
        return []
    begun = torch.cat([torch.full_like(without[:, :1], bos), without], 1)[:, : ids.shape[1]]  # within the context
    shared = begun.shape[1] - 2  # tokens that both predict
    try:
        check_decoder(model, without)
        with evaluating(model), torch.no_grad():
            alone, after = (token_losses(row_logits(model, part), part).double() for part in (without, begun))
    except (RequestError, JobError, MemoryError, RuntimeError):  # no logits, or no memory for what nobody asked for
        return []
    plain, better = float(alone[:, :shared].mean()), float(after[:, 1:].mean())
    if not abs(plain - better) >= _GAP or (better < plain) is with_bos:  # nor where one is not a number
        return []
    best, worst, count = min(plain, better), max(plain, better), len(without)
    return [
        f"the model predicts these rows far better where they begin {'with' if better < plain else 'without'} BOS "
        f"({best:.2f} nats a token over the beginnings of {count} rows, {worst:.2f} as they are): it is out "
        f"of its element here, try `bos={'row' if better < plain else 'document'}`"
    ]
