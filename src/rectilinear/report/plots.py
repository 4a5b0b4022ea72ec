"""Figures of profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rectilinear.measurement.profile import BlockRecord, LinearityRecord, Profile
from rectilinear.report.style import BLUE, GREEN, GREY, ORANGE, STYLE, save_figure, say_what

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN_SAMPLE, _HELD_OUT, _WITHOUT_SINKS = "in sample", "held out ± 2 s.e.", "held out, without sinks"
_IDENTITY, _NULL = "identity (do nothing)", "null (independent data)"
_LEGEND = [_IN_SAMPLE, _HELD_OUT, _WITHOUT_SINKS, _IDENTITY, _NULL]


def plot_profile(profile: Profile) -> Figure:
    """Linearity and update linearity by depth, in sample against held out.

    Left the score of the block's output, with the level that doing nothing reaches (identity);
    right the score of its update. In both the null level, what independent data would score in
    sample. Error bars are two standard errors over folds.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.1), layout="constrained")
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        _draw(left, profile, "linearity", "Linearity of the output, $y = x + d$")
        _line(left, profile, lambda block: block.identity, _IDENTITY, GREEN, "--")
        _draw(right, profile, "update_linearity", "Linearity of the update, $d$")
        for axes in (left, right):
            _line(axes, profile, lambda block: block.null, _NULL, GREY, ":")
            _finish(axes, profile)
        named = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
        order = sorted(named, key=_LEGEND.index)
        figure.legend(
            [named[label] for label in order], order, loc="outside lower center", ncols=len(order), fontsize=8
        )
        say_what(figure, profile.model.id, profile.data)
    return figure


def save_profile_figure(profile: Profile, folder: str | Path) -> None:
    """Write ``profile.png`` (300 dpi) and ``profile.svg`` into a folder."""
    save_figure(plot_profile(profile), folder, "profile")


def _draw(axes: Axes, profile: Profile, name: str, title: str) -> None:
    depth = [block.index for block in profile.blocks]
    scores: list[LinearityRecord] = [getattr(block, name) for block in profile.blocks]
    nan = float("nan")
    axes.plot(
        depth,
        [nan if s.in_sample is None else s.in_sample for s in scores],
        color=BLUE,
        alpha=0.45,
        marker="o",
        markersize=7,
        markeredgewidth=0,
        linewidth=3,
        label=_IN_SAMPLE,
    )
    axes.errorbar(
        depth,
        [nan if s.held_out is None else s.held_out for s in scores],
        yerr=[0.0 if s.stderr is None else 2 * s.stderr for s in scores],
        color=ORANGE,
        marker="s",
        markersize=3.5,
        markerfacecolor="white",
        linewidth=1.2,
        capsize=2,
        label=_HELD_OUT,
    )
    if any(block.without_sinks.sinks for block in profile.blocks):
        values: list[LinearityRecord] = [getattr(block.without_sinks, name) for block in profile.blocks]
        axes.plot(
            depth,
            [nan if v.held_out is None else v.held_out for v in values],
            color=ORANGE,
            linestyle="none",
            marker="x",
            markersize=4,
            label=_WITHOUT_SINKS,
        )
    axes.set_title(title)
    axes.set_xlabel("block")


def _line(
    axes: Axes, profile: Profile, value: Callable[[BlockRecord], float | None], label: str, color: str, style: str
) -> None:
    values = [value(block) for block in profile.blocks]
    axes.plot(
        [block.index for block in profile.blocks],
        [float("nan") if v is None else v for v in values],
        color=color,
        linestyle=style,
        linewidth=1.0,
        label=label,
    )


def _finish(axes: Axes, profile: Profile) -> None:
    from matplotlib.ticker import MaxNLocator

    low, _ = axes.get_ylim()
    axes.set_ylim(max(min(0.0, low), -0.3), 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlim(profile.blocks[0].index - 0.4, profile.blocks[-1].index + 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
