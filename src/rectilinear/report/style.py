"""What all figures share: colours, style, axes, error bars, the line that says what is shown, files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

from rectilinear.models.origin import short_name
from rectilinear.results import DataRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#666666", "#009E73"

# Colours and markers of several results in one figure.
_SERIES = ((ORANGE, "s"), (BLUE, "o"), (GREEN, "^"), ("#CC79A7", "D"), ("#E69F00", "v"), (GREY, "P"))

#: Scores below this are off the scale: a map that is so much worse than none is no more informative than this.
FLOOR = -0.3

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rectilinear",
}


@contextmanager
def drawing(
    ax: Axes | Sequence[Axes] | None, size: tuple[float, float], rows: int = 1, columns: int = 1, **grid: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Axes to draw into in our style, and their figure: those that are given, or new ones in a figure of some size."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        if ax is None:
            figure = Figure(figsize=size, layout="constrained")
            yield figure, [*figure.subplots(rows, columns, squeeze=False, **grid).flat]
        else:
            axes = [*ax] if isinstance(ax, Iterable) else [ax]
            theirs: Any = axes[0].figure
            yield theirs, axes


def draw_scores(
    axes: Axes, places: Sequence[float], values: Iterable[float | None], bars: Iterable[float | None], **style: Any
) -> None:
    """A line with bars of some half widths, with gaps where there is no value."""
    axes.errorbar(
        places,
        numbers(values),
        yerr=[bar or 0.0 for bar in bars],
        **{"markersize": 3.5, "markerfacecolor": "white", "linewidth": 1.2, "capsize": 2, **style},
    )


def numbers(values: Iterable[float | None]) -> list[float]:
    """Values that can be drawn: none are gaps."""
    return [float("nan") if value is None else value for value in values]


def finish_scores(axes: Axes) -> None:
    """The scale of scores, up to 1 and down to 0 or what there is below it, with lines to read it by."""
    low, _ = axes.get_ylim()
    axes.set_ylim(max(min(0.0, low), FLOOR), 1.02)
    draw_grid(axes)


def draw_grid(axes: Axes) -> None:
    """Lines to read values by, behind what is drawn."""
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def mark_whole_numbers(axis: Axis, most: int) -> None:
    """Ticks at whole numbers, at most so many or so."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))


def say_what(figure: Figure, model: str, data: DataRecord) -> None:
    """Head a figure with the model and the text."""
    text = f"{short_name(model)}, {data.tokens:,} tokens of {short_name(data.source)}"
    figure.suptitle(text, x=0.01, ha="left", fontsize=9, color=GREY, parse_math=False)


def looks(results: Sequence[Any]) -> list[dict[str, str]]:
    """Colour, marker and label of several results: their models, or with their texts where a model comes again."""
    found = [(short_name(result.model.id), short_name(result.data.source)) for result in results]
    unique = len({model for model, _ in found}) == len(found)
    # Escaped: a dollar sign would begin a formula.
    labels = [(model if unique else f"{model}, {source}").replace("$", r"\$") for model, source in found]
    series = zip(labels, cycle(_SERIES), strict=False)
    return [{"color": color, "marker": marker, "label": label} for label, (color, marker) in series]
