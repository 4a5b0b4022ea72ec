"""Figures of profiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rectilinear.measurement.dynamics import Score
from rectilinear.measurement.profile import LinearityRecord, Profile
from rectilinear.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IN_SAMPLE, _HELD_OUT, _WITHOUT_SINKS = "in sample", "held out ± 2 s.e.", "held out, without sinks"
_IDENTITY, _NULL = "identity (do nothing)", "null (independent data)"
_LEGEND = [_IN_SAMPLE, _HELD_OUT, _WITHOUT_SINKS, _IDENTITY, _NULL]
_TITLES: dict[Score, str] = {
    "linearity": "Linearity of the output, $y = x + d$",
    "update_linearity": "Linearity of the update, $d$",
}


def plot_profile(profile: Profile, *others: Profile, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """Linearity and update linearity by depth, in sample against held out.

    Left the score of the block's output, with the level that doing nothing reaches (identity);
    right the score of its update. In both the null level, what independent data would score in
    sample. Error bars are two standard errors over folds. Of several profiles the held-out scores
    alone (in sample where there are none), a colour each.

    Args:
        profile: what to show.
        others: what to show beside it.
        ax: axes to draw into, two or, for the update alone, one; default: those of a new figure.
    """
    profiles = (profile, *others)
    with style.drawing(ax, (7.2, 3.1), 1, 2, sharex=True, sharey=True) as (figure, axes):
        scores: tuple[Score, ...] = ("linearity", "update_linearity")
        panels = [*zip(axes, scores[-len(axes) :], strict=True)]
        for panel, score in panels:
            if others:
                _draw_several(panel, profiles, score)
            else:
                _draw_one(panel, profile, score)
            panel.set_title(_TITLES[score])
            panel.set_xlabel("block")
        for panel, _ in panels:
            style.finish_scores(panel)
            style.mark_whole_numbers(panel.xaxis, 12)
            indices = [block.index for each in profiles for block in each.blocks]
            panel.set_xlim(min(indices) - 0.4, max(indices) + 0.4)
        named = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
        order = sorted(named, key=lambda label: _LEGEND.index(label) if label in _LEGEND else 0)
        handles = [named[label] for label in order]
        if ax is None:
            figure.legend(handles, order, loc="outside lower center", ncols=min(len(order), 5), fontsize=8)
        else:
            panels[-1][0].legend(handles, order, fontsize=8)
        if ax is None and not others:
            style.say_what(figure, profile.model.id, profile.data)
    return figure


def _draw_one(axes: Axes, profile: Profile, name: Score) -> None:
    depth = [block.index for block in profile.blocks]
    scores: list[LinearityRecord] = [getattr(block, name) for block in profile.blocks]
    thick: dict[str, Any] = {"alpha": 0.45, "marker": "o", "markersize": 7, "markeredgewidth": 0, "linewidth": 3}
    axes.plot(depth, style.numbers(score.in_sample for score in scores), color=style.BLUE, label=_IN_SAMPLE, **thick)
    held_out, errors = ([score.held_out for score in scores], [score.stderr for score in scores])
    style.draw_scores(axes, depth, held_out, errors, color=style.ORANGE, marker="s", label=_HELD_OUT)
    if any(block.without_sinks.sinks for block in profile.blocks):
        without: list[LinearityRecord] = [getattr(block.without_sinks, name) for block in profile.blocks]
        values = style.numbers(score.held_out for score in without)
        axes.plot(depth, values, color=style.ORANGE, linestyle="none", marker="x", markersize=4, label=_WITHOUT_SINKS)
    levels = [(style.numbers(block.null for block in profile.blocks), _NULL, style.GREY, ":")]
    if name == "linearity":
        levels.insert(0, (style.numbers(block.identity for block in profile.blocks), _IDENTITY, style.GREEN, "--"))
    for level, label, color, dashes in levels:
        axes.plot(depth, level, color=color, linestyle=dashes, linewidth=1.0, label=label)


def _draw_several(axes: Axes, profiles: Sequence[Profile], name: Score) -> None:
    for place, (profile, label) in enumerate(zip(profiles, style.name_all(profiles), strict=True)):
        depth = [block.index for block in profile.blocks]
        scores: list[LinearityRecord] = [getattr(block, name) for block in profile.blocks]
        values, errors = [score.best for score in scores], [score.stderr for score in scores]
        color, marker = style.SERIES[place % len(style.SERIES)]
        style.draw_scores(axes, depth, values, errors, color=color, marker=marker, label=label)
