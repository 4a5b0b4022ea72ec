"""A penalty on the change from layer to layer, added to a model's loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.core.penalties import PenaltyKind, masked_mean, token_penalty
from rectilinear.errors import JobError, RequestError
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.stand_ins import PaddingMask, watch_padding
from rectilinear.models.trained import items_of_rows, task_loss
from rectilinear.training.settings import Regularization

#: Loss of a model's outputs and labels, as transformers' Trainer calls it: the sum over the items of
#: this batch, divided by the number of items in all batches of the optimizer step.
LossFunction = Callable[[Any, Tensor, Tensor | int], Tensor]


class Regularizer:
    """Adds ``strength`` times `rectilinear.layer_penalty` to a model's loss (arXiv 2405.12250).

    It reads the hidden states as they pass, before the final norm, by hooks on the blocks: nothing of the model
    changes, and nothing is kept that the backward pass would not keep. For transformers' Trainer it is the loss
    function, and in a loop of one's own a term::

        Trainer(model, arguments, ..., compute_loss_func=Regularizer(model, "cosine", 0.5))
        loss = model(**batch).loss + regularizer.strength * regularizer.penalty()

    Trainer's loss is a mean over the items of an optimizer step, however many batches and processes it is spread over,
    and so is the penalty: of each row the mean over its unmasked tokens, counted as often as Trainer counts items in
    the row. Where rows are full, this is the mean over unmasked tokens, which `penalty` is in any case. In evaluation
    there is no penalty, so that losses stay comparable. Works with gradient checkpointing, autocast, DDP and FSDP, not
    with `torch.nn.DataParallel`.

    Attributes:
        kind, strength: as given.
        last: the penalty of the last training batch, detached, before the strength; None before there was one.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: PenaltyKind = "cosine",
        strength: float = 0.5,
        *,
        embedding: bool = True,
        blocks: str | None = None,
        loss: LossFunction | None = None,
    ) -> None:
        """Start to watch a model.

        Args:
            model: the one that is trained, before it is wrapped for several processes.
            kind: ``"cosine"`` or ``"mse"``; see `rectilinear.core.penalties.PenaltyKind`.
            strength: factor of the penalty; at 0 there is none, and nothing is watched.
            embedding: whether the pair of the embedding and the first block's output counts.
            blocks: dotted path of the block stack; default: found by structure.
            loss: of the task, see `LossFunction`; default: the model's own.

        Raises:
            RequestError: a strength that is negative or not finite, another kind, no block stack.
        """
        if kind not in ("cosine", "mse"):
            raise RequestError(f"expected regularizer 'cosine' or 'mse', got {kind!r}")
        if not (math.isfinite(strength) and strength >= 0):
            raise RequestError(f"expected a regularizer strength of at least 0, got {strength}")
        self.kind, self.strength = kind, strength
        self.last: Tensor | None = None
        self._model, self._loss = model, loss
        self._first = 0 if embedding else 1
        self._padding = PaddingMask()
        self._tokens: Tensor | None = None
        self._hooks = ExitStack()
        if strength:
            stack = find_blocks(model, blocks)
            if len(stack) <= self._first:
                raise RequestError("expected two blocks or more where the embedding does not count, got one")
            self._hooks.callback(watch_padding(model, stack.path, self._padding).remove)
            self._hooks.enter_context(capture_blocks([*stack], self._note, copy=False))

    @classmethod
    def of(
        cls, model: nn.Module, settings: Regularization, blocks: str | None = None, loss: LossFunction | None = None
    ) -> Regularizer:
        """The penalty that settings ask for; of strength 0 where they ask for none."""
        if settings.regularizer == "none":
            return cls(model, strength=0, loss=loss)
        embedding = settings.penalize_embedding
        return cls(model, settings.regularizer, settings.strength, embedding=embedding, blocks=blocks, loss=loss)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a batch, with the penalty where gradients are taken: a ``compute_loss_func`` of Trainer.

        Raises:
            JobError: gradients are taken, but the model that ran is not the one that is watched.
        """
        items = items_of_rows(self._model, labels)
        num_items = items.sum() if num_items_in_batch is None else num_items_in_batch
        if self._loss:
            loss = self._loss(outputs, labels, num_items)
        else:
            loss = task_loss(self._model, outputs, labels, num_items_in_batch)
        if not self.strength or not torch.is_grad_enabled():
            return loss
        tokens, mask = self._take()
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.to(tokens.device)
        means = tokens.masked_fill(~real, 0).sum(1) / real.sum(1).clamp_min(1)
        penalty = (means * items.to(means)).sum() / num_items
        self.last = penalty.detach()
        return loss + self.strength * penalty.to(loss.device)

    def penalty(self) -> Tensor:
        """`rectilinear.layer_penalty` of the last forward pass, once, for a training loop of one's own.

        Raises:
            JobError: there was none with gradients, or the model that ran is not the one that is watched.
        """
        penalty = masked_mean(*self._take())
        self.last = penalty.detach()
        return penalty

    def remove(self) -> None:
        """Stop watching."""
        self._hooks.close()

    def _note(self, index: int, x: Tensor, y: Tensor) -> None:
        if index == 0:
            self._tokens = None
        if index < self._first or not torch.is_grad_enabled():
            return
        penalty = token_penalty(x, y, self.kind)
        self._tokens = penalty if self._tokens is None else self._tokens + penalty.to(self._tokens.device)

    def _take(self) -> tuple[Tensor, Tensor | None]:
        """``[rows, seq_len]`` penalties of the last forward pass, and which tokens are real; gone afterwards."""
        tokens, self._tokens = self._tokens, None
        if tokens is None:
            raise JobError(
                "expected a forward pass with gradients of the model that the regularizer watches, got none; "
                "try Regularizer(model) with the model that is trained"
            )
        return tokens, self._padding.of_last(tokens.shape[-1])
