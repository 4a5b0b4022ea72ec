"""Tasks, SuperGLUE as classification and preferences: what a model reads, and the questions of files and of the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from string import Formatter
from typing import Literal, NamedTuple

from rectilinear.errors import RequestError, try_nearest
from rectilinear.text.lines import Line, read_lines
from rectilinear.text.sources import is_path, read_hub
from rectilinear.text.superglue import SUPERGLUE, split_file

#: ``accuracy``: share of answers that are right. ``macro_f1``: mean over labels of their F1. ``f1a``: F1 of the
#: label "true", over the answers to all questions (MultiRC's).
MetricName = Literal["accuracy", "macro_f1", "f1a"]

#: Where SuperGLUE is on the Hub.
HUB_ID = "aps/super_glue"

# Rows that depend on one another, as questions about one passage do.
_Unit = list[Line]

# Of a single file of preferences, every tenth pair is held out.
_HELD_OUT_EVERY = 10


class Question(NamedTuple):
    """Texts that are judged together, and the right answer."""

    texts: tuple[str, ...]  # one that is to be given a label, or one for each choice
    answer: int  # index of that label, or of the right choice
    group: int  # questions of one group depend on one another, such as those about one passage


@dataclass(frozen=True)
class Task:
    """What a model is asked, and how its answers are scored."""

    labels: tuple[str, ...]  # of a text, as the trained model's configuration has them
    texts: Callable[[Line], tuple[str, ...]]  # what the model reads, from a row of the Hub
    metrics: tuple[MetricName, ...] = ("accuracy",)
    choices: bool = False  # whether the texts of a question are compared; else each is given a label

    @property
    def ranks(self) -> bool:
        """Whether a text has a score instead of labels, and pairs are trained on."""
        return len(self.labels) == 1

    @property
    def answers(self) -> int:
        """Number of possible answers."""
        return 2 if self.choices else len(self.labels)

    def question(self, line: Line, group: int) -> Question:
        """The question that a row of the Hub asks; the better text of a pair comes first."""
        texts = self.texts(line)
        return Question(texts, 0 if self.ranks else line.one_of("label", tuple(range(self.answers))), group)


def _filled(template: str) -> Callable[[Line], tuple[str, ...]]:
    """One text, with columns in the places that have their names."""
    columns = [column for _, column, _, _ in Formatter().parse(template) if column]
    return lambda line: (template.format(**line.texts(*columns)),)


def _copa(line: Line) -> tuple[str, ...]:
    premise, link = line.get("premise", str), ("because", "so")[line.one_of("question", ("cause", "effect"))]
    return tuple(f"{premise}\n{link}: {line.get(choice, str)}" for choice in ("choice1", "choice2"))


def _wsc(line: Line) -> tuple[str, ...]:
    words = line.get("text", str).split()
    for span, mark in (("span1", "*"), ("span2", "_")):
        start, last = _find_span(words, line, span)
        words[start] = mark + words[start]
        words[last] += mark
    return (f"{' '.join(words)}\n{line.get('span2_text', str)}: {line.get('span1_text', str)}",)


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


def _reward(line: Line) -> tuple[str, ...]:
    prompt = line.get("prompt", str) if line.record.get("prompt") is not None else ""
    return prompt + line.get("chosen", str), prompt + line.get("rejected", str)


_TRUTH = ("false", "true")

#: By name, which but for ``reward`` is SuperGLUE's.
TASKS = {
    "boolq": Task(_TRUTH, _filled("{passage}\n{question}?")),
    "cb": Task(
        ("entailment", "contradiction", "neutral"), _filled("{premise}\n{hypothesis}"), ("accuracy", "macro_f1")
    ),
    "copa": Task(("implausible", "plausible"), _copa, choices=True),
    "multirc": Task(_TRUTH, _filled("{paragraph}\n{question}\n{answer}"), ("accuracy", "f1a")),
    "rte": Task(("entailment", "not_entailment"), _filled("{premise}\n{hypothesis}")),
    "wic": Task(_TRUTH, _filled("{sentence1}\n{sentence2}\n{word}")),
    "wsc": Task(_TRUTH, _wsc),
    "reward": Task(("reward",), _reward, choices=True),
}


def find_task(name: str) -> Task:
    """The task of that name; `RequestError` where there is none."""
    if name not in TASKS:
        raise RequestError(f"expected `task` {', '.join(TASKS)}, got {name!r}{try_nearest(name, TASKS, 0.5)}")
    return TASKS[name]


@dataclass(frozen=True)
class TaskData:
    """Questions to train on, others to validate on, and where they come from."""

    source: str
    train: tuple[Question, ...]
    validation: tuple[Question, ...]


def read_task(name: str, data: str | Path | None = None, max_examples: int | None = None) -> TaskData:
    """Read the questions of a task.

    Args:
        name: name of the task, one of `TASKS`.
        data: a folder with ``TASK/train.jsonl`` and ``TASK/val.jsonl``, or a Hub id of SuperGLUE (the default). For
            ``reward`` a file of objects with ``chosen``, ``rejected`` and perhaps ``prompt``, of which every tenth is
            held out, or a folder with ``train.jsonl`` and ``val.jsonl``.
        max_examples: lines of each file (rows of each split) to read at most, from the first.

    Raises:
        RequestError: no such task, folder, file or split; an empty one; a line that is not JSON; a column that is
            missing, or has something else in it; an unknown label.
        JobError: reading from the Hub broke off.
    """
    task = find_task(name)
    if data is None and task.ranks:
        raise RequestError(f"expected `data` for `task={name}`: a .jsonl file of pairs, or a folder with two")
    path = Path(data or HUB_ID).expanduser()
    if task.ranks and path.is_file():
        splits = _hold_out([*islice(_file_units(name, path), max_examples)], path)
    elif path.is_dir():
        folder = path if task.ranks else _task_folder(path, name)
        splits = [[*islice(_file_units(name, split_file(folder, split)), max_examples)] for split in ("train", "val")]
    elif task.ranks or path.exists() or is_path(str(data)):
        wanted = "a .jsonl file or a folder" if task.ranks else "a folder or a Hub id"
        raise RequestError(f"no data at {data}: expected {wanted}")
    else:
        splits = [[*islice(_hub_units(str(path), name, split), max_examples)] for split in ("train", "validation")]
    train, validation = (
        tuple(task.question(line, group) for group, unit in enumerate(units) for line in unit) for units in splits
    )
    if not train or not validation:
        raise RequestError(f"{path}: expected at least one question of {name}, got none")
    return TaskData(str(data or HUB_ID), train, validation)


def _task_folder(path: Path, name: str) -> Path:
    if found := SUPERGLUE[name].find(path):
        return found
    there = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir())) or "no folders"
    raise RequestError(f"expected a folder {SUPERGLUE[name].folder} in {path}, got {there}")


def _hold_out(lines: list[_Unit], path: Path) -> list[list[_Unit]]:
    """Pairs to train on, and every tenth, or of fewer the last."""
    if len(lines) < 2:
        raise RequestError(f"expected at least two pairs in {path}, of which one is held out, got {len(lines)}")
    held_out = {*range(_HELD_OUT_EVERY - 1, len(lines), _HELD_OUT_EVERY)} or {len(lines) - 1}
    return [[line for i, line in enumerate(lines) if (i in held_out) == held] for held in (False, True)]


def _file_units(name: str, path: Path) -> Iterator[_Unit]:
    """The rows of the Hub that each line of a file has."""
    for line in read_lines(path, required=True):
        rows = SUPERGLUE[name].rows(line) if name in SUPERGLUE else [line.record]
        yield [Line(line.where, row) for row in rows]


def _hub_units(source: str, name: str, split: str) -> Iterator[_Unit]:
    rows = read_hub(source, name, split, f"no data {source!r}: expected a folder or a Hub id of SuperGLUE")
    lines = (Line(f"{source}, {name}, {split}, row {index}", row) for index, row in enumerate(rows))
    # The rows of a passage of MultiRC follow one another.
    for _, unit in groupby(lines, lambda line: line.record.get("paragraph") if name == "multirc" else line.where):
        yield [*unit]
