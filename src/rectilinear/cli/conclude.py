"""How every command ends: its result on disk, then on the terminal."""

from __future__ import annotations

from pathlib import Path

from rectilinear.publish import stage
from rectilinear.report.terminal import say, show
from rectilinear.report.write import write_result
from rectilinear.results import ResultFile


def conclude(result: ResultFile, out: Path | None) -> None:
    """Write a result, where there is a folder for it, and show it."""
    if out:  # files first: whoever reads the table may close the pipe
        with stage(out) as folder:
            *others, last = write_result(result, folder)
    show(result)
    if out:
        say(f"wrote {' and '.join(filter(None, [', '.join(others), last]))} to {out}")
