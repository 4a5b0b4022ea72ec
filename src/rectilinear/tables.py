"""Tables as results give them: a title, columns, rows and a caption, for a terminal, a notebook or a data frame."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pandas import DataFrame


class Estimate(NamedTuple):
    """A number as a table has it.

    Attributes:
        value: the number.
        stderr: its standard error; None where it is unknown.
        format: of its own, where the numbers of a column differ in kind: as a column's, or with text around it, as in
            ``x {:.3f}``; "" for the column's.
        mark: what stands after it, such as a star.
    """

    value: float
    stderr: float | None = None
    format: str = ""
    mark: str = ""


#: What a cell holds; None where there is nothing to tell.
Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading, perhaps of several lines.
        format: of its numbers, as Python's format specifications have it, such as ``.4f``.
    """

    name: str
    format: str = ""

    def text(self, cell: Cell, fewer_digits: int = 0) -> str:
        """A cell as text, with fewer digits after the point where there is little room."""
        if cell is None:
            return "-"
        if isinstance(cell, str):
            return cell
        number = cell if isinstance(cell, Estimate) else Estimate(cell)
        spec = number.format or self.format
        if fewer_digits:
            spec = re.sub(r"\.([2-9])", lambda digits: f".{max(1, int(digits[1]) - fewer_digits)}", spec)
        error = "" if number.stderr is None else format(number.stderr, spec.lstrip("+"))
        value = spec.format(number.value) if "{" in spec else format(number.value, spec)
        return value + (("±" if fewer_digits else " ± ") + error if error else "") + number.mark


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        columns: their headings and formats; a bare name is a column of text.
        rows: of as many cells as there are columns.
        title: what the table is about.
        caption: how it is to be read.
        sections: numbers of rows before which a new section begins.
        keys: how many of the first columns say what a row is; a table that is too wide is split, each part with these.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    caption: str = ""
    sections: tuple[int, ...] = ()
    keys: int = 1

    @classmethod
    def of(cls, columns: Iterable[Column | str], rows: Iterable[Iterable[Cell]], **texts: Any) -> Table:
        """A table of some columns and rows; ``texts`` are the other attributes."""
        named = tuple(Column(column) if isinstance(column, str) else column for column in columns)
        return cls(named, tuple(tuple(row) for row in rows), **texts)

    def part(self, first: int, last: int) -> Table:
        """The table with its keys and the columns from ``first`` up to ``last``."""
        places = [*range(self.keys), *range(first, last)]
        columns = tuple(self.columns[place] for place in places)
        return replace(self, columns=columns, rows=tuple(tuple(row[place] for place in places) for row in self.rows))

    def is_text(self, place: int) -> bool:
        """Whether a column holds texts, not numbers."""
        return any(isinstance(row[place], str) for row in self.rows) and not self.columns[place].format

    def texts(self, fewer_digits: int = 0) -> Iterator[tuple[str, ...]]:
        """The rows as text."""
        for row in self.rows:
            yield tuple(column.text(cell, fewer_digits) for column, cell in zip(self.columns, row, strict=True))

    def __str__(self) -> str:
        heads = tuple(" ".join(column.name.split()) for column in self.columns)
        lines = [heads, *self.texts()]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        body = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(filter(None, [self.title, *body, self.caption]))

    def to_html(self) -> str:
        """The table for a notebook; all texts are escaped."""
        head = "".join(f"<th>{escape(' '.join(column.name.split()))}</th>" for column in self.columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.texts())
        title, caption = (f"<p>{escape(text)}</p>" if text else "" for text in (self.title, self.caption))
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{caption}"

    def to_frame(self) -> DataFrame:
        """The table as a pandas data frame; standard errors are columns of their own."""
        from pandas import DataFrame

        frame: dict[str, list[Any]] = {}
        for place, column in enumerate(self.columns):
            cells, name = [row[place] for row in self.rows], " ".join(column.name.split())
            while name in frame:
                name += "'"
            frame[name] = [cell.value if isinstance(cell, Estimate) else cell for cell in cells]
            if any(isinstance(cell, Estimate) for cell in cells):
                frame[f"{name} stderr"] = [cell.stderr if isinstance(cell, Estimate) else None for cell in cells]
        return DataFrame(frame)
