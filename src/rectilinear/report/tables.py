"""Profiles and plans as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rectilinear.linearization.plan import Plan, Replacement
from rectilinear.measurement.profile import BlockRecord, LinearityRecord, Profile

# Below this width the table gives up rules and a digit.
_WIDE = 110


def profile_table(profile: Profile, *, compact: bool = False) -> Table:
    """One line a block: scores in sample and held out, and the levels to read them against."""
    sinks = any(block.without_sinks.sinks for block in profile.blocks)
    table = Table(
        title=Text(
            f"{profile.model.id}: {profile.model.num_blocks} block{'s' * (profile.model.num_blocks != 1)} "
            f"of width {profile.model.width}, "
            f"{profile.data.tokens:,} tokens of {profile.data.source}"
        ),
        title_justify="left",
        caption="held out: mean over folds, ± standard error; null: what independent data would score in sample",
        caption_justify="left",
        box=SIMPLE_HEAD if compact else HEAVY_HEAD,
        padding=0 if compact else (0, 1),
    )
    for heading in ("block", "linearity", "held out", "identity", "update\nlinearity", "held out", "null"):
        table.add_column(heading.replace("linearity", "lin.") if compact else heading, justify="right", no_wrap=True)
    for heading in ("|d|/|y|", "cosine", *(("sinks", "update lin.\nwithout them") if sinks else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for block in profile.blocks:
        cells = _cells(block, sinks, 3 if compact else 4)
        table.add_row(*(cell.replace(" ± ", "±") for cell in cells) if compact else cells)
    return table


def print_profile(profile: Profile, console: Console) -> None:
    """Print the table and the warnings."""
    console.print(profile_table(profile, compact=console.width < _WIDE))
    print_warnings(profile.warnings, console)


def print_warnings(warnings: Sequence[str], console: Console) -> None:
    """Print what a reader of a result must know, a line each."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def plan_table(plan: Plan) -> Table:
    """One line a replacement: what it is, what it weighs, how much of its target it explains."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("blocks", "target", "by", "rank", "parameters", "ridge", "held out"):
        table.add_column(heading, justify="right", no_wrap=True)
    for replacement in plan.replacements:
        table.add_row(*_plan_cells(replacement))
    return table


def print_plan(plan: Plan, console: Console) -> None:
    """Print the table, the parameters and the loss before and after."""
    # Outside of the table, which is narrow and would break these lines.
    title = f"{plan.model.id}: what was replaced, fitted on {plan.data.source}"
    console.print(title, style="italic", markup=False, highlight=False)
    console.print(plan_table(plan))
    console.print("held out: share of the target's energy that maps of the other folds explain", style="dim")
    if plan.parameters:
        before, after = plan.parameters.before, plan.parameters.after
        console.print(f"parameters {before:,} -> {after:,} ({after / before - 1:+.1%})", highlight=False)
    chosen = plan.selection
    if chosen and chosen.loss_before is not None and chosen.loss_after is not None:
        console.print(
            f"loss {chosen.loss_before:.4f} -> {chosen.loss_after:.4f} nats per token on {chosen.tokens:,} tokens "
            "that nothing was fitted on",
            highlight=False,
        )
    if plan.heal:
        console.print(str(plan.heal), highlight=False)
    print_warnings(plan.warnings, console)


def _plan_cells(replacement: Replacement) -> list[str]:
    fit = replacement.fit
    return [
        replacement.where,
        replacement.target,
        replacement.kind,
        "-" if replacement.rank is None else str(replacement.rank),
        f"{fit.parameters_before:,} -> {fit.parameters_after:,}" if fit else "-",
        "-" if fit is None or fit.ridge is None else f"{fit.ridge:g}",
        _number(fit.held_out if fit else None, 4),
    ]


def _cells(block: BlockRecord, sinks: bool, digits: int) -> list[str]:
    without = block.without_sinks
    cells = [
        str(block.index),
        _number(block.linearity.in_sample, digits),
        _held_out(block.linearity, digits),
        _number(block.identity, digits),
        _number(block.update_linearity.in_sample, digits),
        _held_out(block.update_linearity, digits),
        _number(block.null, digits),
        _number(block.update_ratio, 3),
        _number(block.cosine, 3),
    ]
    if sinks:
        share = "-" if without.sink_energy is None else f"{without.sink_energy:.1%}"
        cells += [f"{without.sinks} ({share})", _number(without.update_linearity.in_sample, digits)]
    return cells


def _held_out(linearity: LinearityRecord, digits: int) -> str:
    if linearity.held_out is None:
        return "-"
    return f"{linearity.held_out:.{digits}f} ± {linearity.stderr:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
