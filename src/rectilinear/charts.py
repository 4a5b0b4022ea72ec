"""Figures as results give them: what is drawn, as data, for a page, for paper or for a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rectilinear.tables import Column, Table

Number = float | None
Color = Literal["blue", "orange", "green", "purple", "yellow", "grey"]
Dash = Literal["solid", "dashed", "dotted", "dash-dotted", "none"]
Marker = Literal["", "circle", "square", "triangle", "diamond", "down", "plus", "cross"]

#: Scores below this are off the scale: a map that is so much worse than none is no more informative than this.
FLOOR = -0.3

#: Scores nearer to 1 than this are drawn at it, where the distance from 1 is drawn.
CEILING = 1 - 1e-6


@dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Attributes:
        label: what is on it, with its unit.
        scale: ``score`` is for shares of variance, at most 1; of these ``score_log`` draws ``log10(1 - score)``, so
            that .99 and .999 are as far apart as 0 and .9.
        whole: whether it has whole numbers only.
        ticks: names of the places 0, 1, 2 and so on; none where the numbers themselves are named.
    """

    label: str
    scale: Literal["linear", "log", "score", "score_log"] = "linear"
    whole: bool = False
    ticks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """Values at some places, perhaps with a range around each.

    Attributes:
        label: in the legend.
        x: places.
        y: values; None is a gap.
        low, high: ends of the ranges; none where they are empty.
        spread: how ranges are drawn.
        color, dash, marker, width: how it looks.
        names: what is written beside each point; none where empty.
        left, right: ends of the ranges across; none where they are empty.
        edge: whether it stands along the lower edge of the panel, where it marks places and has no values.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[Number, ...]
    low: tuple[Number, ...] = ()
    high: tuple[Number, ...] = ()
    spread: Literal["bars", "band"] = "bars"
    color: Color = "blue"
    dash: Dash = "solid"
    marker: Marker = ""
    width: float = 1.3
    names: tuple[str, ...] = ()
    left: tuple[Number, ...] = ()
    right: tuple[Number, ...] = ()
    edge: bool = False

    @classmethod
    def of(
        cls, label: str, x: Iterable[float], y: Iterable[Number], halves: Sequence[Number] = (), **look: Any
    ) -> Line:
        """A line with ranges of some half widths; a point without one has none."""
        values = tuple(y)
        known = any(half is not None for half in halves)
        pairs = [*zip(values, halves, strict=True)] if known else []
        low = tuple(None if value is None or half is None else value - half for value, half in pairs)
        high = tuple(None if value is None or half is None else value + half for value, half in pairs)
        return cls(label, tuple(x), values, low, high, **look)


@dataclass(frozen=True)
class Curves:
    """A panel of lines."""

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]

    def table(self) -> Table:
        """Its numbers, a row a point."""
        rows = [
            (self.title, line.label, *point)
            for line in self.lines
            for point in zip(line.x, (None,) * len(line.x) if line.edge else line.y, *_others(line), strict=True)
        ]
        return Table.of(["panel", "line", "x", "y", "low", "high", "name", "left", "right"], rows)


@dataclass(frozen=True)
class HeatMap:
    """A panel of cells whose colour is a value.

    Attributes:
        cells: rows from below, of columns from left, at the places 0, 1, 2 and so on; None is a gap.
        color: what the colour is, with its unit.
        low, high: ends of the colours; values beyond have those of the ends.
    """

    title: str
    x: Axis
    y: Axis
    cells: tuple[tuple[Number, ...], ...]
    color: str
    low: float
    high: float

    def table(self) -> Table:
        """Its numbers, a row a cell."""
        rows = [
            (self.title, self.color, self.x.ticks[x] if self.x.ticks else x, y, value)
            for y, row in enumerate(self.cells)
            for x, value in enumerate(row)
        ]
        return Table.of(["panel", "value", "x", "y", "z"], rows)


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        name: of its file, without an ending.
        title: what it is about: a model and a text.
        panels: from left to right and from top to bottom.
        caption: how it is to be read.
        columns: of panels, where there is room.
        alike: whether all panels have the same axes.
        heights: of rows of panels, relative to one another; all alike where empty.
    """

    name: str
    title: str
    panels: tuple[Curves | HeatMap, ...]
    caption: str = ""
    columns: int = 2
    alike: bool = True
    heights: tuple[float, ...] = ()

    def tables(self) -> list[Table]:
        """Its numbers, a table for each sort of panel."""
        found: dict[tuple[Column, ...], Table] = {}
        for table in (panel.table() for panel in self.panels):
            before = found.get(table.columns)
            found[table.columns] = replace(table, rows=before.rows + table.rows) if before else table
        return [*found.values()]


@dataclass(frozen=True)
class MarkedText:
    """A text whose tokens are marked by a value each.

    Attributes:
        title: what is marked.
        tokens: as they stand one after the other.
        values: of each; None for none.
        caption: what the values are.
        low, high: values that have no mark, and the fullest.
    """

    title: str
    tokens: tuple[str, ...]
    values: tuple[Number, ...]
    caption: str = ""
    low: float = 0.0
    high: float = 1.0


def unbeaten(points: Iterable[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Of points (a cost, a loss, a name) those that no other beats in both, from the least costly on."""
    best: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def frontier(points: Sequence[tuple[float, float, str]]) -> Line:
    """Steps between such points."""
    corners = [(x, y) for place, (x, own, _) in enumerate(points) for y in (*[points[place - 1][1]] * bool(place), own)]
    x, y = zip(*corners, strict=True)
    return Line("frontier", x, y, color="grey", dash="dashed", width=1.0)


#: Looks of several results in one panel: told apart by colour-blind readers and in grey.
SERIES: tuple[tuple[Color, Marker], ...] = (
    ("orange", "square"),
    ("blue", "circle"),
    ("green", "triangle"),
    ("purple", "diamond"),
    ("yellow", "down"),
    ("grey", "plus"),
)


def _others(line: Line) -> list[tuple[Any, ...]]:
    """What a line may have of each point beside its value."""
    return [given or (None,) * len(line.x) for given in (line.low, line.high, line.names, line.left, line.right)]
