"""The questions of a task, from SuperGLUE's own files, a file of preferences, or the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from rectilinear.data.task_files import Line, read_lines, split_file, task_folder
from rectilinear.errors import JobError, RequestError
from rectilinear.finetuning.tasks import Question, Task, find_task

#: Where SuperGLUE is on the Hub.
SUPERGLUE = "aps/super_glue"

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
        name: of the task; see `rectilinear.finetuning.tasks.TASKS`.
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
    path = Path(data or SUPERGLUE).expanduser()
    if task.ranks and path.is_file():
        splits = _hold_out([*islice(read_lines(path), max_examples)], path)
    elif path.is_dir():
        folder = task_folder(path, task.folder) if task.folder else path
        splits = [[*islice(read_lines(split_file(folder, split)), max_examples)] for split in ("train", "val")]
    elif task.ranks or path.exists() or path.is_absolute() or str(data).startswith(("./", "../", "~")):
        wanted = "a .jsonl file or a folder" if task.ranks else "a folder or a Hub id"
        raise RequestError(f"no data at {data}: expected {wanted}")
    else:
        splits = [
            [*islice(_hub_lines(str(path), name, task, split), max_examples)] for split in ("train", "validation")
        ]
    train, validation = (tuple(_questions(task, lines)) for lines in splits)
    for questions, lines in ((train, splits[0]), (validation, splits[1])):
        if not questions:
            where = lines[0].where if lines else f"{path}"
            raise RequestError(f"{where}: expected at least one question of {name}, got none")
    return TaskData(str(data or SUPERGLUE), train, validation)


def _hold_out(lines: list[Line], path: Path) -> list[list[Line]]:
    """Pairs to train on, and every tenth, or of fewer the last."""
    if len(lines) < 2:
        raise RequestError(f"expected at least two pairs in {path}, of which one is held out, got {len(lines)}")
    held_out = {*range(_HELD_OUT_EVERY - 1, len(lines), _HELD_OUT_EVERY)} or {len(lines) - 1}
    return [[line for i, line in enumerate(lines) if (i in held_out) == held] for held in (False, True)]


def _questions(task: Task, lines: Iterable[Line]) -> Iterator[Question]:
    for group, line in enumerate(lines):
        for texts, answer in task.template(line):
            yield Question(texts, answer, group)


def _hub_lines(source: str, name: str, task: Task, split: str) -> Iterator[Line]:
    import datasets

    try:
        rows = datasets.load_dataset(source, name, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no data {source!r}: expected a folder or a Hub id of SuperGLUE ({_first(error)})"
        ) from None
    try:
        for index, record in enumerate(_original(name, task, rows)):
            yield Line(f"{source}, {name}, {split}, row {index}", record)
    except OSError as error:
        raise JobError(f"reading {source} from the Hub broke off ({_first(error)})") from error


def _original(name: str, task: Task, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the Hub as the files have them: labels by value, spans and answers nested."""
    named = ({**row, "label": _value(task, row["label"])} if "label" in row else row for row in rows)
    if name == "wsc":
        yield from ({**row, "target": row} for row in named)
    elif name == "multirc":
        for passage, of_passage in groupby(named, lambda row: row.get("paragraph")):
            questions = [
                {"question": row.get("question"), "answers": [{"text": row.get("answer"), "label": row.get("label")}]}
                for row in of_passage
            ]
            yield {"passage": {"text": passage, "questions": questions}}
    else:
        yield from named


def _value(task: Task, label: Any) -> Any:
    return task.answers[label] if isinstance(label, int) and 0 <= label < len(task.answers) else label


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
