"""Tables as results give them: a title, columns, rows and a caption, for a terminal, a notebook or a data frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pandas import DataFrame


class Estimate(NamedTuple):
    """A number with its standard error, which may be unknown."""

    value: float
    stderr: float | None = None


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
        spec = self.format
        before, point, digits = spec.partition(".")
        if point and digits[:-1].isdecimal():
            spec = f"{before}.{max(1, int(digits[:-1]) - fewer_digits)}{digits[-1]}"
        if not isinstance(cell, Estimate):
            return format(cell, spec)
        error = "" if cell.stderr is None else format(cell.stderr, spec.lstrip("+"))
        return format(cell.value, spec) + (("±" if fewer_digits else " ± ") + error if error else "")


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        columns: their headings and formats; a bare name is a column of text.
        rows: of as many cells as there are columns.
        title: what the table is about.
        caption: how it is to be read.
        sections: numbers of rows before which a new section begins.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    caption: str = ""
    sections: tuple[int, ...] = ()

    @classmethod
    def of(cls, columns: Iterable[Column | str], rows: Iterable[Iterable[Cell]], **texts: Any) -> Table:
        """A table of some columns and rows; ``texts`` are the other attributes."""
        named = tuple(Column(column) if isinstance(column, str) else column for column in columns)
        return cls(named, tuple(tuple(row) for row in rows), **texts)

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
