"""The loss of a causal language model on rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rectilinear.models.capture import device_of, evaluating

# Positions whose logits are upcast at once.
_CHUNK = 1024


def row_losses(model: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Negative log-likelihood of each row in nats, summed over every token but its first: ``[rows]`` float64.

    Args:
        model: returns ``.logits``.
        batches: token ids ``[rows, seq_len]``.
    """
    device = device_of(model)
    sums = []
    with evaluating(model), torch.no_grad():
        for ids in batches:
            ids = ids.to(device)
            logits = model(ids, use_cache=False).logits[:, :-1]
            parts = zip(torch.split(logits, _CHUNK, 1), torch.split(ids[:, 1:], _CHUNK, 1), strict=True)
            losses = [nn.functional.cross_entropy(part.float().mT, wanted, reduction="none") for part, wanted in parts]
            sums.append(torch.cat(losses, 1).double().sum(1).cpu())
    return torch.cat(sums)
