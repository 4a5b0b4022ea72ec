"""Dynamics as a table on a terminal."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.measurement.dynamics import Dynamics, Mean, mean_curve


def dynamics_table(dynamics: Dynamics) -> Table:
    """One line a step: the means over blocks, their errors and spread, the least and the most linear block."""
    table = Table(box=HEAVY_HEAD)
    for heading in ("step", "update linearity", "least", "most", "linearity", "least", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    updates, outputs = mean_curve(dynamics), mean_curve(dynamics, "linearity")
    for update, output in zip(updates, outputs, strict=True):
        table.add_row(f"{update.step:,}", *_cells(update), *_cells(output))
    return table


def print_dynamics(dynamics: Dynamics, console: Console) -> None:
    """Print which model on which text, the table, how to read it, and the warnings, each once."""
    model, data = dynamics.model, dynamics.data
    steps = "1 step" if len(dynamics.points) == 1 else f"{len(dynamics.points)} steps"
    title = (
        f"{model.id}: {model.num_blocks} blocks of width {model.width} at {steps}, "
        f"{data.tokens:,} tokens of {data.source}"
    )
    # Beside the table, not in it: as narrow as it is, it would break their lines.
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(dynamics_table(dynamics))
    held_out = "held out where rows were, ±: at most the standard error over parts of the text"
    console.print(f"means over blocks, {held_out}; least and most: (block) and its score", style="dim italic")
    for warning in collect_warnings(dynamics):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def collect_warnings(dynamics: Dynamics) -> list[str]:
    """The warnings of the series, and those of its points, each once and with the steps that it is of."""
    steps: dict[str, list[int]] = {}
    for point in dynamics.points:
        for warning in point.warnings:
            steps.setdefault(warning, []).append(point.step)
    return [
        *dynamics.warnings,
        *(
            warning if len(where) == len(dynamics.points) else f"step {', '.join(map(str, where))}: {warning}"
            for warning, where in steps.items()
        ),
    ]


def _cells(mean: Mean) -> list[str]:
    if mean.mean is None:
        return ["-", "-", "-"]
    error = "" if mean.stderr is None else f" ± {mean.stderr:.4f}"
    return [f"{mean.mean:.4f}{error}", f"({mean.least}) {mean.lowest:.3f}", f"({mean.most}) {mean.highest:.3f}"]
