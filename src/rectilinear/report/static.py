"""Charts as matplotlib figures, for paper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rectilinear.charts import CEILING, FLOOR, Axis, Chart, Curves, HeatMap, Line
from rectilinear.report.point_names import place_names
from rectilinear.report.ticks import finish_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

#: Okabe and Ito's colours, told apart by colour-blind readers and in grey.
COLORS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "yellow": "#E69F00",
    "grey": "#777777",
}

#: Widths of one and two columns of a paper, in inches.
WIDTHS = {"single": 3.5, "double": 7.2}

_DASHES = {"solid": "-", "dashed": "--", "dotted": ":", "dash-dotted": "-.", "none": "none"}
_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "x"}
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "rectilinear",
    "pdf.fonttype": 42,
}

# Height of a row of panels, and of each further line below their axes, in inches.
_HEIGHT, _LINE = 2.7, 0.15


def draw(
    chart: Chart, ax: Axes | Sequence[Axes] | None = None, width: Literal["single", "double"] = "double"
) -> Figure:
    """A figure of a chart.

    Args:
        chart: what to draw.
        ax: axes to draw into, as many as there are panels or, for the last of these alone, fewer; default: those of a
            new figure.
        width: of the new figure, a single or a double column.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        if ax is not None:
            axes: list[Any] = [*ax] if isinstance(ax, Iterable) else [ax]
            panels = [*zip(axes, chart.panels[-len(axes) :], strict=True)]
            _draw_panels(panels)
            if lines := [line for panel in chart.panels[-len(axes) :] for line in _named(panel)]:
                _legend(axes[-1], lines)
            theirs: Figure = axes[0].figure
            return theirs
        columns = min(chart.columns, len(chart.panels)) if width == "double" else 1
        rows = ceil(len(chart.panels) / columns)
        heights = chart.heights if len(chart.heights) == rows else (1,) * rows
        more = max(panel.x.label.count("\n") for panel in chart.panels) * _LINE
        figure = Figure(figsize=(WIDTHS[width], (_HEIGHT + more) * rows + 0.4), layout="constrained")
        across, up = chart.alike, chart.alike and columns > 1
        table = figure.subplots(rows, columns, squeeze=False, height_ratios=heights, sharex=across, sharey=up)
        grid = [*table.flat]
        for spare in grid[len(chart.panels) :]:
            spare.remove()
            grid[len(chart.panels) - columns].tick_params(labelbottom=True)
        _draw_panels([*zip(grid, chart.panels, strict=False)], columns if chart.alike else 0)
        figure.suptitle(chart.title, x=0.01, ha="left", fontsize=8, color="#444444", parse_math=False)
        if lines := [line for panel in chart.panels for line in _named(panel)]:
            _legend(figure, lines)
        if named := [panel for panel in grid if panel.texts]:
            figure.draw_without_rendering()  # where points are is known once there is a layout
            for panel in named:
                place_names(panel)
        return figure


def save(chart: Chart, folder: str | Path, kinds: Iterable[str] = ("png", "svg"), **how: Any) -> list[str]:
    """Write a chart into a folder, as files of some kinds (png at 300 dpi); return their names."""
    import matplotlib

    figure, names = draw(chart, **how), []
    with matplotlib.rc_context(_STYLE):
        for kind in kinds:
            names.append(f"{chart.name}.{kind}")
            dates: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            figure.savefig(Path(folder) / names[-1], dpi=300, metadata=dates.get(kind))
    return names


def _draw_panels(panels: Sequence[tuple[Axes, Curves | HeatMap]], columns: int = 0) -> None:
    """Into axes each; of those that share theirs, in so many columns, the outer ones have labels."""
    for axes, panel in panels:
        axes.set_title(panel.title, parse_math=False)
        if isinstance(panel, HeatMap):
            _draw_cells(axes, panel)
            continue
        for line in panel.lines:
            _draw_line(axes, line, panel.y)
    curves = [panel for _, panel in panels if isinstance(panel, Curves)]
    for place, (axes, panel) in enumerate(panels):
        if isinstance(panel, Curves):
            _finish_scale(axes, panel, curves if columns else [panel])
        if not columns or place + columns >= len(panels):
            axes.set_xlabel(panel.x.label, parse_math=False)
        if not columns or place % columns == 0:
            axes.set_ylabel(panel.y.label, parse_math=False)
        finish_ticks(axes.xaxis, panel.x, 12)
        finish_ticks(axes.yaxis, panel.y, 10)


def _draw_line(axes: Axes, line: Line, scale: Axis) -> None:
    color, values = COLORS[line.color], _numbers(line.y, scale)
    look: dict[str, Any] = {"color": color, "linestyle": _DASHES[line.dash], "linewidth": line.width}
    few = len(line.x) <= 40
    if line.edge:
        along = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 3}
        axes.plot(line.x, [0.0] * len(line.x), label=line.label, **look | along, **_marker(line, few))
        return
    look |= _marker(line, few)
    if line.low and line.spread == "band":
        low, high = _numbers(line.low, scale), _numbers(line.high, scale)
        if len(line.x) > 1:
            axes.fill_between(line.x, low, high, color=color, alpha=0.16, linewidth=0)
        else:
            axes.vlines(line.x, low, high, color=color, alpha=0.16, linewidth=8)
    if line.spread == "bars" and (line.low or line.left):
        up = _bars(values, _numbers(line.low, scale), _numbers(line.high, scale)) if line.low else None
        across = _bars(line.x, line.left, line.right) if line.left else None
        axes.errorbar(line.x, values, yerr=up, xerr=across, label=line.label, capsize=2 if few else 0, **look)
    else:
        axes.plot(line.x, values, label=line.label, **look)
    for x, y, name in zip(line.x, values, line.names, strict=False):
        offset: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points"}
        text = axes.annotate(name, (x, y), fontsize=6.5, color=color, parse_math=False, **offset)
        text.set_in_layout(False)  # panels leave room for names inside, where these are placed afterwards


