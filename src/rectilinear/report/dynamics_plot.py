"""Figures of dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor
from typing import TYPE_CHECKING

from rectilinear.measurement.dynamics import Dynamics, Mean, mean_curve
from rectilinear.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Letters that fit below the figure, and how many there are between two labels at least.
_ROOM, _GAP = 84, 3


def plot_dynamics(dynamics: Dynamics, *others: Dynamics, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """How linear blocks are at each step of training.

    Above, the update linearity of every block (held out where there is such a score); cells without a score
    are hatched. Below, the means over blocks of update linearity and linearity: error bars are two standard
    errors over parts of the text, bands reach from the least to the most linear block. Every point has a column
    of the same width, whatever the steps between them, so that early and late steps can both be read.
    Of several trainings the means of update linearity alone, a colour each.

    Args:
        dynamics: what to show.
        others: what to show beside it.
        ax: axes to draw into: two, one above the other, or one for the means alone; default: those of a new figure.
    """
    series = (dynamics, *others)
    steps = sorted({point.step for each in series for point in each.points})
    two = {"size": (7.2, 5.0), "rows": 2, "sharex": True, "height_ratios": [1.25, 1]}
    with style.drawing(ax, **({"size": (7.2, 3.1)} if others else two)) as (figure, axes):
        if len(axes) > 1 and not others:
            _draw_blocks(axes[0], dynamics)
        means = axes[-1]
        shift = min(0.006 * len(steps), 0.15)  # so that error bars do not hide each other
        if others:
            for place, (each, label) in enumerate(zip(series, style.name_all(series), strict=True)):
                color, marker = style.SERIES[place % len(style.SERIES)]
                off = shift * (2 * place / (len(series) - 1) - 1)
                _draw_mean(means, mean_curve(each), steps, off, color=color, marker=marker, label=label)
        else:
            curve = mean_curve(dynamics, "linearity")
            _draw_mean(means, curve, steps, -shift, color=style.BLUE, marker="o", label="output, $y = x + d$")
            _draw_mean(means, mean_curve(dynamics), steps, shift, color=style.ORANGE, marker="s", label="update, $d$")
        _finish(means, steps, series)
        axes[0].set_xlim(-0.5, len(steps) - 0.5)
        if ax is None and not others:
            style.say_what(figure, dynamics.model.id, dynamics.data)
    return figure


def _draw_blocks(axes: Axes, dynamics: Dynamics) -> None:
    import numpy

    blocks, nan = dynamics.model.num_blocks, float("nan")
    values = numpy.full((blocks, len(dynamics.points)), nan)
    for column, point in enumerate(dynamics.points):
        for block in point.blocks:
            score = block.update_linearity.best
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
    bar.set_label(f"update linearity{_held_out([dynamics])}")
    bar.outline.set_visible(False)
    hatched = " (hatched: no score)" if numpy.isnan(values).any() else ""
    axes.set_title(f"Linearity of each block's update, $d${hatched}")
    axes.set_ylabel("block")
    style.mark_whole_numbers(axes.yaxis, 10)
    axes.tick_params(bottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _held_out(series: Sequence[Dynamics]) -> str:
    blocks = [block for each in series for point in each.points for block in point.blocks]
    return ", held out" if blocks and all(block.update_linearity.held_out is not None for block in blocks) else ""


def _range(values: list[float]) -> tuple[float, float, bool]:
    """Ends of the colour scale on multiples of 0.05, at least 0.2 apart; whether a value is below them."""
    if not values:
        return 0.0, 1.0, False
    low = max(style.FLOOR, floor(min(values) * 20) / 20)
    high = max(low, min(1.0, ceil(max(values) * 20) / 20))
    if high - low < 0.2:
        high = min(1.0, low + 0.2)
        low = high - 0.2
    return low, high, min(values) < low - 1e-9


def _draw_mean(axes: Axes, curve: list[Mean], steps: list[int], shift: float, *, color: str, **look: str) -> None:
    places = [steps.index(mean.step) + shift for mean in curve]
    lowest, highest = style.numbers(mean.lowest for mean in curve), style.numbers(mean.highest for mean in curve)
    if len(curve) > 1:
        axes.fill_between(places, lowest, highest, color=color, alpha=0.15, linewidth=0)
    else:
        axes.vlines(places, lowest, highest, color=color, alpha=0.15, linewidth=8)
    size = {"markersize": 3.5, "capsize": 2} if len(steps) <= 30 else {"markersize": 2, "capsize": 0}
    style.draw_scores(axes, places, [m.mean for m in curve], [m.stderr for m in curve], color=color, **size, **look)


def _finish(axes: Axes, steps: list[int], series: Sequence[Dynamics]) -> None:
    style.finish_scores(axes)
    of = " of the updates" if len(series) > 1 else ""
    axes.set_title(f"Mean over blocks{of} ± 2 s.e., and from the least to the most linear block")
    axes.set_ylabel(f"{'update ' if of else ''}linearity{_held_out(series)}")
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
