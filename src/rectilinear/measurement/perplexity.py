"""How well a model predicts text: the loss of each token given those before it in its row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rectilinear.errors import JobError, RequestError
from rectilinear.models.logits import row_logits
from rectilinear.models.running import evaluating
from rectilinear.progress import Progress

# Logits that are in float32 at once: 64 MiB of them, and as much for their logarithms.
_VALUES = 2**24


@dataclass(frozen=True, eq=False)
class Perplexity:
    """How well a model predicts rows of text.

    Attributes:
        row_losses: ``[rows]`` float64 on the CPU, negative log-likelihood of each row's predicted tokens, in nats.
        row_tokens: predicted tokens of a row: all but its first.
    """

    row_losses: Tensor
    row_tokens: int

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return len(self.row_losses) * self.row_tokens

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return float(self.row_losses.sum()) / self.tokens

    @property
    def stderr(self) -> float | None:
        """Standard error of the loss, ``std(row means) / sqrt(rows)``; None for a single row.

        Rows are taken as clusters: tokens of one row depend on each other.
        """
        return _stderr(self.row_losses / self.row_tokens)

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite beyond the range of float64."""
        return exponential(self.loss)

    def minus(self, other: Perplexity) -> tuple[float, float | None]:
        """How much larger this loss is than another on the same rows, and the standard error of that.

        How hard a row is moves both losses alike and drops out: the error is that of the mean of the rows' differences.

        Raises:
            ValueError: rows of another number or length.
        """
        if (len(self.row_losses), self.row_tokens) != (len(other.row_losses), other.row_tokens):
            raise ValueError(f"expected the same rows, got {len(self.row_losses)} and {len(other.row_losses)}")
        differences = (self.row_losses - other.row_losses) / self.row_tokens
        return float(differences.mean()), _stderr(differences)


def measure_perplexity(
    model: nn.Module, ids: Tensor, batch_size: int = 8, progress: Progress | None = None
) -> Perplexity:
    """The loss of a causal language model on rows of tokens.

    Every token but the first of a row is predicted from those before it in the row. The model's mode is left as it was.

    Args:
        model: any module that takes ids and returns an object with ``logits`` ``[rows, seq_len, vocabulary]``.
        ids: ``[rows, seq_len]`` int64.
        batch_size: rows in a forward pass.
        progress: called with ("rows", done, total).

    Raises:
        RequestError: nothing to predict, or the model gives no logits.
        JobError: a loss that is not finite.
    """
    if ids.ndim != 2 or not len(ids) or ids.shape[1] < 2:
        raise RequestError(f"expected rows of at least 2 tokens, got {[*ids.shape]}; try a larger `seq_len`")
    sums: list[Tensor] = []
    done = 0
    with evaluating(model), torch.no_grad():
        for batch in torch.split(ids, batch_size):
            logits = row_logits(model, batch)
            sums.append(token_losses(logits, batch).cpu().double().sum(1))
            for row, loss in enumerate(sums[-1].tolist(), done):
                if not math.isfinite(loss):
                    hint = "; try `dtype=float32`" if logits.dtype.itemsize < 4 else ""
                    raise JobError(f"expected a finite loss, got {loss} at row {row} of the text{hint}")
            done += len(batch)
            if progress:
                progress("rows", done, len(ids))
    return Perplexity(torch.cat(sums), ids.shape[1] - 1)


def token_losses(logits: Tensor, ids: Tensor, values: int = _VALUES) -> Tensor:
    """Negative log-likelihood in nats of every token but a row's first.

    Args:
        logits: ``[rows, seq_len, vocabulary]``, those at a position for the token after it.
        ids: ``[rows, seq_len]`` int64.
        values: how many logits to have in float32 at once; as many positions as that makes, or one.

    Returns:
        ``[rows, seq_len - 1]`` float32 (float64 for float64 logits), on the logits' device.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    positions = max(1, values // (logits.shape[0] * logits.shape[2]))
    parts = (torch.split(part, positions, 1) for part in (logits[:, :-1], ids[:, 1:].to(logits.device)))
    losses = [
        cross_entropy(part.to(exact).flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        for part, targets in zip(*parts, strict=True)
    ]
    return torch.cat(losses, 1)


def exponential(value: float) -> float:
    """``exp(value)``; infinite beyond the range of float64."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _stderr(values: Tensor) -> float | None:
    return float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else None
