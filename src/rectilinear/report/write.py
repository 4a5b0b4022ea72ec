"""Results as files: numbers and figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.evaluation.probe import Probe
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.profile import Profile
from rectilinear.report.pairs_plot import plot_pairs
from rectilinear.report.plots import plot_dynamics, plot_probe, plot_profile
from rectilinear.report.style import STYLE
from rectilinear.results import ResultFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures of results that have one.
_FIGURES: dict[type[ResultFile], Callable[[Any], Figure]] = {
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
    figures = {name: _FIGURES[type(result)](result)}
    if isinstance(result, Profile) and result.pairs:
        figures["pairs"] = plot_pairs(result)
    for name, figure in figures.items():
        save_figure(figure, folder, name)
    return [result.file_name, *(f"{name}.{kind}" for name in figures for kind in ("png", "svg"))]


def save_figure(figure: Figure, folder: str | Path, name: str) -> None:
    """Write ``NAME.png`` (300 dpi) and ``NAME.svg`` into a folder."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(Path(folder) / f"{name}.png", dpi=300)
        figure.savefig(Path(folder) / f"{name}.svg", metadata={"Date": None})
