"""Profiles and plans as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rectilinear.linearization.plan import Plan, Replacement


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


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
