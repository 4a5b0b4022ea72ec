"""Probes as a table on a terminal."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.evaluation.probe_record import Probe
from rectilinear.report.tables import print_warnings


def probe_table(probe: Probe) -> Table:
    """One line a depth: what cross-validation made of the training part, and the metrics of the other one."""
    table = Table(box=HEAVY_HEAD)
    names = list(probe.points[0].metrics)
    for heading in ("depth", "penalty 1/C", "cross-validated", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in probe.points:
        found = [point.metrics[name] for name in names]
        cells = [f"{m.value:.4f}" + ("" if m.stderr is None else f" ± {m.stderr:.4f}") for m in found]
        depth = f"{point.depth} *" if point is probe.best else f"{point.depth}  "
        table.add_row(depth, f"{1 / point.c:g}", f"{point.cross_validated:.4f}", *cells)
    table.add_section()
    constants = [f"{probe.points[0].metrics[name].baseline:.4f}" + " " * 9 for name in names]
    table.add_row("constant  ", "", "", *constants)
    return table


def print_probe(probe: Probe, console: Console) -> None:
    """Print which model on which task, the table, how to read it, and the warnings."""
    data = probe.data
    title = f"{probe.model.id}, {probe.task}: {data.train:,} questions of {data.source}, {data.validation:,} asked"
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(probe_table(probe))
    said = (
        "depth 0: what goes into the first block, k: what comes out of block k - 1; ±: standard error over questions, "
        "or the passages they are about; *: the best in cross-validation; constant: the training part's commonest "
        "answer"
    )
    console.print(said, style="dim italic", markup=False, highlight=False)
    print_warnings(probe.warnings, console)
