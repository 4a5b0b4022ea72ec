"""Results as files: numbers and figures."""

from __future__ import annotations

from pathlib import Path

from rectilinear.report.static import save
from rectilinear.results import ResultFile


def write_result(result: ResultFile, folder: str | Path) -> list[str]:
    """Write a result into a folder, ``NAME.json`` and its figures as png and svg.

    Returns:
        The names of the files.
    """
    result.save(folder)
    return [result.file_name, *(name for chart in result.charts() for name in save(chart, folder))]
