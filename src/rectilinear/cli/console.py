"""How every command ends: its result on disk, then on the terminal."""

from __future__ import annotations

from pathlib import Path

from rectilinear.publish import stage
from rectilinear.report.terminal import show
from rectilinear.report.write import write_result
from rectilinear.results import ResultFile


def conclude(result: ResultFile, out: Path | None) -> None:
    """Write a result, where there is a folder for it, and show it."""
    names: list[str] = []
    if out:  # files first: whoever reads the table may close the pipe
        with stage(out) as folder:
            names = write_result(result, folder)
    show(result)
    if out:
        print(f"wrote {join_names(names)} to {out}")


def join_names(names: list[str]) -> str:
    """Names in a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
