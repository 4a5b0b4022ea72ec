"""A fine-tuning as a table on a terminal, like the paper's Table 1."""

from __future__ import annotations

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.training.finetuning.record import Finetuning, Linearities, Spread


def finetuning_table(finetuning: Finetuning) -> Table:
    """One line: the task, the change of the update linearity, and each metric beside what a constant answer gets."""
    summary, change = finetuning.summary, finetuning.summary.update_linearity
    headings = ["task", "change of update\nlinearity in sample", "held out"]
    cells = [finetuning.task, _cell(change.in_sample, "+.4f"), _cell(change.held_out, "+.4f")]
    for name, spread in summary.metrics.items():
        headings += [name.replace("_", " "), "constant\nanswer"]
        cells += [_cell(spread, ".4f"), f"{finetuning.runs[0].metrics[name].baseline:.4f}"]
    table = Table(box=HEAVY_HEAD)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*cells)
    return table


def print_finetuning(finetuning: Finetuning, console: Console) -> None:
    """Print which model on which data, the table, how to read it, and the warnings, each once."""
    data, seeds = finetuning.data, len(finetuning.runs)
    title = (
        f"{finetuning.model.id}: trained on {data.train:,} questions of {data.source}, {data.validation:,} asked; "
        f"linearity on {finetuning.text.tokens:,} tokens of {finetuning.text.source}"
    )
    # Beside the table, not in it: as narrow as it is, it would break their lines.
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(finetuning_table(finetuning))
    spread = f"±: standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no deviation"
    before = _level(finetuning.before)
    console.print(f"means over blocks, after minus before ({before}); {spread}", style="dim italic", highlight=False)
    measured = [
        warning for each in (finetuning.before, *(run.after for run in finetuning.runs)) for warning in each.warnings
    ]
    for warning in dict.fromkeys([*finetuning.warnings, *measured]):
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def _level(linearities: Linearities) -> str:
    score = linearities.update_linearity
    levels = {"in sample": score.in_sample, "held out": score.held_out}
    return ", ".join(f"{value:.4f} {name}" for name, value in levels.items() if value is not None) or "no score"


def _cell(spread: Spread, form: str) -> str:
    if spread.mean is None:
        return "-"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.4f}"
    return f"{spread.mean:{form}}{deviation}"
