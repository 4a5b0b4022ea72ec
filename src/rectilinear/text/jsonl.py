"""Files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file in order, each with where it is (``FILE, line N``); empty lines are skipped.

    Raises:
        RequestError: while reading, a line that is not JSON or not an object, a file that cannot be
            read or is not UTF-8.
    """
    with readable(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise RequestError(f"{where}: expected JSON, got {line.strip()[:40]!r} ({error.msg})") from None
            if not isinstance(record, dict):
                raise RequestError(f"{where}: expected a JSON object, got {type(record).__name__}")
            yield where, record


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say what is wrong with a file that cannot be read as text.

    Raises:
        RequestError: it cannot.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise RequestError(f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
