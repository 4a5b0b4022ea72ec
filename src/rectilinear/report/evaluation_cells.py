"""The numbers of an evaluation as the cells of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rectilinear.evaluation.harness import is_perplexity
from rectilinear.evaluation.record import DifferenceRecord, Differences, Measurements
from rectilinear.measurement.perplexity import exponential
from rectilinear.models.origin import short_name

#: Probability of chance below which a difference has a star where there is no room for the probability.
SURE = 0.05


class Line(NamedTuple):
    """What a number is of: such of one kind stand together."""

    kind: str
    name: str
    metric: str


class Score(NamedTuple):
    """A number of a model, as a table has it."""

    text: str
    n: int | None = None
    constant: float | None = None


def text_cells(measured: Measurements) -> dict[Line, str]:
    """Perplexity, size and speed of a model."""
    speed = measured.tokens_per_second
    return _quantities(
        "-" if measured.perplexity is None else _four_digits(measured.perplexity),
        "-" if measured.loss is None else _with_error(f"{measured.loss:.4f}", measured.stderr),
        f"{measured.parameters:,}",
        _whole(speed.prefill),
        _whole(speed.decode),
        _whole(measured.cache_bytes),
    )


def text_changes(differences: Differences) -> dict[Line, str]:
    """The same of the differences from another: ratios, but of loss and parameters."""
    speed = differences.tokens_per_second
    return _quantities(
        _times(differences.perplexity_ratio),
        "-" if differences.loss is None else _with_error(f"{differences.loss:+.4f}", differences.loss_stderr),
        f"{differences.parameters:+,}",
        _times(speed.prefill),
        _times(speed.decode),
        _times(differences.cache_bytes),
    )


def _quantities(*cells: str) -> dict[Line, str]:
    names = ("perplexity", "loss (nats a token)", "parameters", "prefill tokens/s", "decode tokens/s", "cache bytes")
    return {Line("text", name, ""): cell for name, cell in zip(names, cells, strict=True)}


def scores_of(measured: Measurements) -> dict[Line, Score]:
    """What a model scored on tasks and groups of them, its probes and its stories."""
    return dict(_all_scores(measured))


def score_texts(measured: Measurements) -> dict[Line, str]:
    """The scores, with their errors."""
    return {line: score.text for line, score in scores_of(measured).items()}


def _all_scores(measured: Measurements) -> Iterator[tuple[Line, Score]]:
    for name, task in measured.tasks.items():
        for metric, found in task.metrics.items():
            yield Line("tasks", name, metric), Score(_number(found.value, found.stderr), task.n, found.constant)
    for name, group in measured.groups.items():
        for metric, found in group.metrics.items():
            yield Line("groups", name, metric), Score(_number(found.value, found.stderr), None, found.constant)
    for name, probe in measured.probes.items():
        for metric, answered in probe.best.metrics.items():
            text = _number(answered.value, answered.stderr)
            told = Score(text, probe.data.validation, answered.baseline)
            yield Line("probes", f"probe of {name}", metric), told
        depth = f"{probe.best.depth} of {probe.points[-1].depth}"
        yield Line("probes", f"probe of {name}", "depth"), Score(depth, probe.data.validation)
    if stories := measured.stories:
        n = stories.completions.texts
        scored = stories.judged.outcomes["scored"] if stories.judged else 0
        for metric, mark in (stories.judged.marks if stories.judged else {}).items():
            error = "" if mark.stderr is None else f" ± {mark.stderr:.2f}"
            yield Line("stories", "stories", metric), Score(f"{mark.mean:.2f}{error}", scored)
        for metric in ("distinct_1", "distinct_2", "distinct_3", "repetition"):
            value = getattr(stories.completions, metric)
            yield Line("stories", "stories", metric), Score("-" if value is None else f"{value:.4f}", n)
        if reference := stories.reference:
            text = _with_error(f"{reference.completions:.4f}", reference.completions_stderr)
            yield Line("stories", "stories", f"loss under {short_name(reference.model)}"), Score(text, n)


def score_changes(differences: Differences) -> dict[Line, str]:
    """Differences of scores from another model's, with their errors."""
    return {line: _change(line, found) for line, found in _all_changes(differences)}


def starred(differences: Differences) -> dict[Line, str]:
    """Differences, with a star where chance alone would seldom make them."""
    sure = {line for line, found in _all_changes(differences) if found.p_value is not None and found.p_value < SURE}
    return {line: f"{change} *" if line in sure else change for line, change in score_changes(differences).items()}


def p_values(differences: Differences | None) -> dict[Line, str]:
    """Probabilities of such differences by chance."""
    found = dict(_all_changes(differences)) if differences else {}
    return {
        line: "-" if change.p_value is None else "< 0.001" if change.p_value < 0.001 else f"{change.p_value:.3f}"
        for line, change in found.items()
    }


def _all_changes(differences: Differences) -> Iterator[tuple[Line, DifferenceRecord]]:
    for kind, found in (("tasks", differences.tasks), ("groups", differences.groups)):
        for name, metrics in found.items():
            yield from ((Line(kind, name, metric), change) for metric, change in metrics.items())
    yield from ((Line("probes", f"probe of {task}", "accuracy"), change) for task, change in differences.probes.items())
    yield from ((Line("stories", "stories", mark), change) for mark, change in differences.stories.items())


def _change(line: Line, change: DifferenceRecord) -> str:
    if is_perplexity(line.metric):
        return f"x {exponential(change.value):.4g}"
    digits = 2 if line.kind == "stories" else 4
    error = "" if change.stderr is None else f" ± {change.stderr:.{digits}f}"
    return f"{change.value:+.{digits}f}{error}"


def _number(value: float, error: float | None) -> str:
    if abs(value) >= 1000:  # a perplexity
        return f"{value:.4g}" + ("" if error is None else f" ± {error:.2g}")
    return _with_error(f"{value:.4f}", error)


def _four_digits(value: float) -> str:
    return f"{value:#.4g}" if value < 1000 else f"{value:.4g}"


def _with_error(text: str, error: float | None) -> str:
    return text if error is None else f"{text} ± {error:.4f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x {ratio:.3f}"
