"""How every command ends: its result on disk, then on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rectilinear.publish import stage
from rectilinear.report.terminal import say, show
from rectilinear.report.write import write_result
from rectilinear.results import ResultFile


def conclude(result: ResultFile, out: Path | None, also: Callable[[Path], Iterable[str]] = lambda folder: ()) -> None:
    """Write a result, where there is a folder for it, and what ``also`` writes and names, and show it."""
    if out:  # files first: whoever reads the table may close the pipe
        with stage(out) as folder:
            *others, last = (*write_result(result, folder), *also(folder))
    show(result)
    if out:
        say(f"wrote {' and '.join(filter(None, [', '.join(others), last]))} to {out}")
