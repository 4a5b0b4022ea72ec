"""Results on a terminal: one renderer for every table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from rectilinear.characters import visible
from rectilinear.ranks import current
from rectilinear.results import ResultFile
from rectilinear.settings import in_flags
from rectilinear.tables import Table


class Terminal(Console):
    """A console that shows control characters of names and data, and does not obey them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """What every text passes that is printed, those in tables too."""
        return super().render_str(visible(text), **options)


def stdout() -> Terminal:
    """Where results go; wide where it is not a terminal, so that tables in logs stay whole.

    Of processes that share a job the first one alone prints.
    """
    return Terminal(width=None if sys.stdout.isatty() else 140, quiet=not current().is_first)


def say(text: str, *, to_errors: bool = False) -> None:
    """Print a line that is no result, on standard output or that for errors."""
    if current().is_first:
        print(visible(text), file=sys.stderr if to_errors else sys.stdout, flush=True)


def show(result: ResultFile, console: Console | None = None) -> None:
    """Print a result: its tables, with titles and captions, and its warnings."""
    console = console or stdout()
    for table in result.tables():
        show_table(table, console)
    show_warnings(result.all_warnings(), console)


def show_table(table: Table, console: Console) -> None:
    """Print a table; where it is wider than the console, in parts or with fewer digits and without rules."""
    # Title and caption beside the table, not in it: as narrow as it may be, it would break their lines.
    if table.title:
        console.print(table.title, style="italic", markup=False, highlight=False)
    for part in _parts(table, console):
        console.print(_render(part, compact=not _fits(part, console)))
    if table.caption:
        console.print(table.caption, style="dim italic", markup=False, highlight=False)


def _fits(table: Table, console: Console) -> bool:
    options = console.options.update(max_width=9999)
    return Measurement.get(console, options, _render(table, compact=False)).maximum <= console.width


def _parts(table: Table, console: Console) -> Iterator[Table]:
    """The table, or as few parts of it as fit, each with the columns that say what its rows are."""
    first, total = table.keys, len(table.columns)
    if not 0 < first < total:
        yield table
        return
    while first < total:
        sizes = range(total - first, 0, -1)
        size = next((size for size in sizes if _fits(table.part(first, first + size), console)), 1)
        yield table.part(first, first + size)
        first += size


def show_warnings(warnings: Iterable[str], console: Console) -> None:
    """Print what a reader of a result must know, a line each."""
    for warning in warnings:
        console.print(f"warning: {in_flags(warning)}", style="yellow", markup=False, highlight=False)


def _render(table: Table, *, compact: bool) -> RichTable:
    rendered = RichTable(box=SIMPLE_HEAD if compact else HEAVY_HEAD, padding=0 if compact else (0, 1))
    for place, column in enumerate(table.columns):
        text = table.is_text(place)
        heading = column.name.replace("linearity", "lin.") if compact else column.name
        # The texts that say what a row is may be long.
        wraps = compact and text and place < table.keys
        rendered.add_column(
            escape(heading),
            justify="left" if text else "right",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    for number, row in enumerate(table.texts(fewer_digits=int(compact))):
        if number in table.sections:
            rendered.add_section()
        rendered.add_row(*map(escape, row))
    return rendered
