"""What commands share on a terminal and on disk: progress, and results that are whole or not there."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rectilinear.errors import RequestError
from rectilinear.staging import nearest_existing

if TYPE_CHECKING:
    from rectilinear.measurement.collect import Progress as Report


def stdout() -> Console:
    """Where results go; wide where it is not a terminal, so that tables in logs stay whole."""
    return Console() if sys.stdout.isatty() else Console(width=140)


@contextmanager
def progress() -> Iterator[Report]:
    """A bar of the present stage with an ETA on a terminal, silence elsewhere; libraries' own bars are off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        bar.add_task("", visible=False)
        [task] = bar.tasks

        def report(stage: str, done: int, total: int) -> None:
            name, before = (text.partition(":")[0] for text in (stage, task.description))
            if name != before or done < task.completed:  # another stage, or the same one again
                bar.reset(task.id, total=total, visible=True)
            bar.update(task.id, description=stage, completed=done)

        yield report


def check_out(out: Path | None, overwrite: bool) -> None:
    """Refuse an output folder before any work is done for it.

    Raises:
        RequestError: it is not empty and may not be overwritten, is not a folder, or cannot be
            written.
    """
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise RequestError(f"expected a folder for --out, got the file {out}")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise RequestError(f"--out {out} is not empty; choose another folder, or add --overwrite")
    nearest = nearest_existing(out)
    if not nearest.is_dir():
        raise RequestError(f"expected a folder for --out, got {out} inside the file {nearest}")
    if not os.access(nearest, os.W_OK):
        raise RequestError(f"cannot write to {nearest} for --out {out}")
