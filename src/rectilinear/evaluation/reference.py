"""How likely a model finds what others wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rectilinear.errors import RequestError
from rectilinear.evaluation.bootstrap import mean_over_groups
from rectilinear.evaluation.judge_record import ReferenceLoss, Story
from rectilinear.evaluation.record import finite
from rectilinear.measurement.perplexity import exponential
from rectilinear.models.capture import evaluating
from rectilinear.models.completion import ends_texts
from rectilinear.models.find_blocks import context_of
from rectilinear.models.logits import row_logits
from rectilinear.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_reference(
    name: str,
    module: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    stories: Sequence[Story],
    progress: Progress,
) -> ReferenceLoss:
    """Loss of completions, and of the texts' own endings, after the beginnings, under another model.

    Args:
        name: of the model.
        module: a causal language model.
        tokenizer: its own.
        stories: with completions of words; those without any are left out.
        progress: called with (stage, done, total).

    Raises:
        RequestError: no completion has a token that fits into the context.
    """
    written: list[tuple[float, int]] = []
    own: list[tuple[float, int]] = []
    with evaluating(module):
        for done, story in enumerate(stories, 1):
            written.append(_loss_after(module, tokenizer, story.beginning, story.completion))
            own.append(_loss_after(module, tokenizer, story.beginning, story.ending))
            progress("reference", done, len(stories))
    (loss, stderr), (theirs, _) = _mean(written), _mean(own)
    return ReferenceLoss(
        model=name,
        completions=loss,
        completions_stderr=stderr,
        perplexity=finite(exponential(loss)),
        endings=theirs,
        tokens=sum(tokens for _, tokens in written),
    )


def _loss_after(module: nn.Module, tokenizer: PreTrainedTokenizerBase, beginning: str, text: str) -> tuple[float, int]:
    """Summed loss in nats of a text's tokens after a beginning, and how many these are."""
    without_end = -1 if ends_texts(tokenizer) else None
    first, whole = (tokenizer(words)["input_ids"][:without_end] for words in (beginning, beginning + text))
    # Where words merge across the border, the token there is the text's.
    start = next((place for place, pair in enumerate(zip(first, whole, strict=False)) if len({*pair}) > 1), len(first))
    context = context_of(getattr(module, "config", None))
    ids = torch.tensor([whole[:context]])
    start = max(1, start)
    if ids.shape[1] <= start:
        return 0.0, 0
    logits = row_logits(module, ids)[0, start - 1 : -1].float()
    targets = ids[0, start:].to(logits.device)
    return float(cross_entropy(logits, targets, reduction="sum")), len(targets)


def _mean(losses: Sequence[tuple[float, int]]) -> tuple[float, float | None]:
    """Mean loss of a token, and its standard error over stories."""
    some = [(loss, tokens) for loss, tokens in losses if tokens]
    if not some:
        raise RequestError("expected stories with a token after the beginning that fits into the reference's context")
    return mean_over_groups(*zip(*some, strict=True))
