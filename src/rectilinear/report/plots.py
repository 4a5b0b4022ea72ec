"""Figures of results: profiles, dynamics and probes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil, floor
from typing import TYPE_CHECKING, Any

from rectilinear.evaluation.probe import Probe
from rectilinear.intervals import MANY, half_width
from rectilinear.measurement.dynamics import Dynamics, Mean, Score, mean_curve
from rectilinear.measurement.profile import BlockRecord, LinearityRecord, Profile
from rectilinear.models.origin import short_name
from rectilinear.report import style
from rectilinear.settings import Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN_SAMPLE, _HELD_OUT, _INTERVAL, _WITHOUT_SINKS = "in sample", "held out", ", 95 % interval", "without sinks"
_IDENTITY, _NULL, _SHIFTED = "identity (do nothing)", "null (independent tokens)", "shifted null (inputs of other rows)"
_LEGEND = [_IN_SAMPLE, _HELD_OUT, _HELD_OUT + _INTERVAL, _WITHOUT_SINKS, _IDENTITY, _NULL, _SHIFTED]
_SCORES: dict[Target, tuple[Score, ...]] = {
    "block": ("linearity", "update_linearity"),
    "attention": ("update_linearity",),
    "mlp": ("update_linearity",),
}
_TITLES: dict[tuple[Target, Score], str] = {
    ("block", "linearity"): "Linearity of the output, $y = x + d$",
    ("block", "update_linearity"): "Linearity of the update, $d$",
    ("attention", "update_linearity"): "Linearity of what attentions add",
    ("mlp", "update_linearity"): "Linearity of what MLPs add",
}

# Letters that fit below a figure of dynamics, and how many there are between two labels at least.
_ROOM, _GAP = 84, 3


def plot_profile(profile: Profile, *others: Profile, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """Linearity and update linearity by depth, in sample against held out.

    Left the score of the block's output, with the level that doing nothing reaches (identity); right the score of its
    update, with what inputs of other rows score for it in sample (shifted null, without sinks where there are any). In
    both the null level, what independent tokens would score. Error bars are 95 % intervals, by Student's t over folds.
    Of several profiles the held-out scores alone (in sample where there are none), a colour
    each.

    Of attentions and MLPs a panel each, of what they add to the residual stream.

    Args:
        profile: what to show.
        others: what to show beside it.
        ax: axes to draw into, as many as there are panels or, for the last of these alone, one; default: those of a new
            figure.
    """
    profiles = (profile, *others)
    wanted = [(target, score) for target in profile.scores for score in _SCORES[target]]
    rows, columns = ceil(len(wanted) / 2), min(len(wanted), 2)
    with style.drawing(ax, (3.6 * max(columns, 1.4), 3.1 * rows), rows, columns, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for spare in axes[len(wanted) :] if ax is None else ():
            spare.remove()
            axes[len(wanted) - columns].tick_params(labelbottom=True)
        axes = axes[: len(wanted)]
        panels = [*zip(axes, wanted[-len(axes) :], strict=True)]
        for panel, (target, score) in panels:
            for each, look in zip(profiles, style.looks(profiles), strict=True) if others else ():
                blocks = each.scores.get(target, ())
                scores = [getattr(block, score) for block in blocks]
                best, halves = [record.best for record in scores], [record.half_width for record in scores]
                style.draw_scores(panel, [block.index for block in blocks], best, halves, **look)
            if not others:
                _draw_profile(panel, profile.scores[target], score)
            panel.set_title(_TITLES[target, score])
            panel.set_xlabel("block")
        indices = [block.index for each in profiles for blocks in each.scores.values() for block in blocks]
        for panel, _ in panels:
            style.finish_scores(panel)
            style.mark_whole_numbers(panel.xaxis, 12)
            panel.set_xlim(min(indices) - 0.4, max(indices) + 0.4)
        parts = [panel.get_legend_handles_labels() for panel, _ in panels]
        named = {label: handle for handles, labels in parts for handle, label in zip(handles, labels, strict=True)}
        order = sorted(named, key=lambda label: _LEGEND.index(label) if label in _LEGEND else 0)
        handles = [named[label] for label in order]
        if ax is None:
            figure.legend(handles, order, loc="outside lower center", ncols=min(len(order), columns + 1), fontsize=8)
        else:
            panels[-1][0].legend(handles, order, fontsize=8)
        if ax is None and not others:
            style.say_what(figure, profile.model.id, profile.data)
    return figure


def _draw_profile(axes: Axes, blocks: Sequence[BlockRecord], name: Score) -> None:
    depth = [block.index for block in blocks]
    scores: list[LinearityRecord] = [getattr(block, name) for block in blocks]
    thick: dict[str, Any] = {"alpha": 0.45, "marker": "o", "markersize": 7, "markeredgewidth": 0, "linewidth": 3}
    axes.plot(depth, style.numbers(score.in_sample for score in scores), color=style.BLUE, label=_IN_SAMPLE, **thick)
    held_out, halves = [score.held_out for score in scores], [score.half_width for score in scores]
    label = _HELD_OUT + (_INTERVAL if any(halves) else "")  # which older files do not have
    style.draw_scores(axes, depth, held_out, halves, color=style.ORANGE, marker="s", label=label)
    if any(block.without_sinks.sinks for block in blocks):
        without: list[LinearityRecord] = [getattr(block.without_sinks, name) for block in blocks]
        values = style.numbers(score.held_out for score in without)
        axes.plot(depth, values, color=style.ORANGE, linestyle="none", marker="x", markersize=4, label=_WITHOUT_SINKS)
    levels = [(style.numbers(block.null for block in blocks), _NULL, style.GREY, ":")]
    if name == "linearity":
        levels.insert(0, (style.numbers(block.identity for block in blocks), _IDENTITY, style.GREEN, "--"))
    elif any(shifted := [block.without_sinks.null_shifted for block in blocks]):
        levels.append((style.numbers(shifted), _SHIFTED, style.GREY, "-."))
    for level, label, color, dashes in levels:
        axes.plot(depth, level, color=color, linestyle=dashes, linewidth=1.0, label=label)


def plot_dynamics(dynamics: Dynamics, *others: Dynamics, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """How linear blocks are at each step of training.

    Above, the update linearity of every block (held out where there is such a score); cells without a score
    are hatched. Below, the means over blocks of update linearity and linearity: error bars are 95 %
    intervals over parts of the text, bands reach from the least to the most linear block. Every point has a column
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
            for place, (each, look) in enumerate(zip(series, style.looks(series), strict=True)):
                _draw_mean(means, mean_curve(each), steps, shift * (2 * place / (len(series) - 1) - 1), **look)
        else:
            curve = mean_curve(dynamics, "linearity")
            _draw_mean(means, curve, steps, -shift, color=style.BLUE, marker="o", label="output, $y = x + d$")
            _draw_mean(means, mean_curve(dynamics), steps, shift, color=style.ORANGE, marker="s", label="update, $d$")
        _finish_means(means, steps, series)
        axes[0].set_xlim(-0.5, len(steps) - 0.5)
        if ax is None and not others:
            style.say_what(figure, dynamics.model.id, dynamics.data)
    return figure


