"""Tasks to fine-tune on: SuperGLUE's as classification, and preferences; one template each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from rectilinear.data.task_files import Line
from rectilinear.errors import RequestError
from rectilinear.finetuning.metrics import MetricName


class Question(NamedTuple):
    """Texts that are judged together, and the right answer.

    Attributes:
        texts: one that is to be given a label, or one for each choice.
        answer: index of that label, or of the right choice.
        group: questions of one group depend on one another, such as those about one passage.
    """

    texts: tuple[str, ...]
    answer: int
    group: int


#: Texts and answer of each question that an object of the data asks.
Template = Callable[[Line], Iterator[tuple[tuple[str, ...], int]]]

_TRUTH = (False, True)
_CLAIMS = ("entailment", "contradiction", "neutral")


def _boolq(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    yield (f"{line.get('passage', str)}\n{line.get('question', str)}?",), line.one_of("label", _TRUTH)


def _cb(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    yield (f"{line.get('premise', str)}\n{line.get('hypothesis', str)}",), line.one_of("label", _CLAIMS)


def _copa(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    premise, link = line.get("premise", str), ("because", "so")[line.one_of("question", ("cause", "effect"))]
    texts = tuple(f"{premise}\n{link}: {line.get(choice, str)}" for choice in ("choice1", "choice2"))
    yield texts, line.one_of("label", (0, 1))


def _multirc(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    passage = line.inside(line.get("passage", dict), "passage")
    for asked in passage.get("questions", list):
        question = passage.inside(asked, "questions")
        for given in question.get("answers", list):
            answer = question.inside(given, "answers")
            parts = (passage.get("text", str), question.get("question", str), answer.get("text", str))
            yield ("\n".join(parts),), answer.one_of("label", (0, 1))


def _rte(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    text = f"{line.get('premise', str)}\n{line.get('hypothesis', str)}"
    yield (text,), line.one_of("label", ("entailment", "not_entailment"))


def _wic(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    text = "\n".join(line.get(column, str) for column in ("sentence1", "sentence2", "word"))
    yield (text,), line.one_of("label", _TRUTH)


def _wsc(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    words, target = line.get("text", str).split(), line.inside(line.get("target", dict), "target")
    for span, mark in (("span1", "*"), ("span2", "_")):
        start, last = _find_span(words, target, span)
        words[start] = mark + words[start]
        words[last] += mark
    claim = f"{target.get('span2_text', str)}: {target.get('span1_text', str)}"
    yield (f"{' '.join(words)}\n{claim}",), line.one_of("label", _TRUTH)


def _reward(line: Line) -> Iterator[tuple[tuple[str, ...], int]]:
    prompt = line.get("prompt", str) if line.record.get("prompt") is not None else ""
    yield (prompt + line.get("chosen", str), prompt + line.get("rejected", str)), 0


def _find_span(words: list[str], target: Line, span: str) -> tuple[int, int]:
    """First and last word of a span; the place that the data say is off by one now and then."""
    wanted, index = _plain(target.get(f"{span}_text", str).split()), target.get(f"{span}_index", int)
    plain = _plain(words)
    starts = [i for i in range(len(words)) if wanted and plain[i : i + len(wanted)] == wanted]
    if not starts:
        raise RequestError(
            f"{target.where}: expected {span}_text among the words of the text, got {' '.join(wanted)!r}"
        )
    start = min(starts, key=lambda i: abs(i - index))
    return start, start + len(wanted) - 1


def _plain(words: list[str]) -> list[str]:
    """Words without case, punctuation, and marks of another span."""
    return [word.casefold().strip("*_.,;:!?'\"`()") for word in words]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        folder: of its files, as SuperGLUE has it; "" where there is none.
        labels: of a text, as the trained model's configuration has them.
        template: what the model reads.
        answers: values of ``label`` in the data, in the order of their indices on the Hub.
        metrics: to report.
        choices: whether the texts of a question are compared; else each is given a label.
    """

    folder: str
    labels: tuple[str, ...]
    template: Template
    answers: tuple[Any, ...] = ()
    metrics: tuple[MetricName, ...] = ("accuracy",)
    choices: bool = False

    @property
    def ranks(self) -> bool:
        """Whether a text has a score instead of labels, and pairs are trained on."""
        return len(self.labels) == 1


TASKS = {
    "boolq": Task("BoolQ", ("false", "true"), _boolq, _TRUTH),
    "cb": Task("CB", _CLAIMS, _cb, _CLAIMS, ("accuracy", "macro_f1")),
    "copa": Task("COPA", ("implausible", "plausible"), _copa, (0, 1), choices=True),
    "multirc": Task("MultiRC", ("false", "true"), _multirc, (0, 1), ("accuracy", "f1a")),
    "rte": Task("RTE", ("entailment", "not_entailment"), _rte, ("entailment", "not_entailment")),
    "wic": Task("WiC", ("false", "true"), _wic, _TRUTH),
    "wsc": Task("WSC", ("false", "true"), _wsc, _TRUTH),
    "reward": Task("", ("reward",), _reward, choices=True),
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in TASKS:
        likely = "".join(f"; try {near}" for near in get_close_matches(name, TASKS, 1, 0.5))
        raise RequestError(f"expected --task {', '.join(TASKS)}, got {name!r}{likely}")
    return TASKS[name]
