"""The loss a model would return by itself, from its outputs and labels, and what it is a mean of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError

# Of labels that transformers leaves out of a loss.
_IGNORED = -100


def task_loss(model: nn.Module, outputs: Any, labels: Tensor, num_items: Tensor | int) -> Tensor:
    """What the model's forward pass returns as loss where it is given labels, as a sum over items / ``num_items``.

    Trainer takes the labels out of a model's inputs where it has a loss function of its own.

    Raises:
        RequestError: the model has no loss function of transformers.
    """
    function: Any = getattr(model, "loss_function", None)
    config: Any = getattr(model, "config", None)
    if function is None:
        raise RequestError(f"expected loss= for {type(model).__name__}, which has no loss_function of transformers")
    logits = outputs.logits
    loss: Tensor = function(
        logits=logits,
        pooled_logits=logits,  # of classifiers, whose outputs have no others
        labels=labels,
        vocab_size=logits.shape[-1],
        config=config,
        num_items_in_batch=num_items,
    )
    balance: Tensor | None = getattr(outputs, "aux_loss", None)  # of a router between experts
    if balance is None:
        return loss
    share = items_of_rows(outputs, labels).sum() / num_items
    coefficient: float = config.router_aux_loss_coef
    return loss + coefficient * balance.to(loss.device) * share


def items_of_rows(outputs: Any, labels: Tensor) -> Tensor:
    """``[rows]``: how many terms each row has in the loss.

    For a language model its tokens that are predicted: labels from the second on, but those that
    are left out; for a classifier 1, or 0 where its label is left out.
    """
    predicted = labels[:, 1:] if labels.ndim == 2 and outputs.logits.ndim == 3 else labels
    return torch.as_tensor(predicted != _IGNORED).reshape(len(labels), -1).sum(1)
