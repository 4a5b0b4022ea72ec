"""An evaluation as a table on a terminal."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.evaluation.harness import is_perplexity
from rectilinear.evaluation.record import DifferenceRecord, Differences, Evaluation, Measurements, MetricRecord
from rectilinear.measurement.perplexity import exponential
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


def tasks_table(evaluation: Evaluation) -> Table:
    """One line a metric of each task, then of each group; what a constant answer scores beside it."""
    table = Table(box=HEAVY_HEAD)
    for heading in ("task", "documents", "metric"):
        table.add_column(heading, justify="right" if heading == "documents" else "left", no_wrap=True)
    headings = ["constant", "model"] + ["against", "difference", "p"] * (evaluation.against is not None)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in ("tasks", "groups"):
        for name, record in getattr(evaluation, kind).items():
            head = (name, f"{record.n:,}" if kind == "tasks" else "")
            for metric, ours in record.metrics.items():
                cells = ["-" if ours.constant is None else f"{ours.constant:.4f}", _score(ours)]
                if evaluation.against and evaluation.differences:
                    theirs = getattr(evaluation.against, kind)[name].metrics[metric]
                    between = getattr(evaluation.differences, kind).get(name, {}).get(metric)
                    cells += [_score(theirs), *_between(between, is_perplexity(metric))]
                table.add_row(*head, metric, *cells)
                head = ("", "")
        if kind == "tasks":
            table.add_section()
    return table


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print which models on which text, the table, and how to read it."""
    against = f" against {evaluation.against.model.id}" if evaluation.against else ""
    text = f": {evaluation.data.tokens:,} tokens of {evaluation.data.source}" if evaluation.data else ""
    # Beside the table, not in it: as narrow as it is, it would break their lines.
    console.print(f"{evaluation.model.id}{against}{text}", style="italic", markup=False, highlight=False)
    if evaluation.data:
        console.print(evaluation_table(evaluation))
    if caption := _caption(evaluation):
        console.print(caption, style="dim italic", markup=False, highlight=False)
    if evaluation.tasks:
        console.print(tasks_table(evaluation))
        console.print(_tasks_caption(evaluation), style="dim italic", markup=False, highlight=False)
    print_warnings(evaluation.warnings, console)


def _caption(evaluation: Evaluation) -> str:
    said = ["±: standard error over rows"] if evaluation.data else []
    if evaluation.against and evaluation.data:
        said.append("x: ratio of model to against")
    if evaluation.settings.get("speed"):
        lengths = (evaluation.settings["prompt_tokens"], evaluation.settings["new_tokens"])
        said.append("speed and cache: one row, {} tokens read, {} decoded".format(*lengths))
    return "; ".join(said)


def _tasks_caption(evaluation: Evaluation) -> str:
    said = ["constant: the best answer that is always the same", "±: standard error over documents"]
    if evaluation.against:
        said.append("p: of no difference, on the same documents")
    return "; ".join(said)


def _score(metric: MetricRecord) -> str:
    if abs(metric.value) >= 1000:  # a perplexity
        return f"{metric.value:.4g}" + ("" if metric.stderr is None else f" ± {metric.stderr:.2g}")
    return _with_error(f"{metric.value:.4f}", metric.stderr)


def _between(difference: DifferenceRecord | None, of_logarithms: bool) -> list[str]:
    if difference is None:
        return ["-", "-"]
    p_value, factor = difference.p_value, f"x {exponential(difference.value):.4g}"
    return [
        factor if of_logarithms else _with_error(f"{difference.value:+.4f}", difference.stderr),
        "-" if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}",
    ]


def _cells(measured: Measurements) -> list[str]:
    speed = measured.tokens_per_second
    return [
        "-" if measured.perplexity is None else f"{measured.perplexity:.4g}",
        "-" if measured.loss is None else _with_error(f"{measured.loss:.4f}", measured.stderr),
        f"{measured.parameters:,}",
        _whole(speed.prefill),
        _whole(speed.decode),
        _whole(measured.cache_bytes),
    ]


def _difference_cells(differences: Differences) -> list[str]:
    speed = differences.tokens_per_second
    return [
        _times(differences.perplexity_ratio),
        "-" if differences.loss is None else _with_error(f"{differences.loss:+.4f}", differences.loss_stderr),
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
