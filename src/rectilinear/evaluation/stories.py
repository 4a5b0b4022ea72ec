"""Stories that a model completes from held-out beginnings (as in TinyStories, arXiv 2305.07759)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.evaluation.judge_client import JUDGEMENTS
from rectilinear.evaluation.judge_record import JudgeReport, Story
from rectilinear.evaluation.settings import Stories
from rectilinear.models.completion import complete
from rectilinear.models.find_blocks import find_blocks, width_of
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.models.records import record_environment, record_model
from rectilinear.progress import Progress
from rectilinear.publish import stage
from rectilinear.results import DataRecord
from rectilinear.runs import write_request
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.sources import open_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    tokenizer = origin.tokenizer()
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
    about = {
        "asked": request,
        "judge": None,
        "model": record_model(model, origin, find_blocks(model), width_of(model.config)),
        "data": data,
        "environment": record_environment(model),
        "warnings": loading_warnings(model),
    }
    with stage(out, stale=[JUDGEMENTS, JudgeReport.file_name]) as folder:
        write_request(folder / REQUEST, about)
        lines = "".join(story.model_dump_json() + "\n" for story in written)
        (folder / STORIES).write_text(lines, encoding="utf-8")


def read_stories(out: Path) -> list[Story]:
    """The stories of a run."""
    lines = (out / STORIES).read_text(encoding="utf-8").split("\n")  # texts may have other ends of lines in them
    return [Story.model_validate_json(line) for line in lines if line]


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
