"""SuperGLUE's own files, line by line, as the Hub has them: labels as indices, spans and answers not nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.text.lines import Line

#: Rows as the Hub has them, by column, from a line of a file.
Rows = Callable[[Line], Iterator[dict[str, Any]]]


@dataclass(frozen=True)
class Files:
    """The files of a task: the folder that has them, and the rows of a line."""

    folder: str
    rows: Rows

    def find(self, parent: Path) -> Path | None:
        """The folder in another one, whatever its case; None where there is none."""
        folders = sorted(child for child in parent.iterdir() if child.is_dir())
        return next((child for child in folders if child.name.casefold() == self.folder.casefold()), None)


def split_file(folder: Path, split: str) -> Path:
    """``SPLIT.jsonl`` in a folder; `RequestError` where there is none."""
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        there = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise RequestError(f"expected {file.name} in {folder}, got {there}")
    return file


_TRUTH, _PLACES = (False, True), (0, 1)


def _labelled(labels: tuple[Any, ...], *columns: str) -> Rows:
    """Columns of text, and the index of a label."""

    def rows(line: Line) -> Iterator[dict[str, Any]]:
        yield {**line.texts(*columns), "label": line.one_of("label", labels)}

    return rows


def _copa(line: Line) -> Iterator[dict[str, Any]]:
    line.one_of("question", ("cause", "effect"))
    yield from _labelled(_PLACES, "premise", "question", "choice1", "choice2")(line)


def _multirc(line: Line) -> Iterator[dict[str, Any]]:
    passage = line.part("passage")
    for question in passage.parts("questions"):
        for answer in question.parts("answers"):
            yield {
                "paragraph": passage.get("text", str),
                "question": question.get("question", str),
                "answer": answer.get("text", str),
                "label": answer.one_of("label", _PLACES),
            }


def _record(line: Line) -> Iterator[dict[str, Any]]:
    passage = line.part("passage")
    text, spans = passage.get("text", str), passage.parts("entities")
    entities = sorted({text[span.get("start", int) : span.get("end", int) + 1] for span in spans})  # the end is inside
    for question in line.parts("qas"):
        answers = sorted({answer.get("text", str) for answer in question.parts("answers")})
        yield {"passage": text, "query": question.get("query", str), "entities": entities, "answers": answers}


def _wic(line: Line) -> Iterator[dict[str, Any]]:
    places = {name: line.get(name, int) for name in ("start1", "end1", "start2", "end2") if name in line.record}
    yield {**line.texts("word", "sentence1", "sentence2"), **places, "label": line.one_of("label", _TRUTH)}


def _wsc(line: Line) -> Iterator[dict[str, Any]]:
    target = line.part("target")
    spans = {f"{span}_index": target.get(f"{span}_index", int) for span in ("span1", "span2")}
    texts = {**line.texts("text"), **target.texts("span1_text", "span2_text")}
    yield {**texts, **spans, "label": line.one_of("label", _TRUTH)}


#: By the Hub's name of the task.
SUPERGLUE = {
    "boolq": Files("BoolQ", _labelled(_TRUTH, "passage", "question")),
    "cb": Files("CB", _labelled(("entailment", "contradiction", "neutral"), "premise", "hypothesis")),
    "copa": Files("COPA", _copa),
    "multirc": Files("MultiRC", _multirc),
    "record": Files("ReCoRD", _record),
    "rte": Files("RTE", _labelled(("entailment", "not_entailment"), "premise", "hypothesis")),
    "wic": Files("WiC", _wic),
    "wsc": Files("WSC", _wsc),
}
