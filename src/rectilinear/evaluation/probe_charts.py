"""Probes as figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from rectilinear.charts import SERIES, Axis, Chart, Curves, Line
from rectilinear.evaluation.probe_record import Probe
from rectilinear.intervals import MANY, half_width
from rectilinear.names import labels, short_name


def probes_chart(probes: Sequence[Probe]) -> Chart:
    """What probes of one task get right, by depth.

    The first metric of the task on the validation part with a 95 % interval, over the level of the commonest answer.
    Of one probe also cross-validation on the training part; of several a colour each.
    """
    first, several = probes[0], len(probes) > 1
    name, *_ = first.points[0].metrics
    depths = [point.depth for point in first.points]
    baseline = first.points[0].metrics[name].baseline
    lines = [Line.of("commonest answer", depths, [baseline] * len(depths), color="grey", dash="dotted")]
    if not several:
        values = [point.cross_validated for point in first.points]
        label = "cross-validation, training part"
        lines.append(Line.of(label, depths, values, color="orange", marker="square", dash="dashed", width=1.0))
    names = labels(probes) if several else ["validation part, 95 % interval"]
    looks: list[Any] = [*SERIES] if several else [("blue", "circle")]
    for each, label, (color, marker) in zip(probes, names, cycle(looks), strict=False):
        lines.append(_validated(each, name, label, color, marker))
    x = Axis("depth (0: into the first block, k: out of block k - 1)", whole=True)
    panel = Curves(f"Linear probes of {first.task}", x, Axis(name.replace("_", " ")), tuple(lines))
    whose = "; ".join(names) if several else short_name(first.model.id)
    title = f"{whose}: {first.data.validation:,} questions of {first.task}"
    return Chart(f"probes-{first.task}" if several else "probe", title, (panel,))


def probes_headline(probes: Sequence[Probe]) -> str:
    """What the best depth of each model gets right, by task."""
    said = []
    for task in dict.fromkeys(probe.task for probe in probes):
        several = [probe for probe in probes if probe.task == task]
        name, *_ = several[0].best.metrics
        named = zip(several, labels(several), strict=True)
        shares = ", ".join(f"{probe.best.metrics[name].value:.3f} of {model}" for probe, model in named)
        said.append(f"{task}: {name.replace('_', ' ')} {shares}")
    return f"Where cross-validation prefers them, probes reach on {'; on '.join(said)}." if said else ""


def _validated(probe: Probe, name: str, label: str, color: Any, marker: Any) -> Line:
    groups = len((probe.right or "").split())
    found = [point.metrics[name] for point in probe.points]
    halves = [metric.stderr and half_width(metric.stderr, groups or MANY) for metric in found]  # older files have none
    depths, values = [point.depth for point in probe.points], [metric.value for metric in found]
    return Line.of(label, depths, values, halves, color=color, marker=marker)
