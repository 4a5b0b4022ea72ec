"""An evaluation as a table on a terminal."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.evaluation.record import Differences, Evaluation, Measurements
from rectilinear.report.tables import print_warnings


def evaluation_table(evaluation: Evaluation) -> Table:
    """One line a quantity; the other model and the differences beside it where there is one."""
    table = Table("", box=HEAVY_HEAD)
    columns = [_cells(evaluation)]
    table.add_column("model", justify="right", no_wrap=True)
    if evaluation.against and evaluation.differences:
        columns += [_cells(evaluation.against), _difference_cells(evaluation.differences)]
        table.add_column("against", justify="right", no_wrap=True)
        table.add_column("difference", justify="right", no_wrap=True)
    names = ("perplexity", "loss (nats a token)", "parameters", "prefill tokens/s", "decode tokens/s", "cache bytes")
    for name, *cells in zip(names, *columns, strict=True):
        if any(cell != "-" for cell in cells):
            table.add_row(name, *cells)
    return table


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print which models on which text, the table, and how to read it."""
    against = f" against {evaluation.against.model.id}" if evaluation.against else ""
    title = f"{evaluation.model.id}{against}: {evaluation.data.tokens:,} tokens of {evaluation.data.source}"
    # Beside the table, not in it: as narrow as it is, it would break their lines.
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(evaluation_table(evaluation))
    console.print(_caption(evaluation), style="dim italic", markup=False, highlight=False)
    print_warnings(evaluation.warnings, console)


def _caption(evaluation: Evaluation) -> str:
    said = ["±: standard error over rows"]
    if evaluation.against:
        said.append("x: ratio of model to against")
    if evaluation.settings.get("speed"):
        lengths = (evaluation.settings["prompt_tokens"], evaluation.settings["new_tokens"])
        said.append("speed and cache: one row, {} tokens read, {} decoded".format(*lengths))
    return "; ".join(said)


def _cells(measured: Measurements) -> list[str]:
    speed = measured.tokens_per_second
    return [
        "-" if measured.perplexity is None else f"{measured.perplexity:.4g}",
        _with_error(f"{measured.loss:.4f}", measured.stderr),
        f"{measured.parameters:,}",
        _whole(speed.prefill),
        _whole(speed.decode),
        _whole(measured.cache_bytes),
    ]


def _difference_cells(differences: Differences) -> list[str]:
    speed = differences.tokens_per_second
    return [
        _times(differences.perplexity_ratio),
        _with_error(f"{differences.loss:+.4f}", differences.loss_stderr),
        f"{differences.parameters:+,}",
        _times(speed.prefill),
        _times(speed.decode),
        _times(differences.cache_bytes),
    ]


def _with_error(text: str, error: float | None) -> str:
    return text if error is None else f"{text} ± {error:.4f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x {ratio:.3f}"
