"""Evaluations as figures and in plain words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from rectilinear.charts import Axis, Chart, Curves, Line, frontier, unbeaten
from rectilinear.evaluation.comparison_table import evaluation_tables
from rectilinear.evaluation.record import Differences, Evaluation, Measurements
from rectilinear.intervals import MANY, half_width
from rectilinear.names import short_name, short_names
from rectilinear.results import IntervalRecord, Section

#: A model, and how it differs from the one that others are compared with; None for that one.
Measured = tuple[Measurements, Differences | None]


class _Cost(NamedTuple):
    """What a model costs, and the ends of the range that this is known to be in; None where that is not known."""

    value: float
    ends: tuple[float, float] | None


class _Point(NamedTuple):
    cost: _Cost
    loss: float
    half: float | None
    name: str


_COSTS: tuple[tuple[str, str, Callable[[Measurements], _Cost | None]], ...] = (
    ("Against size", "parameters", lambda part: _exact(part.parameters)),
    ("Against the cache", "bytes of cache of one row", lambda part: _exact(part.cache_bytes)),
    ("Against speed", "seconds to decode 1,000 tokens", lambda part: _seconds(part, "decode")),
    ("Against speed of reading", "seconds to read 1,000 tokens", lambda part: _seconds(part, "prefill")),
)


def pareto_chart(models: Sequence[Measured]) -> Chart | None:
    """Loss against what a model costs, and the frontier of those that nothing beats in both; None for a single one.

    Where all but one model are compared with that one, losses are differences from its loss, whose intervals are
    paired: they are narrower than those of losses on the same text. There is no frontier where costs are not told
    apart, as of timings that overlap.
    """
    names = short_names([part.model.id for part, _ in models], 24)
    reference = _reference(models)
    found: list[tuple[str, str, list[_Point]]] = []
    for title, cost, of in _COSTS:
        points = [
            _Point(x, *loss, name)
            for (part, difference), name in zip(models, names, strict=True)
            if (x := of(part)) is not None and (loss := _loss(part, difference, reference)) is not None
        ]
        if len(points) > 1 and len({point.cost.value for point in points}) > 1:
            found.append((title, cost, sorted(points, key=lambda point: (point.cost.value, point.loss))))
    if not found:
        return None
    y = "loss, nats a token"
    if reference:
        y = f"loss above that of {short_names([reference.model.id], 24)[0]}, nats a token"
    panels = [
        Curves(title, Axis(cost), Axis(y), tuple(_pareto_lines(points, bool(reference))))
        for title, cost, points in found
    ]
    return Chart("pareto", "Quality against cost", tuple(panels), _caption(panels, bool(reference)), alike=False)


def _reference(models: Sequence[Measured]) -> Measurements | None:
    """The one that all others are compared with, where there is such a one."""
    alone = [part for part, difference in models if difference is None]
    compared = [difference.loss is not None for _, difference in models if difference is not None]
    return alone[0] if len(alone) == 1 and compared and all(compared) else None


def _loss(
    part: Measurements, difference: Differences | None, reference: Measurements | None
) -> tuple[float, float | None] | None:
    """The loss with half of its interval, or how far it is from that of the reference."""
    if part.loss is None:
        return None
    if reference is None:
        return part.loss, _half(part.interval, part.stderr, part.clusters)
    if difference is None or difference.loss is None:
        return 0.0, None
    return difference.loss, _half(difference.loss_interval, difference.loss_stderr, part.clusters)


def _half(interval: IntervalRecord | None, stderr: float | None, clusters: int | None) -> float | None:
    """Half of an interval; of results of earlier versions, which had none, by the standard error."""
    if interval:
        return interval.half_width
    return None if stderr is None else half_width(stderr, clusters or MANY)


def _pareto_lines(points: Sequence[_Point], paired: bool) -> list[Line]:
    """The models, and the frontier where their costs are told apart."""
    costs, losses, halves, names = zip(*points, strict=True)
    ends = [cost.ends for cost in costs]
    spread = any(end and end[0] < end[1] for end in ends)
    look: dict[str, Any] = {"dash": "none", "marker": "circle", "names": names}
    if spread:
        look["left"], look["right"] = (tuple(end and end[side] for end in ends) for side in (0, 1))
    label = "a model, 95 % interval of the difference" if paired else "a model, 95 % interval"
    own = Line.of(label, [cost.value for cost in costs], losses, halves, **look)
    best = unbeaten((point.cost.value, point.loss, point.name) for point in points)
    corners = [point.cost.ends for point in points if (point.cost.value, point.loss, point.name) in best]
    told_apart = all(one and other and one[1] < other[0] for one, other in combinations(corners, 2))
    return [frontier(best), own] if told_apart and None not in corners else [own]


def _caption(panels: Sequence[Curves], paired: bool) -> str:
    said = ["Towards the lower left is better: less loss for less."]
    drawn = [any(line.label == "frontier" for line in panel.lines) for panel in panels]
    if any(drawn):
        said.append("No model is below the frontier at its cost.")
    if not all(drawn):
        said.append("There is no frontier where timings of models overlap, or were written without their spread.")
    if any(line.left for panel in panels for line in panel.lines):
        said.append("Bars across are the middle half of the timings.")
    if not paired:
        said.append(
            "Intervals are of each loss alone: models that read one text may differ clearly where these overlap."
        )
    return " ".join(said)


def evaluations_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """Quality against cost of all models that were evaluated on a text, those that others are compared with too."""
    texts: dict[str, dict[tuple[str, str | None], Measured]] = {}
    against: dict[tuple[str, str | None, str | None], list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.against:
            model = evaluation.against.model
            text = evaluation.data.fingerprint if evaluation.data else None
            against.setdefault((model.id, model.sha256, text), []).append(evaluation)
        if evaluation.data:
            found = texts.setdefault(evaluation.data.fingerprint, {})
            if evaluation.against:
                found.setdefault(_key(evaluation.against), (evaluation.against, None))
            # A model that stands alone somewhere may be compared with another one elsewhere.
            if evaluation.differences or _key(evaluation) not in found:
                found[_key(evaluation)] = (evaluation.measurements(), evaluation.differences)
    charts = tuple(chart for found in texts.values() if (chart := pareto_chart([*found.values()])))
    tables = tuple(table for same in against.values() if len(same) > 1 for table in evaluation_tables(same))
    if not charts and not tables:
        return None
    headline = _several_headline([*texts.values()])
    return Section("Quality against cost, models beside one another", headline, charts=charts, tables=tables)


def _key(part: Measurements) -> tuple[str, str | None]:
    return part.model.id, part.model.sha256


def _several_headline(texts: Sequence[dict[tuple[str, str | None], Measured]]) -> str:
    """The least and the largest loss of those on a text, of the text that most models read."""
    losses = [
        sorted((part.loss, short_name(part.model.id)) for part, _ in found.values() if part.loss is not None)
        for found in texts
    ]
    most = max(losses, key=len, default=[])
    if len(most) < 2:
        return ""
    (least, best), (largest, worst) = most[0], most[-1]
    return (
        f"Of {len(most)} models on one text, {best} has the least loss, {least:.4f} nats a token, and {worst} the "
        f"largest, {largest:.4f}."
    )


def evaluation_words(evaluation: Evaluation) -> list[str]:
    """How a model differs from the one that it is compared with."""
    other, differences = evaluation.against, evaluation.differences
    if other is None or differences is None:
        return []
    said = []
    if evaluation.data and None not in (evaluation.loss, other.loss, differences.loss):
        interval = differences.loss_interval
        error = "" if interval is None else f", with a 95 % interval from {interval.low:+.4f} to {interval.high:+.4f}"
        if interval is None and differences.loss_stderr is not None:
            error = f", with a standard error of {differences.loss_stderr:.4f}"
        ours, theirs = evaluation.perplexity, other.perplexity
        also = "" if ours is None or theirs is None else f", perplexity {ours:.3f} for {theirs:.3f}"
        said.append(
            f"Loss. On {evaluation.data.tokens:,} tokens {evaluation.loss:.4f} for {other.loss:.4f} nats a token "
            f"({differences.loss:+.4f}{error}){also}."
        )
    share = 100 * evaluation.parameters / other.parameters
    costs = [f"{evaluation.parameters:,} for {other.parameters:,} parameters ({share:.1f} %)"]
    if evaluation.cache_bytes is not None and other.cache_bytes:
        costs.append(
            f"a cache of {evaluation.cache_bytes:,} for {other.cache_bytes:,} bytes after "
            f"{evaluation.settings['prompt_tokens'] + evaluation.settings['new_tokens']} tokens"
        )
    speed = differences.tokens_per_second
    if speed.prefill is not None and speed.decode is not None:
        costs.append(f"reading {speed.prefill:.2f} and writing {speed.decode:.2f} times as fast")
    said.append(f"Cost. {'; '.join(costs)}.")
    if len(costs) > 1 and evaluation.model.width and evaluation.model.width < _NARROW:
        said[-1] += " At this width attention costs next to nothing, so look at wide models and long texts for speed."
    return said


# Below this width a decoder's time goes into calls, not into arithmetic.
_NARROW = 512


def _exact(value: float | None) -> _Cost | None:
    return None if value is None else _Cost(float(value), (float(value), float(value)))


def _seconds(part: Measurements, name: str) -> _Cost | None:
    """Of 1,000 tokens, with what the middle half of the timings took."""
    speed, middle = getattr(part.tokens_per_second, name), getattr(part.tokens_per_second, f"{name}_middle")
    return _Cost(1000 / speed, middle and (1000 / middle[1], 1000 / middle[0])) if speed else None
