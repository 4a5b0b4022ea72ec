"""The answers of a judge on disk: a line each, as they come."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from rectilinear.errors import JobError, RequestError
from rectilinear.evaluation.judge_record import Judgement

#: The file of a run with the answers, one a line; of several for one story the last counts.
JUDGEMENTS = "judgements.jsonl"


def read_judgements(path: Path) -> dict[int, Judgement]:
    """Answers that are on disk, the last one of each story; a last line that is not whole is left out.

    Raises:
        RequestError: another line is no answer, or the file cannot be read.
    """
    return _read(path)[0]


def open_judgements(path: Path) -> tuple[dict[int, Judgement], FileIO]:
    """Answers that are on disk, and the file, open to write more behind what is whole of it.

    Raises:
        RequestError: as `read_judgements`.
        JobError: the file cannot be written.
    """
    answers, whole = _read(path)
    try:
        file = FileIO(path, "a")
        file.truncate(whole)
        if whole and not path.read_bytes().endswith(b"\n"):
            file.write(b"\n")
    except OSError as error:
        raise _unwritten(path, error) from error
    return answers, file


def write_judgement(file: FileIO, judgement: Judgement) -> None:
    """Add an answer, so that it is on disk when this returns, whole or not at all.

    Raises:
        JobError: it cannot be written.
    """
    before, left = file.seek(0, os.SEEK_END), judgement.model_dump_json().encode() + b"\n"
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError as error:
        file.truncate(before)  # half a line would end up among others
        raise _unwritten(Path(os.fsdecode(file.name)), error) from error


def _unwritten(path: Path, error: OSError) -> JobError:
    return JobError(f"cannot write answers of the judge to {path}: {error.strerror or error}")


def _read(path: Path) -> tuple[dict[int, Judgement], int]:
    """Answers, and how many bytes of the file are whole lines, the last one perhaps without its end."""
    try:
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from error
    found: dict[int, Judgement] = {}
    whole = 0
    for place, line in enumerate(lines):
        try:
            judgement = Judgement.model_validate_json(line)
        except ValueError:
            if not b"".join(lines[place + 1 :]).strip():  # what a killed run was writing
                break
            raise RequestError(
                f"{path}, line {place + 1}: expected an answer of a judge, got {line[:40]!r}; try without that line"
            ) from None
        found[judgement.index] = judgement
        whole += len(line)
    return found, whole
