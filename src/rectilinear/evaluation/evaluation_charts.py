"""Evaluations as figures and in plain words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rectilinear.charts import Axis, Chart, Curves, Line, frontier, unbeaten
from rectilinear.evaluation.comparison_table import evaluation_tables, short_names
from rectilinear.evaluation.record import Evaluation, Measurements
from rectilinear.intervals import MANY, half_width
from rectilinear.results import Section

_COSTS: tuple[tuple[str, str, Callable[[Measurements], float | None]], ...] = (
    ("Against size", "parameters", lambda part: float(part.parameters)),
    ("Against the cache", "bytes of cache of one row", lambda part: part.cache_bytes),
    ("Against speed", "seconds to decode 1,000 tokens", lambda part: _seconds(part.tokens_per_second.decode)),
    ("Against speed of reading", "seconds to read 1,000 tokens", lambda part: _seconds(part.tokens_per_second.prefill)),
)


def pareto_chart(models: Sequence[Measurements]) -> Chart | None:
    """Loss against what a model costs, and the frontier of those that nothing beats in both; None for a single one."""
    names = short_names([part.model.id for part in models], 24)
    panels = []
    for title, cost, of in _COSTS:
        points = [
            (x, part.loss, _half(part), name)
            for part, name in zip(models, names, strict=True)
            if part.loss is not None and (x := of(part)) is not None
        ]
        if len(points) > 1 and len({x for x, *_ in points}) > 1:
            costs, losses, halves, labels = zip(*sorted(points, key=lambda point: point[:2]), strict=True)
            look: dict[str, Any] = {"dash": "none", "marker": "circle", "names": labels}
            own = Line.of("a model, 95 % interval", costs, losses, halves, **look)
            best = frontier(unbeaten(zip(costs, losses, labels, strict=True)))
            panels.append(Curves(title, Axis(cost), Axis("loss, nats a token"), (best, own)))
    if not panels:
        return None
    text = "Towards the lower left is better: less loss for less. No model is below the frontier at its cost."
    return Chart("pareto", "Quality against cost", tuple(panels), text, alike=False)


def evaluations_section(evaluations: Sequence[Evaluation]) -> Section | None:
    """Quality against cost of all models that were evaluated on a text, those that others are compared with too."""
    texts: dict[str, dict[tuple[str, str | None], Measurements]] = {}
    against: dict[tuple[str, str | None, str | None], list[Evaluation]] = {}
    for evaluation in evaluations:
        if evaluation.against:
            model = evaluation.against.model
            text = evaluation.data.fingerprint if evaluation.data else None
            against.setdefault((model.id, model.sha256, text), []).append(evaluation)
        if evaluation.data:
            found = texts.setdefault(evaluation.data.fingerprint, {})
            for part in filter(None, (evaluation.against, evaluation.measurements())):
                found.setdefault((part.model.id, part.model.sha256), part)
    charts = tuple(chart for found in texts.values() if (chart := pareto_chart([*found.values()])))
    tables = tuple(table for same in against.values() if len(same) > 1 for table in evaluation_tables(same))
    if not charts and not tables:
        return None
    return Section("Quality against cost, models beside one another", charts=charts, tables=tables)


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


def _seconds(tokens_per_second: float | None) -> float | None:
    return 1000 / tokens_per_second if tokens_per_second else None


def _half(part: Measurements) -> float | None:
    if part.interval:
        return part.interval.half_width
    return part.stderr and half_width(part.stderr, part.clusters or MANY)
