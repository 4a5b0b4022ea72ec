"""Tasks to fine-tune on: SuperGLUE's as classification, and preferences; one template each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from rectilinear.errors import RequestError
from rectilinear.text.task_files import Line
from rectilinear.training.finetuning.metrics import MetricName


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


#: Texts and answer of the question that a row of the Hub asks.
Template = Callable[[Line], tuple[tuple[str, ...], int]]


def _label(line: Line, labels: int = 2) -> int:
    return line.one_of("label", tuple(range(labels)))


def _boolq(line: Line) -> tuple[tuple[str, ...], int]:
    return (f"{line.get('passage', str)}\n{line.get('question', str)}?",), _label(line)


def _cb(line: Line) -> tuple[tuple[str, ...], int]:
    return (f"{line.get('premise', str)}\n{line.get('hypothesis', str)}",), _label(line, 3)


def _copa(line: Line) -> tuple[tuple[str, ...], int]:
    premise, link = line.get("premise", str), ("because", "so")[line.one_of("question", ("cause", "effect"))]
    texts = tuple(f"{premise}\n{link}: {line.get(choice, str)}" for choice in ("choice1", "choice2"))
    return texts, _label(line)


def _multirc(line: Line) -> tuple[tuple[str, ...], int]:
    return ("\n".join(line.get(column, str) for column in ("paragraph", "question", "answer")),), _label(line)


def _rte(line: Line) -> tuple[tuple[str, ...], int]:
    return (f"{line.get('premise', str)}\n{line.get('hypothesis', str)}",), _label(line)


def _wic(line: Line) -> tuple[tuple[str, ...], int]:
    return ("\n".join(line.get(column, str) for column in ("sentence1", "sentence2", "word")),), _label(line)


def _wsc(line: Line) -> tuple[tuple[str, ...], int]:
    words = line.get("text", str).split()
    for span, mark in (("span1", "*"), ("span2", "_")):
        start, last = _find_span(words, line, span)
        words[start] = mark + words[start]
        words[last] += mark
    claim = f"{line.get('span2_text', str)}: {line.get('span1_text', str)}"
    return (f"{' '.join(words)}\n{claim}",), _label(line)


def _reward(line: Line) -> tuple[tuple[str, ...], int]:
    prompt = line.get("prompt", str) if line.record.get("prompt") is not None else ""
    return (prompt + line.get("chosen", str), prompt + line.get("rejected", str)), 0


def _find_span(words: list[str], line: Line, span: str) -> tuple[int, int]:
    """First and last word of a span; the place that the data say is off by one now and then."""
    wanted, index = _plain(line.get(f"{span}_text", str).split()), line.get(f"{span}_index", int)
    plain = _plain(words)
    starts = [i for i in range(len(words)) if wanted and plain[i : i + len(wanted)] == wanted]
    if not starts:
        raise RequestError(f"{line.where}: expected {span}_text among the words of the text, got {' '.join(wanted)!r}")
    start = min(starts, key=lambda i: abs(i - index))
    return start, start + len(wanted) - 1


def _plain(words: list[str]) -> list[str]:
    """Words without case, punctuation, and marks of another span."""
    return [word.casefold().strip("*_.,;:!?'\"`()") for word in words]


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        labels: of a text, as the trained model's configuration has them.
        template: what the model reads.
        metrics: to report.
        choices: whether the texts of a question are compared; else each is given a label.
    """

    labels: tuple[str, ...]
    template: Template
    metrics: tuple[MetricName, ...] = ("accuracy",)
    choices: bool = False

    @property
    def ranks(self) -> bool:
        """Whether a text has a score instead of labels, and pairs are trained on."""
        return len(self.labels) == 1


#: By name, which but for ``reward`` is SuperGLUE's.
TASKS = {
    "boolq": Task(("false", "true"), _boolq),
    "cb": Task(("entailment", "contradiction", "neutral"), _cb, ("accuracy", "macro_f1")),
    "copa": Task(("implausible", "plausible"), _copa, choices=True),
    "multirc": Task(("false", "true"), _multirc, ("accuracy", "f1a")),
    "rte": Task(("entailment", "not_entailment"), _rte),
    "wic": Task(("false", "true"), _wic),
    "wsc": Task(("false", "true"), _wsc),
    "reward": Task(("reward",), _reward, choices=True),
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
