"""A model as transformers' Trainer holds it, sharded or wrapped for mixed precision, and the loss it takes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss, fixed_cross_entropy

from rectilinear.errors import RequestError, broken_promise
from rectilinear.models.running import device_of

# Kinds of classification whose loss is a mean over the batch, whatever the number of items.
_MEANS = ("regression", "multi_label_classification")

# Of labels that transformers leaves out of a loss.
_IGNORED = -100


class Whole(nn.Module):
    """A model that is always run from its outermost module, head included.

    Where parameters are sharded, the outermost module gathers those that belong to no block.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*args, **kwargs)

    def get_encoder(self) -> Any:
        """The model's; an error where it has none."""
        encoder: Any = self.model.get_encoder  # type: ignore[union-attr]
        return encoder()  # type: ignore[operator]


def trained_model(trainer: Any) -> tuple[nn.Module, nn.Module]:
    """The model that a transformers Trainer trains: what to run for its hidden states, and itself without wrappers."""
    from transformers.distributed.fsdp import is_fsdp_managed_module

    bare: nn.Module = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    sharded = trainer.is_fsdp_enabled or is_fsdp_managed_module(trainer.model)
    return (Whole(trainer.model, getattr(bare, "config", None)) if sharded else bare), bare


def architecture_of(model: nn.Module) -> str:
    """Name of a model's class; of the one it had before it was sharded, which makes it another."""
    from torch.distributed.fsdp import FSDPModule

    return next(kind.__name__ for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))


@contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """While open, a model runs in the precision of its weights: no autocast, nor the one put around its ``forward``."""
    own = vars(model)
    wrapped = own.get("forward")  # by accelerate, which keeps the original beside it
    if "_original_forward" in own:
        model.forward = own["_original_forward"]
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        if "_original_forward" in own:
            model.forward = wrapped  # type: ignore[assignment]


def task_loss(model: nn.Module, outputs: Any, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """What the model's forward pass returns as loss where it is given labels, and Trainer's number of items.

    Trainer takes the labels out of a model's inputs where it has a loss function of its own, so that ``outputs`` are
    those without labels. The sum over items is divided by ``num_items``; None is for a mean.

    Raises:
        RequestError: the model has no loss function of transformers.
        JobError: that function no longer takes the number of items, or a router's balance is not returned.
    """
    function: Any = getattr(model, "loss_function", None)
    config: Any = getattr(model, "config", None)
    if function is None:
        raise RequestError(f"expected loss= for {type(model).__name__}, which has no loss_function of transformers")
    if num_items is not None and "num_items_in_batch" not in signature(fixed_cross_entropy).parameters:
        raise broken_promise("transformers", "divide losses by `num_items_in_batch`")
    loss: Tensor = function(
        logits=outputs.logits,
        pooled_logits=outputs.logits,  # of classifiers, whose outputs have no others
        labels=labels,
        vocab_size=outputs.logits.shape[-1],
        config=config,
        num_items_in_batch=num_items,
    )
    share = 1 if num_items is None else items_of_rows(model, labels).sum() / num_items
    if getattr(config, "problem_type", None) in _MEANS:
        loss = loss * share
    balance: Tensor | None = getattr(outputs, "aux_loss", None)  # of a router between experts
    if balance is not None:
        loss = loss + config.router_aux_loss_coef * balance.to(loss.device) * share
    elif getattr(outputs, "router_logits", None) is not None and hasattr(config, "router_aux_loss_coef"):
        raise broken_promise("transformers", f"have {type(model).__name__} return `aux_loss` with `router_logits`")
    return loss


def items_of_rows(model: nn.Module, labels: Tensor) -> Tensor:
    """``[rows]``: how many items Trainer counts in each row, by the model's kind of loss.

    For a classifier 1, or 0 where its label is left out. For a language model its labels from the second on, which are
    those that are predicted; but all of its labels where the model's class names no loss (GPT-2's does not): Trainer
    does not know then that the first is never predicted.
    """
    shifts = LOSS_MAPPING.get(getattr(model, "loss_type", None)) is ForCausalLMLoss
    counted = labels[:, 1:] if shifts and labels.ndim == 2 else labels
    return torch.as_tensor(counted != _IGNORED).reshape(len(labels), -1).sum(1)
