"""Figure of probes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rectilinear.evaluation.probe import Probe
from rectilinear.models.origin import short_name
from rectilinear.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_probe(probe: Probe, *others: Probe, ax: Axes | None = None) -> Figure:
    """What probes get right, by depth.

    The first metric of the task on the validation part with two standard errors, beside cross-validation on the
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
        labels = style.name_all(probes) if others else ["validation part ± 2 s.e."]
        for place, (each, label) in enumerate(zip(probes, labels, strict=True)):
            found = [point.metrics[name] for point in each.points]
            color, marker = style.SERIES[place % len(style.SERIES)] if others else (style.BLUE, "o")
            look = {"color": color, "marker": marker, "markersize": 4, "linewidth": 1.4}
            values, errors = [metric.value for metric in found], [metric.stderr for metric in found]
            depths = [point.depth for point in each.points]
            style.draw_scores(axes, depths, values, errors, capsize=2 if len(found) <= 40 else 0, label=label, **look)
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
