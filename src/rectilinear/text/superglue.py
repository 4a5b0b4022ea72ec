"""SuperGLUE's own files, line by line, as the Hub has them: labels as indices, spans and answers not nested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rectilinear.text.task_files import Line

#: A row of the Hub, by column.
Row = dict[str, Any]


@dataclass(frozen=True)
class SuperGlueFiles:
    """A task's files.

    Attributes:
        folder: that has them.
        answers: values of ``label``, in the order of their indices; () where a line has none.
        rows: of a line. Raises `RequestError` for a column that is missing, or has something else in it.
    """

    folder: str
    answers: tuple[Any, ...]
    rows: Callable[[Line], Iterator[Row]]


_TRUTH = (False, True)
_CLAIMS = ("entailment", "contradiction", "neutral")
_ENTAILMENT = ("entailment", "not_entailment")
_PLACES = (0, 1)


def texts_of(line: Line, *columns: str) -> Row:
    """Columns of text."""
    return {column: line.get(column, str) for column in columns}


def _boolq(line: Line) -> Iterator[Row]:
    yield {**texts_of(line, "passage", "question"), "label": line.one_of("label", _TRUTH)}


def _cb(line: Line) -> Iterator[Row]:
    yield {**texts_of(line, "premise", "hypothesis"), "label": line.one_of("label", _CLAIMS)}


def _copa(line: Line) -> Iterator[Row]:
    line.one_of("question", ("cause", "effect"))
    texts = texts_of(line, "premise", "question", "choice1", "choice2")
    yield {**texts, "label": line.one_of("label", _PLACES)}


def _multirc(line: Line) -> Iterator[Row]:
    passage = line.inside(line.get("passage", dict), "passage")
    for asked in passage.get("questions", list):
        question = passage.inside(asked, "questions")
        for given in question.get("answers", list):
            answer = question.inside(given, "answers")
            yield {
                "paragraph": passage.get("text", str),
                "question": question.get("question", str),
                "answer": answer.get("text", str),
                "label": answer.one_of("label", _PLACES),
            }


def _record(line: Line) -> Iterator[Row]:
    passage = line.inside(line.get("passage", dict), "passage")
    text = passage.get("text", str)
    spans = [passage.inside(entity, "entities") for entity in passage.get("entities", list)]
    entities = sorted({text[span.get("start", int) : span.get("end", int) + 1] for span in spans})  # the end is inside
    for asked in line.get("qas", list):
        question = line.inside(asked, "qas")
        answers = {question.inside(answer, "answers").get("text", str) for answer in question.get("answers", list)}
        yield {"passage": text, "query": question.get("query", str), "entities": entities, "answers": sorted(answers)}


def _rte(line: Line) -> Iterator[Row]:
    yield {**texts_of(line, "premise", "hypothesis"), "label": line.one_of("label", _ENTAILMENT)}


def _wic(line: Line) -> Iterator[Row]:
    places = {name: line.get(name, int) for name in ("start1", "end1", "start2", "end2") if name in line.record}
    yield {**texts_of(line, "word", "sentence1", "sentence2"), **places, "label": line.one_of("label", _TRUTH)}


def _wsc(line: Line) -> Iterator[Row]:
    target = line.inside(line.get("target", dict), "target")
    spans = {f"{span}_index": target.get(f"{span}_index", int) for span in ("span1", "span2")}
    texts = {**texts_of(line, "text"), **texts_of(target, "span1_text", "span2_text")}
    yield {**texts, **spans, "label": line.one_of("label", _TRUTH)}


#: By the Hub's name of the task.
SUPERGLUE = {
    "boolq": SuperGlueFiles("BoolQ", _TRUTH, _boolq),
    "cb": SuperGlueFiles("CB", _CLAIMS, _cb),
    "copa": SuperGlueFiles("COPA", _PLACES, _copa),
    "multirc": SuperGlueFiles("MultiRC", _PLACES, _multirc),
    "record": SuperGlueFiles("ReCoRD", (), _record),
    "rte": SuperGlueFiles("RTE", _ENTAILMENT, _rte),
    "wic": SuperGlueFiles("WiC", _TRUTH, _wic),
    "wsc": SuperGlueFiles("WSC", _TRUTH, _wsc),
}
