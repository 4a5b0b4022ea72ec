"""Results as files: numbers and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rectilinear.evaluation.probe import Probe
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.profile import Profile
from rectilinear.report.dynamics_plot import plot_dynamics
from rectilinear.report.plots import plot_profile
from rectilinear.report.probe_plot import plot_probe
from rectilinear.report.style import save_figure
from rectilinear.results import ResultFile

# Figures of results that have one.
_FIGURES: dict[type[ResultFile], Callable[[Any], Any]] = {
    Profile: plot_profile,
    Dynamics: plot_dynamics,
    Probe: plot_probe,
}


def write_result(result: ResultFile, folder: str | Path) -> list[str]:
    """Write a result into a folder, ``NAME.json`` and, where it has a figure, ``NAME.png`` and ``NAME.svg``.

    Returns:
        The names of the files.
    """
    result.save(folder)
    name = Path(result.file_name).stem
    if type(result) not in _FIGURES:
        return [result.file_name]
    save_figure(_FIGURES[type(result)](result), folder, name)
    return [result.file_name, f"{name}.png", f"{name}.svg"]
