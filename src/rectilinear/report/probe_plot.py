"""Figure of probes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rectilinear.evaluation.probe_record import Probe
from rectilinear.report.style import BLUE, GREY, ORANGE, STYLE, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_probe(probe: Probe) -> Figure:
    """What probes get right, by depth.

    The first metric of the task on the validation part with two standard errors, beside cross-validation on the
    training part, over the level of the commonest answer.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    name, *_ = probe.points[0].metrics
    found = [point.metrics[name] for point in probe.points]
    depths = [point.depth for point in probe.points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.axhline(found[0].baseline, color=GREY, linestyle=":", linewidth=1.2, label="commonest answer")
        axes.plot(
            depths,
            [point.cross_validated for point in probe.points],
            color=ORANGE,
            marker="s",
            markersize=3,
            linewidth=1,
            linestyle="--",
            label="cross-validation, training part",
        )
        axes.errorbar(
            depths,
            [metric.value for metric in found],
            yerr=[2 * (metric.stderr or 0.0) for metric in found],
            color=BLUE,
            marker="o",
            markersize=4,
            markerfacecolor="white",
            linewidth=1.4,
            capsize=2 if len(depths) <= 40 else 0,
            label="validation part ± 2 s.e.",
        )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=14, min_n_ticks=1))
        axes.set_xlabel("depth (0: into the first block, k: out of block k - 1)")
        axes.set_ylabel(name.replace("_", " "))
        low, high = axes.get_ylim()
        axes.set_ylim(max(0.0, low), min(1.02, high + 0.15 * (high - low)))  # room for the legend
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper center", ncols=3, fontsize=8)
        model = Path(probe.model.id).name or probe.model.id
        axes.set_title(f"Linear probes of {probe.task}, {model}, {probe.data.validation:,} questions", parse_math=False)
    return figure


def save_probe_figure(probe: Probe, folder: str | Path) -> None:
    """Write ``probe.png`` (300 dpi) and ``probe.svg`` into a folder."""
    save_figure(plot_probe(probe), folder, "probe")
