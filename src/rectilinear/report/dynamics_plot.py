"""Figures of dynamics."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, floor
from pathlib import Path
from typing import TYPE_CHECKING

from rectilinear.measurement.dynamics import Dynamics, Mean, best_value, mean_curve
from rectilinear.report.style import BLUE, ORANGE, STYLE, save_figure, say_what

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Scores below this are off the scale: a map that is so much worse than none is no more informative than this.
_FLOOR = -0.3

# Letters that fit below the figure, and how many there are between two labels at least.
_ROOM, _GAP = 84, 3


def plot_dynamics(dynamics: Dynamics) -> Figure:
    """How linear blocks are at each step of training.

    Above, the update linearity of every block (held out where there is such a score); cells without a score
    are hatched. Below, the means over blocks of update linearity and linearity: error bars are two standard
    errors over parts of the text, bands reach from the least to the most linear block. Every point has a column
    of the same width, whatever the steps between them, so that early and late steps can both be read.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        count = len(dynamics.points)
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1.25, 1])
        _draw_blocks(above, dynamics)
        shift = min(0.006 * count, 0.15)  # so that error bars of the two do not hide each other
        _draw_mean(below, mean_curve(dynamics, "linearity"), BLUE, "o", "output, $y = x + d$", -shift)
        _draw_mean(below, mean_curve(dynamics, "update_linearity"), ORANGE, "s", "update, $d$", shift)
        _finish(below, dynamics)
        above.set_xlim(-0.5, count - 0.5)
        say_what(figure, dynamics.model.id, dynamics.data)
    return figure


def save_dynamics_figure(dynamics: Dynamics, folder: str | Path) -> None:
    """Write ``dynamics.png`` (300 dpi) and ``dynamics.svg`` into a folder."""
    save_figure(plot_dynamics(dynamics), folder, "dynamics")


def _draw_blocks(axes: Axes, dynamics: Dynamics) -> None:
    import numpy
    from matplotlib.ticker import MaxNLocator

    blocks, nan = dynamics.model.num_blocks, float("nan")
    values = numpy.full((blocks, len(dynamics.points)), nan)
    for column, point in enumerate(dynamics.points):
        for block in point.blocks:
            score = best_value(block.update_linearity)
            values[block.index, column] = nan if score is None else score
    low, high, below = _range(values[numpy.isfinite(values)].tolist())
    axes.set_facecolor("#eeeeee")
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor("#bbbbbb")
    mesh = axes.pcolormesh(
        numpy.arange(len(dynamics.points) + 1) - 0.5,
        numpy.arange(blocks + 1) - 0.5,
        values,
        cmap="cividis",
        vmin=low,
        vmax=high,
        # Vector figures show hairs between cells without it.
        rasterized=True,
    )
    bar = axes.figure.colorbar(mesh, ax=axes, extend="min" if below else "neither", pad=0.015)
    bar.set_label(f"update linearity{_held_out(dynamics)}")
    bar.outline.set_visible(False)
    hatched = " (hatched: no score)" if numpy.isnan(values).any() else ""
    axes.set_title(f"Linearity of each block's update, $d${hatched}")
    axes.set_ylabel("block")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    axes.tick_params(bottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _held_out(dynamics: Dynamics) -> str:
    blocks = [block for point in dynamics.points for block in point.blocks]
    return ", held out" if blocks and all(block.update_linearity.held_out is not None for block in blocks) else ""


def _range(values: list[float]) -> tuple[float, float, bool]:
    """Ends of the colour scale on multiples of 0.05, at least 0.2 apart; whether a value is below them."""
    if not values:
        return 0.0, 1.0, False
    low = max(_FLOOR, floor(min(values) * 20) / 20)
    high = max(low, min(1.0, ceil(max(values) * 20) / 20))
    if high - low < 0.2:
        high = min(1.0, low + 0.2)
        low = high - 0.2
    return low, high, min(values) < low - 1e-9


def _draw_mean(axes: Axes, curve: list[Mean], color: str, marker: str, label: str, shift: float) -> None:
    nan = float("nan")
    places = [place + shift for place in range(len(curve))]
    lowest = [nan if mean.lowest is None else mean.lowest for mean in curve]
    highest = [nan if mean.highest is None else mean.highest for mean in curve]
    if len(curve) > 1:
        axes.fill_between(places, lowest, highest, color=color, alpha=0.15, linewidth=0)
    else:
        axes.vlines(places, lowest, highest, color=color, alpha=0.15, linewidth=8)
    axes.errorbar(
        places,
        [nan if mean.mean is None else mean.mean for mean in curve],
        yerr=[0.0 if mean.stderr is None else 2 * mean.stderr for mean in curve],
        color=color,
        marker=marker,
        markersize=3.5 if len(curve) <= 30 else 2,
        markerfacecolor="white",
        linewidth=1.2,
        capsize=2 if len(curve) <= 30 else 0,
        label=label,
    )


def _finish(axes: Axes, dynamics: Dynamics) -> None:
    steps = [point.step for point in dynamics.points]
    low, _ = axes.get_ylim()
    axes.set_ylim(max(min(0.0, low), _FLOOR), 1.02)
    axes.set_title("Mean over blocks ± 2 s.e., and from the least to the most linear block")
    axes.set_ylabel(f"linearity{_held_out(dynamics)}")
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="best", ncols=2, fontsize=8)
    labels = [f"{step:,}" for step in steps]
    places = _labelled(labels)
    axes.set_xticks(places, [labels[place] for place in places])
    even = len({two - one for one, two in pairwise(steps)}) < 2
    axes.set_xlabel("training step" if even else "training step (a column a point, not to scale)")


def _labelled(labels: list[str]) -> list[int]:
    """Which columns get a label: each one, or each second, fifth, tenth, ... where not all fit; always the last."""

    def fits(one: int, two: int) -> bool:
        return (two - one) * _ROOM / len(labels) >= (len(labels[one]) + len(labels[two])) / 2 + _GAP

    last = len(labels) - 1
    strides = (digit * 10**power for power in range(len(str(last)) + 1) for digit in (1, 2, 5))
    for stride in strides:
        places = list(range(0, last + 1, stride))
        if all(fits(one, two) for one, two in pairwise(places)):
            break
    while places[-1] != last and places[-1] > 0 and not fits(places[-1], last):
        places.pop()
    return places if places[-1] == last else [*places, last]
