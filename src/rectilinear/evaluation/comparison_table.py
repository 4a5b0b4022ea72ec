"""Evaluations as tables: of one model, of one beside another, of any number side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from rectilinear.evaluation.harness import is_perplexity
from rectilinear.evaluation.judge_record import DIVERSITY
from rectilinear.evaluation.record import Differences, Evaluation, Measurements
from rectilinear.measurement.perplexity import exponential
from rectilinear.names import short_name, short_names
from rectilinear.results import describe_rows
from rectilinear.tables import Cell, Column, Estimate, Table

#: Probability of chance below which a difference has a star where there is no room for the probability.
SURE = 0.05

# Letters of a model's name over its column.
_NAME = 18

_KINDS = ("text", "tasks", "groups", "probes", "stories")


class Line(NamedTuple):
    """What a number is of: such of one kind stand together."""

    kind: str
    name: str
    metric: str = ""


class Score(NamedTuple):
    """A number of a model, of how many documents, and what a constant answer has there.

    Or a difference from the other model, and how likely chance makes such a one; None where it was not tested.
    """

    cell: Cell
    n: int | None = None
    constant: float | None = None
    p_value: float | None = None


_Scores = Iterator[tuple[Line, Score]]


def evaluation_tables(evaluations: Sequence[Evaluation]) -> tuple[Table, ...]:
    """Perplexity, size and speed, and scores, of one or several models, all against the same other one or none.

    Of one model the other one and the differences stand beside it; of several the other one stands before them, and
    differences stand below their numbers.
    """
    first = evaluations[0]
    title = ", ".join(short_name(found.model.id) for found in evaluations)
    title += f" against {short_name(first.against.model.id)}" if first.against else ""
    tables = []
    if first.data:
        title += f": {describe_rows(first.data, first.settings)}"
        texts = {"title": title, "caption": _text_caption(first, len(evaluations) > 1)}
        tables.append(_table(evaluations, (Column(""),), _quantities, _quantities, **texts))
    if any(True for found in evaluations for _ in _scores(found)):
        keys = (Column("task"), Column("n", ","), Column("metric"), Column("constant", ".4f"))
        texts = {"title": "" if first.data else title, "caption": _scores_caption(evaluations)}
        tables.append(_table(evaluations, keys, _scores, _score_changes, **texts))
    return tuple(tables)


def _table(
    evaluations: Sequence[Evaluation],
    keys: tuple[Column, ...],
    numbers: Callable[[Measurements], _Scores],
    changes: Callable[[Differences], _Scores],
    **texts: str,
) -> Table:
    several, tested = len(evaluations) > 1, len(keys) > 1
    others = [evaluations[0].against] if evaluations[0].against else []
    found = [dict(numbers(part)) for part in ([*others, *evaluations] if several else [*evaluations, *others])]
    moved = [dict(changes(part.differences)) if part.differences else {} for part in evaluations]
    every = dict.fromkeys(line for part in found for line, score in part.items() if score.cell is not None)
    rows: list[list[Cell]] = []
    sections = []
    for _, lines in groupby(sorted(every, key=lambda line: _KINDS.index(line.kind)), lambda line: line.kind):
        sections.append(len(rows))
        for line in lines:
            head = _head(line, [part[line] for part in found if line in part], tested)
            rows.append([*head, *(part[line].cell if line in part else None for part in found)])
            differences = [part.get(line, Score(None)) for part in moved]
            if several and any(change.cell for change in differences):
                blank: list[Cell] = [""] * (len(rows[-1]) - len(moved))
                rows.append([*blank, *map(_starred, differences)])
            elif others and not several:
                rows[-1] += [differences[0].cell, *([_p_value(differences[0])] if tested else [])]
    columns = [*keys, *_columns(evaluations, tested)]
    return Table.of(columns, rows, sections=tuple(sections[1:]), keys=len(keys) + len(others) * several, **texts)


def _columns(evaluations: Sequence[Evaluation], tested: bool) -> list[Column]:
    other = evaluations[0].against
    if len(evaluations) == 1:
        beside = (Column("against", ".4f"), Column("difference", "+.4f")) if other else ()
        return [Column("model", ".4f"), *beside, *([Column("p", ".3f")] if beside and tested else [])]
    names = short_names([found.model.id for found in evaluations] + ([other.model.id] if other else []), _NAME)
    return [Column(name, ".4f") for name in (*names[len(evaluations) :], *names[: len(evaluations)])]


def _head(line: Line, scores: Sequence[Score], tested: bool) -> list[Cell]:
    """What a row is of; of documents the least and the largest number, of constants none, where models differ."""
    if not tested:
        return [line.name]
    counts = {score.n for score in scores if score.n is not None}
    n: Cell = f"{min(counts):,}-{max(counts):,}" if len(counts) > 1 else next(iter(counts), "")
    constants = {score.constant for score in scores}  # those of probes differ with what they were taught
    return [line.name, n, line.metric, constants.pop() if len(constants) == 1 else None]


def _p_value(change: Score) -> Cell:
    return "< 0.001" if change.p_value is not None and change.p_value < 0.001 else change.p_value


def _starred(change: Score) -> Cell:
    if not isinstance(change.cell, Estimate):
        return ""
    return change.cell._replace(mark=" *" if change.p_value is not None and change.p_value < SURE else "")


def _quantities(part: Measurements | Differences) -> _Scores:
    """Perplexity, size and speed of a model, or the same of its differences from another: ratios, but of two."""
    speed = part.tokens_per_second
    if isinstance(part, Differences):
        perplexity, stderr = part.perplexity_ratio, part.loss_stderr
        formats = ("x {:.3f}", "+.4f", "+,", "x {:.3f}")
    else:
        perplexity, stderr = part.perplexity, part.stderr
        formats = ("#.4g" if (perplexity or 0) < 1000 else ".4g", "", ",", ",.0f")
    values: tuple[tuple[str, Any, float | None, str], ...] = (
        ("perplexity", perplexity, None, formats[0]),
        ("loss (nats a token)", part.loss, stderr, formats[1]),
        ("parameters", part.parameters, None, formats[2]),
        ("prefill tokens/s", speed.prefill, None, formats[3]),
        ("decode tokens/s", speed.decode, None, formats[3]),
        ("cache bytes", part.cache_bytes, None, formats[3]),
    )
    for name, value, error, form in values:
        yield Line("text", name), Score(None if value is None else Estimate(value, error, form))


def _scores(measured: Measurements) -> _Scores:
    """What a model scored on tasks and groups of them, its probes and its stories."""
    for name, task in measured.tasks.items():
        for metric, found in task.metrics.items():
            yield Line("tasks", name, metric), Score(_number(found.value, found.stderr), task.n, found.constant)
    for name, group in measured.groups.items():
        for metric, found in group.metrics.items():
            yield Line("groups", name, metric), Score(_number(found.value, found.stderr), None, found.constant)
    for task_name, probe in measured.probes.items():
        name, n = f"probe of {task_name}", probe.data.validation
        for metric, answered in probe.best.metrics.items():
            cell = _number(answered.value, answered.stderr)
            yield Line("probes", name, metric), Score(cell, n, answered.baseline)
        yield Line("probes", name, "depth"), Score(f"{probe.best.depth} of {probe.points[-1].depth}", n)
    if not (stories := measured.stories):
        return
    if judged := stories.judged:
        for metric, mark in judged.marks.items():
            cell = Estimate(mark.mean, mark.stderr, ".2f")
            yield Line("stories", "stories", metric), Score(cell, judged.outcomes["scored"])
    n = stories.completions.texts
    for metric in DIVERSITY:
        yield Line("stories", "stories", metric), Score(getattr(stories.completions, metric), n)
    if reference := stories.reference:
        cell = Estimate(reference.completions, reference.completions_stderr)
        yield Line("stories", "stories", f"loss under {short_name(reference.model)}"), Score(cell, n)


def _score_changes(differences: Differences) -> _Scores:
    every = {
        "tasks": differences.tasks,
        "groups": differences.groups,
        "probes": {f"probe of {task}": {"accuracy": change} for task, change in differences.probes.items()},
        "stories": {"stories": differences.stories},
    }
    for kind, found in every.items():
        for name, metrics in found.items():
            for metric, change in metrics.items():
                cell = Estimate(change.value, change.stderr, "+.2f" if kind == "stories" else "+.4f")
                if is_perplexity(metric):
                    cell = Estimate(exponential(change.value), None, "x {:.4g}")
                yield Line(kind, name, metric), Score(cell, p_value=change.p_value)


def _number(value: float, error: float | None) -> Estimate:
    return Estimate(value, error, ".4g" if abs(value) >= 1000 else "")  # such are perplexities


def _text_caption(evaluation: Evaluation, several: bool) -> str:
    clusters = f"{evaluation.clusters:,} {evaluation.clustered_by}" if evaluation.clusters else "rows"
    notes = [f"±: standard error over {clusters}"]
    if evaluation.against:
        notes.append("x: ratio of model to against")
        notes += ["below each number the difference from against, on the same rows"] * several
    if evaluation.settings.get("speed"):
        lengths = (evaluation.settings["prompt_tokens"], evaluation.settings["new_tokens"])
        notes.append("speed and cache: one row, {} tokens read, {} decoded".format(*lengths))
    return "; ".join(notes)


def _scores_caption(evaluations: Sequence[Evaluation]) -> str:
    notes = []
    if any(evaluation.tasks for evaluation in evaluations):
        notes.append("constant: the best answer that is always the same")
    notes.append("±: standard error over documents, questions (or their passages), or stories")
    if evaluations[0].against and len(evaluations) > 1:
        notes.append(f"below each number the difference from against, paired; *: p < {SURE:g}, each by itself")
    elif evaluations[0].against:
        notes.append("p: of no difference, paired")
    if any(evaluation.probes for evaluation in evaluations):
        notes.append("probes: at the depth that cross-validation prefers, beside the training part's commonest answer")
    stories = [evaluation.stories for evaluation in evaluations if evaluation.stories]
    if judges := sorted({found.judged.model for found in stories if found.judged}):
        notes.append(
            f"marks: from 1 to 10 by {', '.join(judges)}, differences over stories that both models have some of"
        )
    if stories:
        notes.append("distinct: different runs of n words over all")
    return "; ".join(notes)
