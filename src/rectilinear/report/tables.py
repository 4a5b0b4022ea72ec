"""Warnings on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console


def print_warnings(warnings: Sequence[str], console: Console) -> None:
    """Print what a reader of a result must know, a line each."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
