"""Dynamics as figures and in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, pairwise
from math import ceil, floor
from typing import Any

from rectilinear.charts import FLOOR, SERIES, Axis, Chart, Curves, HeatMap, Line
from rectilinear.measurement.block_means import Mean
from rectilinear.measurement.dynamics import Dynamics, mean_curve
from rectilinear.measurement.profile_charts import about
from rectilinear.measurement.score_choice import WHY_ADJUSTED, ScoreChoice, in_percent
from rectilinear.names import labels

# What a mean must have been lower by than at both ends to be told.
_NOTED = 0.01


def dynamics_chart(dynamics: Dynamics) -> Chart:
    """Above the update's score of each block at each step, below the means over blocks.

    Every point has a column of the same width, whatever the steps between them, so that early and late steps can both
    be read.
    """
    curves = {"output, y = x + d": mean_curve(dynamics, "linearity"), "update, d": mean_curve(dynamics)}
    steps = [point.step for point in dynamics.points]
    shift, lines = _shift(steps), []
    for (label, curve), (color, marker), side in zip(curves.items(), reversed(SERIES[:2]), (-1, 1), strict=True):
        lines += _mean_lines(label, curve, steps, side * shift, {"color": color, "marker": marker})
    below = _means("Mean over blocks", steps, lines, _how([dynamics]))
    caption = f"Above, cells without a score are hatched. Below, {_spread([dynamics])}"
    panels = (_blocks(dynamics), below)
    return Chart("dynamics", about(dynamics), panels, caption, columns=1, heights=(1.25, 1))


def several_dynamics_chart(series: Sequence[Dynamics]) -> Chart:
    """The means of update linearity of several trainings, a colour each."""
    steps = sorted({point.step for each in series for point in each.points})
    lines = []
    for place, (each, name, (color, marker)) in enumerate(zip(series, labels(series), cycle(SERIES), strict=False)):
        shift = _shift(steps) * (2 * place / (len(series) - 1) - 1) if len(series) > 1 else 0.0
        lines += _mean_lines(name, mean_curve(each), steps, shift, {"color": color, "marker": marker})
    panel = _means("Mean over blocks of the updates", steps, lines, _how(series))
    caption = _spread(series)
    return Chart("trainings", "; ".join(labels(series)), (panel,), f"{caption[0].upper()}{caption[1:]}")


def several_dynamics_headline(series: Sequence[Dynamics]) -> str:
    """From what to what the means of several trainings went."""
    said = []
    for each, name in zip(series, labels(series), strict=True):
        known = [point for point in mean_curve(each) if point.mean is not None]
        if len(known) > 1:
            first, last = known[0], known[-1]
            said.append(f"from {in_percent(first.mean or 0.0)} to {in_percent(last.mean or 0.0)} in {name}")
    return f"Averaged over blocks, what linear maps explain of updates went {'; '.join(said)}." if said else ""


def dynamics_words(dynamics: Dynamics) -> list[str]:
    """A paragraph that says how linearity changed over a training."""
    curve = [point for point in mean_curve(dynamics) if point.mean is not None]
    if len(curve) < 2:
        return ["There are fewer than two steps with scores, so nothing can be said about a change."]
    first, last = curve[0], curve[-1]
    least = min(curve, key=lambda point: point.mean or 0.0)
    way = f" by way of its least, {in_percent(least.mean or 0.0)} at step {least.step:,},"
    between = way if min(first.mean or 0.0, last.mean or 0.0) - (least.mean or 0.0) > _NOTED else ""
    return [
        f"Over training. The same rows, read by the model at {len(curve)} steps of its training. The mean over blocks "
        f"of the update's score went from {in_percent(first.mean or 0.0)} at step {first.step:,}{between} to "
        f"{in_percent(last.mean or 0.0)} at step {last.step:,}: {_verdict(first, last)}. The paper reports that it "
        "falls over pretraining; one model neither proves nor refutes that.",
        *([WHY_ADJUSTED] if ScoreChoice.of(dynamics).few else []),
    ]


def _verdict(first: Mean, last: Mean) -> str:
    change = (last.mean or 0.0) - (first.mean or 0.0)
    said = f"{'a fall' if change < 0 else 'a rise'} of {100 * abs(change):.1f} percentage points"
    if first.half_width is None or last.half_width is None:
        return said
    half = math.hypot(first.half_width, last.half_width)
    sure = "more" if abs(change) > half else "not more"
    return f"{said}, {sure} than its 95 % interval of ± {100 * half:.1f}"


def _blocks(dynamics: Dynamics) -> HeatMap:
    blocks, points, choice = dynamics.model.num_blocks, len(dynamics.points), ScoreChoice.of(dynamics)
    cells: list[list[float | None]] = [[None] * points for _ in range(blocks)]
    for column, point in enumerate(dynamics.points):
        for block in point.blocks:
            cells[block.index][column] = choice.value(block.update_linearity)
    values = [value for row in cells for value in row if value is not None]
    # Before training blocks are as good as linear, or as good as random: colours are for what training does.
    started = [row[1:] for row in cells] if points > 2 and dynamics.points[0].step == 0 else cells
    low, high = _color_range([value for row in started for value in row if value is not None])
    hatched = " (hatched: no score)" if len(values) < blocks * points else ""
    x = Axis("", ticks=tuple(f"{point.step:,}" for point in dynamics.points))
    title, what = f"Linearity of each block's update, d{hatched}", f"update linearity{_how([dynamics])}"
    return HeatMap(title, x, Axis("block", whole=True), tuple(map(tuple, cells)), what, low, high)


def _color_range(values: list[float]) -> tuple[float, float]:
    """Ends of the colour scale on multiples of 0.05, at least 0.2 apart."""
    if not values:
        return 0.0, 1.0
    low = max(FLOOR, floor(min(values) * 20) / 20)
    high = max(low, min(1.0, ceil(max(values) * 20) / 20))
    if high - low < 0.2:
        high = min(1.0, low + 0.2)
        low = high - 0.2
    return low, high


def _how(series: Sequence[Dynamics]) -> str:
    """Which scores they are, where those of all are of one kind."""
    few = [ScoreChoice.of(each).few for each in series]
    if any(few):
        return ", adjusted" if all(few) else ""
    blocks = [block for each in series for point in each.points for block in point.blocks]
    return ", held out" if blocks and all(block.update_linearity.held_out is not None for block in blocks) else ""


def _spread(series: Sequence[Dynamics]) -> str:
    """What bars and bands are, and which scores."""
    bands = "bands reach from the least to the most linear block."
    few = [ScoreChoice.of(each).few for each in series]
    bars = "" if all(few) else "bars are 95 % intervals over parts of the text, "
    return f"{bars}{bands}{f' {WHY_ADJUSTED}' if any(few) else ''}"


def _shift(steps: Sequence[int]) -> float:
    """How far lines are moved aside, so that bars do not hide each other."""
    return min(0.006 * len(steps), 0.15)


def _mean_lines(label: str, curve: Sequence[Mean], steps: list[int], shift: float, look: dict[str, Any]) -> list[Line]:
    """A mean with its interval, and from the least to the most linear block."""
    x = tuple(steps.index(mean.step) + shift for mean in curve)
    y, lowest, highest = (tuple(getattr(m, name) for m in curve) for name in ("mean", "lowest", "highest"))
    band = Line("", x, y, lowest, highest, spread="band", color=look["color"], dash="none")
    return [band, Line.of(label, x, y, [mean.half_width for mean in curve], **look)]


def _means(title: str, steps: list[int], lines: list[Line], held_out: str) -> Curves:
    even = len({two - one for one, two in pairwise(steps)}) < 2
    ticks = tuple(f"{step:,}" for step in steps)
    x = Axis("training step" if even else "training step (a column a point, not to scale)", ticks=ticks)
    return Curves(title, x, Axis(f"share of variance{held_out}", "score"), tuple(lines))
