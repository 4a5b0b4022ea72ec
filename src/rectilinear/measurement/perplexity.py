"""How well a model predicts text: the loss of each token given those before it in its row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rectilinear.errors import JobError, RequestError
from rectilinear.intervals import mean_over_groups
from rectilinear.models.logits import row_logits
from rectilinear.models.running import evaluating
from rectilinear.models.walk import through_the_blocks
from rectilinear.progress import Progress
from rectilinear.ranks import current

# Logits that are in float32 at once: 64 MiB of them, and as much for their logarithms.
_VALUES = 2**24


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of groups of tokens that depend on each other: of rows, or of documents.

    Attributes:
        sums: ``[groups]`` float64 on the CPU, negative log-likelihood of each group's predicted tokens, in nats.
        sizes: ``[groups]`` int64, how many these are.
    """

    sums: Tensor
    sizes: Tensor

    def mean(self) -> tuple[float, float | None]:
        """Loss of a token, and its standard error with the groups as clusters; None for a single one."""
        return mean_over_groups(self.sums.numpy(), self.sizes.numpy())

    def minus(self, other: Losses) -> Losses:
        """How much larger losses are than others of the same tokens."""
        return Losses(self.sums - other.sums, self.sizes)


@dataclass(frozen=True, eq=False)
class Perplexity:
    """How well a model predicts rows of text.

    Attributes:
        rows: losses by row.
        documents: losses by document of the text, which may be longer or shorter than a row; None where not known.
    """

    rows: Losses
    documents: Losses | None = None

    @property
    def clusters(self) -> Losses:
        """What errors are over: documents, as neighbouring rows share them; rows where it is all one, or not known."""
        return self.documents if self.documents and len(self.documents.sums) > 1 else self.rows

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int(self.rows.sizes.sum())

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return float(self.rows.sums.sum()) / self.tokens

    @property
    def stderr(self) -> float | None:
        """Standard error of the loss, with the `clusters` as independent; None for a single one."""
        return self.clusters.mean()[1]

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite beyond the range of float64."""
        return exponential(self.loss)

    def minus(self, other: Perplexity) -> tuple[float, float | None]:
        """How much larger this loss is than another on the same rows, and the standard error of that; see `changes`."""
        return self.changes(other).mean()

    def changes(self, other: Perplexity) -> Losses:
        """How much larger losses are than another's on the same rows, by the clusters that both have.

        How hard a document is moves both losses alike and drops out: the error is that of the differences of clusters.

        Raises:
            ValueError: rows of another number or length.
        """
        one, two = self.rows.sizes, other.rows.sizes
        if len(one) != len(two) or bool((one != two).any()):
            raise ValueError(f"expected the same rows, got {len(one)} and {len(two)}, or other lengths")
        mine, theirs = self.clusters, other.clusters
        alike = len(mine.sizes) == len(theirs.sizes) and bool((mine.sizes == theirs.sizes).all())
        return mine.minus(theirs) if alike else self.rows.minus(other.rows)


def measure_perplexity(
    model: nn.Module,
    ids: Tensor,
    batch_size: int = 8,
    progress: Progress | None = None,
    *,
    documents: Tensor | None = None,
    bos: int | None = None,
) -> Perplexity:
    """The loss of a causal language model on rows of tokens.

    Every token but the first of a row, and but BOS where rows begin with it, is predicted from those before it in the
    row. The model's mode is left as it was.

    Args:
        model: any module that takes ids and returns an object with ``logits`` ``[rows, seq_len, vocabulary]``.
        ids: ``[rows, seq_len]`` int64.
        batch_size: rows in a forward pass.
        progress: called with ("rows", done, total).
        documents: ``[rows, seq_len]`` int32, which document each token is of; None where that is not known.
        bos: id of the token that rows begin with; None where they begin wherever they were cut.

    Raises:
        RequestError: nothing to predict, or the model gives no logits.
        JobError: a loss that is not finite.
    """
    if ids.ndim != 2 or not len(ids) or ids.shape[1] < 2:
        raise RequestError(f"expected rows of at least 2 tokens, got {[*ids.shape]}; try a larger `seq_len`")
    which = predicted(ids, bos)
    if not which.any():
        raise RequestError("expected tokens to predict, got nothing but BOS; try more text")
    batches = torch.split(ids, batch_size)
    losses = _losses_of(model, batches, progress).where(which, 0.0)
    groups = None if documents is None else _by_document(losses, which, documents[:, 1:].long() - documents.min())
    return Perplexity(Losses(losses.sum(1), which.sum(1)), groups)


def _losses_of(model: nn.Module, batches: Sequence[Tensor], progress: Progress | None) -> Tensor:
    """``[rows, seq_len - 1]`` float64 on the CPU: losses of all tokens but the first ones.

    Processes that share a job run some of the batches each.
    """
    ranks = current()
    own = ranks.share(len(batches))
    first, end = (sum(map(len, batches[:number])) for number in (own.start, own.stop))
    losses, done = list[Tensor](), first
    with evaluating(model), torch.no_grad(), through_the_blocks(model, batches, own) as resumed:
        for number in own:
            with resumed(number):
                logits = row_logits(model, batches[number])
            losses.append(token_losses(logits, batches[number]).cpu().double())
            for row, loss in enumerate(losses[-1].sum(1).tolist(), done):
                if not math.isfinite(loss):
                    hint = "; try `dtype=float32`" if logits.dtype.itemsize < 4 else ""
                    raise JobError(f"expected a finite loss, got {loss} at row {row} of the text{hint}")
            done += len(batches[number])
            if progress:
                progress("rows", done - first, end - first)
    return torch.cat([each for part in ranks.gather(losses) for each in part])


def _by_document(losses: Tensor, which: Tensor, documents: Tensor) -> Losses:
    """Losses of tokens, those that count, added up by document."""
    sums, sizes = (torch.zeros(int(documents.max()) + 1, dtype=dtype) for dtype in (torch.float64, torch.int64))
    sums.index_add_(0, documents.flatten(), losses.flatten())
    sizes.index_add_(0, documents.flatten(), which.flatten().long())
    return Losses(sums[sizes > 0], sizes[sizes > 0])


def predicted(ids: Tensor, bos: int | None = None) -> Tensor:
    """Which tokens but the first of rows ``[rows, seq_len]`` are predicted: ``[rows, seq_len - 1]`` bool on the CPU."""
    return torch.ones(ids[:, 1:].shape, dtype=torch.bool) if bos is None else ids[:, 1:].cpu() != bos


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
