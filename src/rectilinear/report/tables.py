"""A profile as a table on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rectilinear.measurement.profile import BlockRecord, LinearityRecord, Profile


def profile_table(profile: Profile) -> Table:
    """One line a block: scores in sample and held out, and the levels to read them against."""
    sinks = any(block.without_sinks.sinks for block in profile.blocks)
    table = Table(
        title=Text(
            f"{profile.model.id}: {profile.model.num_blocks} blocks of width {profile.model.width}, "
            f"{profile.data.tokens:,} tokens of {profile.data.source}"
        ),
        title_justify="left",
        caption="held out: mean over folds, ± standard error; null: what independent data would score in sample",
        caption_justify="left",
    )
    for heading in ("block", "linearity", "held out", "identity", "update\nlinearity", "held out", "null"):
        table.add_column(heading, justify="right")
    for heading in ("|d|/|y|", "cosine", *(("sinks", "update lin.\nwithout them") if sinks else ())):
        table.add_column(heading, justify="right")
    for block in profile.blocks:
        table.add_row(*_cells(block, sinks))
    return table


def print_profile(profile: Profile, console: Console) -> None:
    """Print the table and the warnings."""
    console.print(profile_table(profile))
    for warning in profile.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def _cells(block: BlockRecord, sinks: bool) -> list[str]:
    without = block.without_sinks
    cells = [
        str(block.index),
        _number(block.linearity.in_sample),
        _held_out(block.linearity),
        _number(block.identity),
        _number(block.update_linearity.in_sample),
        _held_out(block.update_linearity),
        _number(block.null),
        _number(block.update_ratio, 3),
        _number(block.cosine, 3),
    ]
    if sinks:
        share = "-" if without.sink_energy is None else f"{without.sink_energy:.1%}"
        cells += [f"{without.sinks} ({share})", _number(without.update_linearity.in_sample)]
    return cells


def _held_out(linearity: LinearityRecord) -> str:
    if linearity.held_out is None:
        return "-"
    return f"{linearity.held_out:.4f} ± {linearity.stderr:.4f}"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
