"""Files of tasks: SuperGLUE's folders, and lines that know where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rectilinear.errors import RequestError
from rectilinear.text.jsonl import read_records

_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class Line:
    """An object of a data file, and where it is.

    Attributes:
        where: for errors: file and line.
        record: the object.
    """

    where: str
    record: Mapping[str, Any]

    def get(self, column: str, kind: type[_Kind]) -> _Kind:
        """What is in a column.

        Raises:
            RequestError: no such column, or something of another kind in it.
        """
        if column not in self.record:
            raise RequestError(
                f"{self.where}: expected a column {column!r}, got {', '.join(self.record) or 'no columns'}"
            )
        value = self.record[column]
        if not isinstance(value, kind):
            raise RequestError(f"{self.where}: expected {kind.__name__} in {column!r}, got {type(value).__name__}")
        return value

    def inside(self, value: Any, name: str) -> Line:
        """A part of this one, an object itself.

        Raises:
            RequestError: it is not.
        """
        if not isinstance(value, Mapping):
            raise RequestError(f"{self.where}: expected an object in {name!r}, got {type(value).__name__}")
        return Line(f"{self.where}, {name}", value)

    def one_of(self, column: str, values: tuple[Any, ...]) -> int:
        """Which of some values is in a column.

        Raises:
            RequestError: none of them.
        """
        found = self.get(column, object)
        if found not in values:
            told = ", ".join(map(json.dumps, values))
            raise RequestError(f"{self.where}: expected {column} {told}, got {json.dumps(found, default=str)[:40]}")
        return values.index(found)


def read_lines(path: Path) -> Iterator[Line]:
    """The objects of a file of one JSON object a line.

    Raises:
        RequestError: while reading, a line that is not one, or no lines.
    """
    empty = True
    for where, record in read_records(path):
        yield Line(where, record)
        empty = False
    if empty:
        raise RequestError(f"expected at least one line in {path}, got none")


def task_folder(path: Path, name: str) -> Path:
    """The folder of that name in another one, whatever its case.

    Raises:
        RequestError: there is none.
    """
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    for folder in folders:
        if folder.name.casefold() == name.casefold():
            return folder
    there = ", ".join(folder.name for folder in folders) or "no folders"
    raise RequestError(f"expected a folder {name} in {path}, got {there}")


def split_file(folder: Path, split: str) -> Path:
    """``SPLIT.jsonl`` in a folder.

    Raises:
        RequestError: there is none.
    """
    file = folder / f"{split}.jsonl"
    if not file.is_file():
        there = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise RequestError(f"expected {file.name} in {folder}, got {there}")
    return file
