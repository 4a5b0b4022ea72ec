"""What can be said of stories without a judge: how various their words are, and how likely another model finds them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rectilinear.errors import RequestError
from rectilinear.evaluation.bootstrap import mean, mean_over_groups
from rectilinear.evaluation.judge_record import ReferenceLoss, Story, TextMeasures
from rectilinear.evaluation.record import finite
from rectilinear.measurement.perplexity import exponential
from rectilinear.models.capture import evaluating
from rectilinear.models.completion import ends_texts
from rectilinear.models.find_blocks import context_of
from rectilinear.models.logits import row_logits
from rectilinear.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def measure_texts(texts: Sequence[str]) -> TextMeasures:
    """Diversity and repetition of texts.

    Distinct n-grams become a smaller share the more text there is: compare texts of like length and number.
    """
    words = [re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower()) for text in texts]
    repeated = [1 - len(counts) / counts.total() for text in words if (counts := Counter(_runs(text, 4)))]

    def distinct(length: int) -> float | None:
        counts = Counter(run for text in words for run in _runs(text, length))
        return len(counts) / counts.total() if counts else None

    return TextMeasures(
        texts=len(texts),
        words=sum(map(len, words)) / max(1, len(texts)),
        distinct_1=distinct(1),
        distinct_2=distinct(2),
        distinct_3=distinct(3),
        repetition=mean(repeated) if repeated else None,
    )


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def measure_reference(
    name: str, module: nn.Module, tokenizer: PreTrainedTokenizerBase, stories: Sequence[Story], progress: Progress
) -> ReferenceLoss:
    """Loss of completions, and of the texts' own endings, after the beginnings, under another causal language model.

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
    (loss, stderr), (theirs, _) = _mean_loss(written), _mean_loss(own)
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
    start = max(1, start)
    ids = torch.tensor([whole[: context_of(getattr(module, "config", None))]])
    if ids.shape[1] <= start:
        return 0.0, 0
    logits = row_logits(module, ids)[0, start - 1 : -1].float()
    targets = ids[0, start:].to(logits.device)
    return float(cross_entropy(logits, targets, reduction="sum")), len(targets)


def _mean_loss(losses: Sequence[tuple[float, int]]) -> tuple[float, float | None]:
    """Mean loss of a token, and its standard error over stories."""
    some = [(loss, tokens) for loss, tokens in losses if tokens]
    if not some:
        raise RequestError("expected stories with a token after the beginning that fits into the reference's context")
    return mean_over_groups(*zip(*some, strict=True))
