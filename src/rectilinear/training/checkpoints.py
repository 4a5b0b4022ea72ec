"""Checkpoints that Trainer keeps in a folder while it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectilinear.errors import JobError
from rectilinear.models.export import writing
from rectilinear.models.series import checkpoints_of


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
    return next((path for path in reversed(checkpoints_of(folder)) if _whole(path)), None)


def discard_checkpoints(folder: Path, *, partial_only: bool = False) -> None:
    """Remove the checkpoints of a folder, or those that were not written to their end.

    Trainer counts the latter among those to keep, and would remove better ones for them.
    """
    for path in checkpoints_of(folder):
        if not (partial_only and _whole(path)):
            shutil.rmtree(path)


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
