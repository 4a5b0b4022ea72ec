"""Files of one JSON object a line, whose lines know where they are."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rectilinear.errors import RequestError

_Kind = TypeVar("_Kind")

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Line:
    """An object of a data file, and where it is: file and line, which begin every `RequestError` about it."""

    where: str
    record: Mapping[str, Any]

    def get(self, column: str, kind: type[_Kind]) -> _Kind:
        """The value of a column, which is to be there and of that kind."""
        if column not in self.record:
            there = ", ".join(self.record) or "no columns"
            raise RequestError(f"{self.where}: expected a column {column!r}, got {there}")
        value = self.record[column]
        if not isinstance(value, kind):
            raise RequestError(f"{self.where}: expected {kind.__name__} in {column!r}, got {type(value).__name__}")
        return value

    def texts(self, *columns: str) -> dict[str, str]:
        """The texts of some columns, by column."""
        return {column: self.get(column, str) for column in columns}

    def part(self, column: str) -> Line:
        """The object in a column."""
        return Line(f"{self.where}, {column}", self.get(column, dict))

    def parts(self, column: str) -> Iterator[Line]:
        """The objects of the list in a column."""
        for value in self.get(column, list):
            if not isinstance(value, Mapping):
                raise RequestError(f"{self.where}: expected an object in {column!r}, got {type(value).__name__}")
            yield Line(f"{self.where}, {column}", value)

    def one_of(self, column: str, values: tuple[Any, ...]) -> int:
        """The index, among some values, of the one in a column."""
        found = self.get(column, object)
        if found not in values:
            choices = ", ".join(map(json.dumps, values))
            raise RequestError(f"{self.where}: expected {column} {choices}, got {json.dumps(found, default=str)[:40]}")
        return values.index(found)


def read_lines(path: Path, *, required: bool = False) -> Iterator[Line]:
    """The objects of a file in order; empty lines are skipped. Half a surrogate pair is read as U+FFFD, with a warning.

    Raises:
        RequestError: while reading, a line that is no JSON object, no UTF-8, no such file, or none where required.
    """
    replace_surrogates = surrogate_replacer()
    with readable(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
                if r"\u" in line:  # no other way to write what is no character
                    record = json.loads(replace_surrogates(json.dumps(record, ensure_ascii=False), where))
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{where}: expected JSON, got {line.strip()[:40]!r} ({_reason(error)})") from None
            if not isinstance(record, dict):
                raise RequestError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield Line(where, record)
            required = False
    if required:
        raise RequestError(f"expected at least one line in {path}, got none")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "too deeply nested" if isinstance(error, RecursionError) else "a number of too many digits"


def surrogate_replacer() -> Callable[[str, str], str]:
    """A function of a text and where it is, that replaces halves of surrogate pairs and warns of the first one.

    They are no characters and have no UTF-8; U+FFFD takes their places.
    """
    warned = False

    def replace(text: str, where: str) -> str:
        nonlocal warned
        plain = text if text.isascii() else _SURROGATE.sub("\ufffd", text)
        if plain != text and not warned:
            warnings.warn(
                f"{where}: half a surrogate pair is no character and is read as U+FFFD, "
                "here and wherever there are others",
                stacklevel=3,
            )
            warned = True
        return plain

    return replace


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """While open, what cannot be read is a file of text: a `RequestError`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise RequestError(f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
