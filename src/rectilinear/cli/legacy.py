"""What commands share that are not generated yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rectilinear.progress import Progress, reporting
from rectilinear.report.terminal import stdout
from rectilinear.runs import _check_folder

__all__ = ["check_out", "progress", "stdout"]


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar; libraries' own bars are off."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with reporting(True) as report:
        yield report


def check_out(out: Path | None, overwrite: bool) -> None:
    """Refuse an output folder before any work is done for it."""
    if out is not None:
        _check_folder(out, overwrite)