def _draw_blocks(axes: Axes, dynamics: Dynamics) -> None:
    import numpy

    blocks, points = dynamics.model.num_blocks, len(dynamics.points)
    values = numpy.full((blocks, points), numpy.nan)
    for column, point in enumerate(dynamics.points):
        for block in point.blocks:
            [values[block.index, column]] = style.numbers([block.update_linearity.best])
    low, high, below = _color_range(values[numpy.isfinite(values)].tolist())
    axes.set_facecolor("#eeeeee")
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor("#bbbbbb")
    mesh = axes.pcolormesh(
        numpy.arange(points + 1) - 0.5,
        numpy.arange(blocks + 1) - 0.5,
        values,
        cmap="cividis",
        vmin=low,
        vmax=high,
        rasterized=True,  # vector figures show hairs between cells without it
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


def _color_range(values: list[float]) -> tuple[float, float, bool]:
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
    style.draw_scores(axes, places, [m.mean for m in curve], [m.half_width for m in curve], color=color, **size, **look)


def _finish_means(axes: Axes, steps: list[int], series: Sequence[Dynamics]) -> None:
    style.finish_scores(axes)
    of = " of the updates" if len(series) > 1 else ""
    known = any(mean.half_width for each in series for mean in mean_curve(each))  # not so in older files
    axes.set_title(f"Mean over blocks{of}{_INTERVAL * known}, and from the least to the most linear block")
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


def plot_probe(probe: Probe, *others: Probe, ax: Axes | None = None) -> Figure:
    """What probes get right, by depth.

    The first metric of the task on the validation part with a 95 % interval, beside cross-validation on the
    training part, over the level of the commonest answer. Of several probes the validation part alone, a colour each.

    Args:
        probe: what to show.
        others: what to show beside it, of the same task.
        ax: axes to draw into; default: those of a new figure.
    """
    probes = (probe, *others)
    name, *_ = probe.points[0].metrics
    with style.drawing(ax, (6.4, 3.4)) as (figure, [axes]):
        baseline = probe.points[0].metrics[name].baseline
        axes.axhline(baseline, color=style.GREY, linestyle=":", linewidth=1.2, label="commonest answer")
        if not others:
            values = [point.cross_validated for point in probe.points]
            line: dict[str, Any] = {"marker": "s", "markersize": 3, "linewidth": 1, "linestyle": "--"}
            label = "cross-validation, training part"
            axes.plot([point.depth for point in probe.points], values, color=style.ORANGE, label=label, **line)
        own = {"color": style.BLUE, "marker": "o", "label": "validation part, 95 % interval"}
        for each, look in zip(probes, style.looks(probes) if others else [own], strict=True):
            found, groups = [point.metrics[name] for point in each.points], len((each.right or "").split())
            values, errors = [metric.value for metric in found], [metric.stderr for metric in found]
            halves = [error and half_width(error, groups or MANY) for error in errors]  # older files have no groups
            depths = [point.depth for point in each.points]
            size: dict[str, Any] = {"markersize": 4, "linewidth": 1.4, "capsize": 2 if len(found) <= 40 else 0}
            style.draw_scores(axes, depths, values, halves, **size, **look)
        style.mark_whole_numbers(axes.xaxis, 14)
        axes.set_xlabel("depth (0: into the first block, k: out of block k - 1)")
        axes.set_ylabel(name.replace("_", " "))
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(1.02, high + 0.15 * (high - low)))  # room for the legend
        style.draw_grid(axes)
        axes.legend(loc="upper center", ncols=3, fontsize=8)
        model = "" if others else f" {short_name(probe.model.id)},"
        axes.set_title(f"Linear probes of {probe.task},{model} {probe.data.validation:,} questions", parse_math=False)
    return figure
