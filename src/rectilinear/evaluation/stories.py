"""Stories that a model completes (as in TinyStories, arXiv 2305.07759), and what is measured of them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rectilinear.errors import JobError, RequestError
from rectilinear.evaluation.bootstrap import mean
from rectilinear.evaluation.judge_record import JudgeReport, ReferenceLoss, RunRecord, Story, TextMeasures
from rectilinear.evaluation.judgements import JUDGEMENTS
from rectilinear.evaluation.record import finite
from rectilinear.evaluation.settings import Stories
from rectilinear.intervals import mean_over_groups
from rectilinear.measurement.perplexity import exponential
from rectilinear.models.completion import complete, ends_texts
from rectilinear.models.describe import record_environment, record_model
from rectilinear.models.find_blocks import context_of, find_blocks, width_of
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.logits import row_logits
from rectilinear.models.origin import Origin
from rectilinear.models.running import evaluating
from rectilinear.progress import Progress
from rectilinear.publish import stage
from rectilinear.results import DataRecord
from rectilinear.runs import write_request
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.sources import open_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Files of a run, beside ``judge.json`` and the answers so far: what was asked for, and the stories.
REQUEST, STORIES = "request.json", "stories.jsonl"


def write_stories(origin: Origin, stories: Stories, request: dict[str, Any], out: Path, progress: Progress) -> None:
    """Have a model complete the beginnings, and keep them in a folder with what they came from.

    Args:
        origin: of the model.
        stories: which, and how.
        request: all that they depend on, to be kept with them.
        out: the folder; results of an earlier run in it are removed.
        progress: called with ("stories", done, total).

    Raises:
        RequestError: too few documents, a model that does not generate.
    """
    begun = _find_beginnings(stories)
    origin.skeleton()
    tokenizer = origin.tokenizer
    model: PreTrainedModel = origin.load(head=True)  # type: ignore[assignment]
    if not hasattr(model, "generate"):
        raise RequestError(f"expected a model that generates, got {type(model).__name__}")
    written: list[Story] = []
    for start in range(0, len(begun), stories.batch_size):
        batch = begun[start : start + stories.batch_size]
        texts = complete(
            model,
            tokenizer,
            [beginning for beginning, _ in batch],
            max_new_tokens=stories.max_new_tokens,
            temperature=stories.temperature,
            seed=stories.seed + start,
        )
        for (beginning, rest), text in zip(batch, texts, strict=True):
            ending = _first_words(rest, len(text.split()))
            written.append(Story(index=len(written), beginning=beginning, ending=ending, completion=text))
        progress("stories", len(written), len(begun))
    data = DataRecord(
        source=stories.text,
        fingerprint=fingerprint([text for both in begun for text in both]),
        tokens=sum(len(tokenizer(beginning)["input_ids"]) for beginning, _ in begun),
        rows=len(begun),
        seq_len=None,
    )
    about = RunRecord(
        asked=request,
        judge=None,
        model=record_model(model, origin, find_blocks(model), width_of(model.config)),
        data=data,
        environment=record_environment(model),
        warnings=tuple(loading_warnings(model)),
    )
    with stage(out, stale=[JUDGEMENTS, JudgeReport.file_name]) as folder:
        write_request(folder / REQUEST, about.model_dump(mode="json"))
        lines = "".join(story.model_dump_json() + "\n" for story in written)
        (folder / STORIES).write_text(lines, encoding="utf-8")


def read_run(out: Path) -> tuple[RunRecord, list[Story]]:
    """What a run noted, and its stories.

    Raises:
        RequestError: the folder has no such files, or something else in them.
    """
    file = REQUEST
    try:
        run = RunRecord.model_validate_json((out / REQUEST).read_bytes())
        file = STORIES
        lines = (out / STORIES).read_bytes().split(b"\n")  # texts may have other ends of lines in them
        return run, [Story.model_validate_json(line) for line in lines if line]
    except (OSError, ValueError):  # perhaps not even text
        raise RequestError(
            f"expected a run of rectilinear judge in {out}, got an unreadable {file}; try another `out`, or `overwrite`"
        ) from None


def _find_beginnings(stories: Stories) -> list[tuple[str, str]]:
    """The first words of documents that are long enough, and the rest of these, both as they are written."""
    source = stories.model_dump(include={"column", "config", "split", "seed"})
    words = stories.beginning_words

    def split() -> Iterator[tuple[str, str]]:
        for document in map(str.strip, open_text(stories.text, **source)):
            if len(document.split()) >= 2 * words:
                beginning = _first_words(document, words)
                yield beginning, document[len(beginning) :]

    begun = [*islice(split(), stories.count)]
    if len(begun) < stories.count:
        raise RequestError(
            f"expected {stories.count} documents of at least {2 * words} words in {stories.text}, got {len(begun)}; "
            "try a smaller `count` or `beginning_words`"
        )
    return begun


def _first_words(text: str, words: int) -> str:
    """The beginning of a text, up to the end of a word."""
    found = re.match(rf"(?:\s*\S+){{0,{words}}}", text)
    return found[0] if found and words else ""


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
    loss = float(cross_entropy(logits, targets, reduction="sum"))
    if not math.isfinite(loss):
        raise JobError(f"expected a finite loss of a story under the reference, got {loss}; try `dtype=float32`")
    return loss, len(targets)


def _mean_loss(losses: Sequence[tuple[float, int]]) -> tuple[float, float | None]:
    """Mean loss of a token, and its standard error over stories."""
    some = [(loss, tokens) for loss, tokens in losses if tokens]
    if not some:
        raise RequestError("expected stories with a token after the beginning that fits into the reference's context")
    return mean_over_groups(*zip(*some, strict=True))
