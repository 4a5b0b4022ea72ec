"""Judged stories as tables on a terminal."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.evaluation.judge_record import Judged, JudgeReport
from rectilinear.report.tables import print_warnings


def texts_table(report: JudgeReport) -> Table:
    """What was counted in completions, beside the texts' own endings."""
    table = Table("", box=HEAVY_HEAD)
    for heading in ("completions", "texts' own"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("words of a text", *(f"{part.words:.1f}" for part in (report.completions, report.endings)))
    for name in ("distinct_1", "distinct_2", "distinct_3", "repetition"):
        values = (getattr(part, name) for part in (report.completions, report.endings))
        table.add_row(name.replace("_", "-"), *("-" if value is None else f"{value:.4f}" for value in values))
    if found := report.reference:
        error = "" if found.completions_stderr is None else f" ± {found.completions_stderr:.4f}"
        table.add_row(f"loss under {found.model}", f"{found.completions:.4f}{error}", f"{found.endings:.4f}")
    return table


def marks_table(judged: Judged) -> Table:
    """The marks."""
    table = Table(box=HEAVY_HEAD)
    for name in judged.marks:
        table.add_column(name, justify="right", no_wrap=True)
    cells = (
        f"{mark.mean:.2f}" + ("" if mark.stderr is None else f" ± {mark.stderr:.2f}") for mark in judged.marks.values()
    )
    table.add_row(*cells)
    return table


def print_judge(report: JudgeReport, console: Console) -> None:
    """Print whose stories on which text, what was counted, the marks, how to read them, and the warnings."""
    title = f"{report.model.id}: {report.completions.texts:,} stories that begin as in {report.data.source}"
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(texts_table(report))
    said = "distinct-n: different runs of n words over all; repetition: runs of four that the text had before"
    console.print(said, style="dim italic", markup=False, highlight=False)
    if judged := report.judged:
        told = ", ".join(f"{count:,} {name}" for name, count in judged.outcomes.items())
        used = f"{judged.prompt_tokens:,} tokens of requests, {judged.completion_tokens:,} of answers"
        used += "" if judged.cost is None else f", for {judged.cost:.2g}"
        console.print(f"{judged.model}: {told}; {used}", style="italic", markup=False, highlight=False)
        if judged.marks:
            console.print(marks_table(judged))
            console.print("from 1 to 10, over scored stories; ±: standard error", style="dim italic", highlight=False)
    print_warnings(report.warnings, console)