def _marker(line: Line, few: bool) -> dict[str, Any]:
    face = COLORS[line.color] if line.edge else "white"
    return {"marker": _MARKERS.get(line.marker), "markersize": 3.5 if few else 2, "markerfacecolor": face}


def _bars(values: Sequence[float], low: Sequence[float | None], high: Sequence[float | None]) -> list[list[float]]:
    """How far ranges reach below and above values; not at all where they have no ends."""
    bars = [
        (value - one, two - value)
        if one is not None and two is not None and isfinite(one) and isfinite(two)
        else (0.0, 0.0)
        for value, one, two in zip(values, low, high, strict=True)
    ]
    return [[*side] for side in zip(*bars, strict=True)]


def _draw_cells(axes: Axes, panel: HeatMap) -> None:
    import numpy

    values = numpy.array([[numpy.nan if cell is None else cell for cell in row] for row in panel.cells], dtype=float)
    axes.set_facecolor("#eeeeee")
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor("#bbbbbb")
    mesh = axes.pcolormesh(
        numpy.arange(values.shape[1] + 1) - 0.5,
        numpy.arange(values.shape[0] + 1) - 0.5,
        values,
        cmap="cividis",
        vmin=panel.low,
        vmax=panel.high,
        rasterized=True,  # vector figures show hairs between cells without it
    )
    known = values[numpy.isfinite(values)]
    below, above = (known < panel.low - 1e-9).any(), (known > panel.high + 1e-9).any()
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((bool(below), bool(above)))
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend or "neither", pad=0.015)
    bar.set_label(panel.color)
    bar.outline.set_visible(False)
    axes.tick_params(bottom=False, left=False)
    if not panel.x.ticks and values.shape[0] == values.shape[1]:
        axes.set_aspect("equal")
    for side in axes.spines.values():
        side.set_visible(False)


def _finish_scale(axes: Axes, panel: Curves, sharing: Sequence[Curves]) -> None:
    if panel.y.scale == "log":
        axes.set_yscale("log")
    elif panel.y.scale == "score":
        low, _ = axes.get_ylim()
        axes.set_ylim(max(min(0.0, low), FLOOR), 1.02)
    elif panel.y.scale == "score_log":
        import numpy
        from matplotlib.ticker import NullLocator

        axes.set_yscale(
            "function",
            functions=(
                lambda score: -numpy.log10(1 - numpy.minimum(score, CEILING)),
                lambda height: 1 - 10.0**-height,
            ),
        )
        shown = [y for each in sharing for line in each.lines for y in line.y if y is not None]
        best = min(CEILING, max(shown, default=0.0))
        nines = next(n for n in range(1, 7) if best <= 1 - 10.0**-n)
        axes.set_ylim(max(min([0.0, *shown]), FLOOR), 1 - 0.7 * 10.0**-nines)
        ticks = [0.0, 0.5, *(1 - 10.0**-n for n in range(1, nines + 1))]
        axes.set_yticks(ticks, [f"{tick:.{max(1, place - 1)}f}" for place, tick in enumerate(ticks)])
        axes.yaxis.set_minor_locator(NullLocator())
    if panel.x.scale == "log":
        axes.set_xscale("log")
    if any(line.names for line in panel.lines):
        axes.margins(0.1, 0.15)  # room for names
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(where: Axes | Figure, lines: Sequence[Line]) -> Legend:
    """The lines' labels, each once; below a figure as many beside another as there is room for."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    handles: dict[str, Line2D] = {}
    for line in lines:
        look: dict[str, Any] = {"linestyle": _DASHES[line.dash], "linewidth": line.width}
        look |= _marker(line, few=True) | {"markersize": 4}
        handles.setdefault(line.label, Line2D([], [], color=COLORS[line.color], **look))
    # Set afterwards: a label that begins with an underscore would be left out, and a dollar sign begin a formula.
    places = [str(place) for place in range(len(handles))]

    def make(columns: int) -> Legend:
        found: Legend = (
            where.legend([*handles.values()], places, loc="outside lower center", ncols=columns)
            if isinstance(where, Figure)
            else where.legend([*handles.values()], places, loc="best", ncols=columns)
        )
        for text, label in zip(found.get_texts(), handles, strict=True):
            text.set_parse_math(False)
            text.set_text(label)
        return found

    if not isinstance(where, Figure):
        return make(1 if len(handles) < 3 else 2)
    for columns in range(len(handles), 0, -1):
        legend = make(columns)
        if columns == 1 or legend.get_window_extent().width < 0.98 * where.bbox.width:
            break
        legend.remove()
    return legend


def _named(panel: Curves | HeatMap) -> Iterator[Line]:
    yield from (line for line in panel.lines if line.label) if isinstance(panel, Curves) else ()


def _numbers(values: Iterable[float | None], scale: Axis) -> list[float]:
    """Values that can be drawn: none are gaps, and none are off the end of a scale."""
    top = CEILING if scale.scale == "score_log" else float("inf")
    return [float("nan") if value is None else min(value, top) for value in values]
