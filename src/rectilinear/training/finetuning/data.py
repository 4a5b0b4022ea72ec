"""The questions of a task, from SuperGLUE's own files, a file of preferences, or the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.text.superglue import SUPERGLUE
from rectilinear.text.task_files import Line, read_lines, split_file, task_folder
from rectilinear.training.finetuning.tasks import Question, Task, find_task

#: Where SuperGLUE is on the Hub.
HUB_ID = "aps/super_glue"

#: Rows that depend on one another, as questions about one passage do.
Unit = list[Line]

# Of a single file of preferences, every tenth pair is held out.
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class TaskData:
    """Questions to train on, and others to be asked.

    Attributes:
        source: where they come from.
        train, validation: the questions.
    """

    source: str
    train: tuple[Question, ...]
    validation: tuple[Question, ...]


def read_task(name: str, data: str | Path | None = None, max_examples: int | None = None) -> TaskData:
    """Read the questions of a task.

    Args:
        name: of the task; see `rectilinear.training.finetuning.tasks.TASKS`.
        data: a folder with ``TASK/train.jsonl`` and ``TASK/val.jsonl``, or a Hub id of SuperGLUE
            (the default). For ``reward`` a file of objects with ``chosen``, ``rejected`` and
            perhaps ``prompt``, of which every tenth is held out, or a folder with ``train.jsonl``
            and ``val.jsonl``.
        max_examples: lines of each file (rows of each split) to read at most, from the first.

    Raises:
        RequestError: no such task, folder, file or split; an empty one; a line that is not JSON;
            a column that is missing, or has something else in it; an unknown label.
        JobError: reading from the Hub broke off.
    """
    task = find_task(name)
    if data is None and task.ranks:
        raise RequestError(f"expected --data for --task {name}: a .jsonl file of pairs, or a folder with two")
    path = Path(data or HUB_ID).expanduser()
    if task.ranks and path.is_file():
        splits = _hold_out([*islice(_file_units(name, path), max_examples)], path)
    elif path.is_dir():
        folder = path if task.ranks else task_folder(path, SUPERGLUE[name].folder)
        splits = [[*islice(_file_units(name, split_file(folder, split)), max_examples)] for split in ("train", "val")]
    elif task.ranks or path.exists() or path.is_absolute() or str(data).startswith(("./", "../", "~")):
        wanted = "a .jsonl file or a folder" if task.ranks else "a folder or a Hub id"
        raise RequestError(f"no data at {data}: expected {wanted}")
    else:
        splits = [[*islice(_hub_units(str(path), name, split), max_examples)] for split in ("train", "validation")]
    train, validation = (tuple(_questions(task, units)) for units in splits)
    for questions in (train, validation):
        if not questions:
            raise RequestError(f"{path}: expected at least one question of {name}, got none")
    return TaskData(str(data or HUB_ID), train, validation)


def _hold_out(lines: list[Unit], path: Path) -> list[list[Unit]]:
    """Pairs to train on, and every tenth, or of fewer the last."""
    if len(lines) < 2:
        raise RequestError(f"expected at least two pairs in {path}, of which one is held out, got {len(lines)}")
    held_out = {*range(_HELD_OUT_EVERY - 1, len(lines), _HELD_OUT_EVERY)} or {len(lines) - 1}
    return [[line for i, line in enumerate(lines) if (i in held_out) == held] for held in (False, True)]


def _questions(task: Task, units: Iterable[Unit]) -> Iterator[Question]:
    for group, unit in enumerate(units):
        for line in unit:
            yield Question(*task.template(line), group)


def _file_units(name: str, path: Path) -> Iterator[Unit]:
    """A file's lines as rows of the Hub."""
    for line in read_lines(path):
        rows = SUPERGLUE[name].rows(line) if name in SUPERGLUE else [line.record]
        yield [Line(line.where, row) for row in rows]


def _hub_units(source: str, name: str, split: str) -> Iterator[Unit]:
    import datasets

    try:
        rows = datasets.load_dataset(source, name, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no data {source!r}: expected a folder or a Hub id of SuperGLUE ({first_line(error)})"
        ) from None
    lines = (Line(f"{source}, {name}, {split}, row {index}", row) for index, row in enumerate(rows))
    try:
        # Of MultiRC the rows of a passage follow one another.
        for _, unit in groupby(lines, lambda line: line.record.get("paragraph") if name == "multirc" else line.where):
            yield [*unit]
    except OSError as error:
        raise JobError(f"reading {source} from the Hub broke off ({first_line(error)})") from error
