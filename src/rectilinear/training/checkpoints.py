"""Checkpoints that Trainer keeps in a folder while it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectilinear.errors import JobError
from rectilinear.models.export import writing


@contextmanager
def keeping(folder: str | Path) -> Iterator[None]:
    """While open, what cannot be written is a checkpoint.

    Raises:
        JobError: that is so.
    """
    try:
        with writing():
            yield
    except OSError as error:
        raise JobError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from error


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a folder that was written to its end: Trainer writes its own state last."""
    return max((path for path in folder.glob("checkpoint-*") if _whole(path)), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """Steps that a checkpoint was made after."""
    return int(checkpoint.name.rpartition("-")[2])


def discard_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a folder."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
