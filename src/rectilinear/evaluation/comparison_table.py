"""Evaluations as tables: of one model, of one beside another, of any number side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

from rectilinear.evaluation.harness import is_perplexity
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.record import DifferenceRecord, Differences, Evaluation, Measurements
from rectilinear.evaluation.text_measures import DIVERSITY
from rectilinear.measurement.perplexity import exponential
from rectilinear.models.origin import short_name
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
    """A number of a model, of how many documents, and what a constant answer has there."""

    cell: Cell
    n: int | None = None
    constant: float | None = None


class Change(NamedTuple):
    """A difference from the other model, and how likely chance makes such a one; None where it was not tested."""

    cell: Estimate | None
    p_value: float | None = None


def evaluation_tables(evaluations: Sequence[Evaluation]) -> tuple[Table, ...]:
    """Perplexity, size and speed, and scores, of one or several models, all against the same other one or none.

    Of one model the other one and the differences stand beside it; of several the other one stands before them, and
    differences stand below their numbers.
    """
    first = evaluations[0]
    title = ", ".join(found.model.id for found in evaluations)
    title += f" against {first.against.model.id}" if first.against else ""
    tables = []
    if first.data:
        title += f": {first.data.tokens:,} tokens of {first.data.source}"
        texts = {"title": title, "caption": _text_caption(first, len(evaluations) > 1)}
        tables.append(_table(evaluations, (Column(""),), _quantities, _quantity_changes, **texts))
    if any(True for found in evaluations for _ in _scores(found)):
        keys = (Column("task"), Column("n", ","), Column("metric"), Column("constant", ".4f"))
        texts = {"title": "" if first.data else title, "caption": _scores_caption(evaluations)}
        tables.append(_table(evaluations, keys, _scores, _score_changes, **texts))
    return tuple(tables)


def _table(
    evaluations: Sequence[Evaluation],
    keys: tuple[Column, ...],
    numbers: Callable[[Measurements], Iterator[tuple[Line, Score]]],
    changes: Callable[[Differences], Iterator[tuple[Line, Change]]],
    **texts: str,
) -> Table:
    other = evaluations[0].against
    found = [dict(numbers(part)) for part in (*evaluations, *([other] if other else []))]
    moved = [dict(changes(part.differences)) if part.differences else {} for part in evaluations]
    every = {line: None for part in found for line, score in part.items() if score.cell is not None}
    arrange = _side_by_side if len(evaluations) > 1 else _with_difference
    rows: list[list[Cell]] = []
    sections, kind = [], None
    for line in sorted(every, key=lambda line: _KINDS.index(line.kind)):
        if kind not in (None, line.kind):
            sections.append(len(rows))
        kind = line.kind
        scores = [part.get(line) for part in found]
        head = _head(line, [score for score in scores if score], len(keys))
        cells = [score.cell if score else None for score in scores]
        rows += arrange(head, cells, [part.get(line) for part in moved], len(keys) > 1)
    columns = _columns(evaluations, len(keys) > 1)
    fixed = len(keys) + (other is not None and len(evaluations) > 1)
    return Table.of([*keys, *columns], rows, sections=tuple(sections), keys=fixed, **texts)


def _columns(evaluations: Sequence[Evaluation], tested: bool) -> list[Column]:
    other = evaluations[0].against
    if len(evaluations) == 1:
        beside = (Column("against", ".4f"), Column("difference", "+.4f")) if other else ()
        return [Column("model", ".4f"), *beside, *([Column("p", ".3f")] if beside and tested else [])]
    models = [found.model.id for found in evaluations] + ([other.model.id] if other else [])
    names = _distinct([_cut(short_name(model)) for model in models])
    return [Column(name, ".4f") for name in (*names[len(evaluations) :], *names[: len(evaluations)])]


def _head(line: Line, scores: Sequence[Score], keys: int) -> list[Cell]:
    """What a row is of; of documents the least and the largest number, of constants none, where models differ."""
    if keys == 1:
        return [line.name]
    counts = {score.n for score in scores if score.n is not None}
    n: Cell = f"{min(counts):,}-{max(counts):,}" if len(counts) > 1 else next(iter(counts), "")
    constants = {score.constant for score in scores}  # those of probes differ with what they were taught
    return [line.name, n, line.metric, constants.pop() if len(constants) == 1 else None]


def _with_difference(
    head: list[Cell], cells: list[Cell], changes: Sequence[Change | None], tested: bool
) -> list[list[Cell]]:
    if len(cells) == 1:
        return [[*head, *cells]]
    change = changes[0] or Change(None)
    p: Cell = "< 0.001" if change.p_value is not None and change.p_value < 0.001 else change.p_value
    return [[*head, *cells, change.cell, *([p] if tested else [])]]


def _side_by_side(
    head: list[Cell], cells: list[Cell], changes: Sequence[Change | None], tested: bool
) -> list[list[Cell]]:
    models = len(changes)
    rows = [[*head, *cells[models:], *cells[:models]]]
    below: list[Cell] = [_starred(change) for change in changes]
    if any(below):
        blank: list[Cell] = [""] * (len(head) + len(cells) - models)
        rows.append([*blank, *below])
    return rows


def _starred(change: Change | None) -> Cell:
    if change is None or change.cell is None:
        return ""
    sure = change.p_value is not None and change.p_value < SURE
    return change.cell._replace(mark=" *" if sure else "")


def short_names(models: Sequence[str]) -> list[str]:
    """What comes after the last slash, with a number where that is another's name already."""
    return _distinct([short_name(model) for model in models])


def _distinct(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
        found.append(next(one for one in numbered if one not in found))
    return found


def _cut(name: str) -> str:
    """A name that fits over a column; models of one family differ at their ends rather than in the middle."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2 - 2]}…{name[-(_NAME // 2) :]}"


def _quantities(measured: Measurements) -> Iterator[tuple[Line, Score]]:
    """Perplexity, size and speed of a model."""
    speed, perplexity = measured.tokens_per_second, measured.perplexity
    yield from _named_quantities(
        None if perplexity is None else Estimate(perplexity, None, "#.4g" if perplexity < 1000 else ".4g"),
        None if measured.loss is None else Estimate(measured.loss, measured.stderr),
        Estimate(measured.parameters, None, ","),
        *(
            None if value is None else Estimate(value, None, ",.0f")
            for value in (speed.prefill, speed.decode, measured.cache_bytes)
        ),
    )


def _quantity_changes(differences: Differences) -> Iterator[tuple[Line, Change]]:
    """The same of the differences from another: ratios, but of loss and parameters."""
    speed = differences.tokens_per_second
    ratios = (differences.perplexity_ratio, speed.prefill, speed.decode, differences.cache_bytes)
    ratio, *others = (None if value is None else Estimate(value, None, "x {:.3f}") for value in ratios)
    loss = None if differences.loss is None else Estimate(differences.loss, differences.loss_stderr, "+.4f")
    parameters = Estimate(differences.parameters, None, "+,")
    for line, score in _named_quantities(ratio, loss, parameters, *others):
        yield line, Change(score.cell)  # type: ignore[arg-type]


def _named_quantities(*cells: Estimate | None) -> Iterator[tuple[Line, Score]]:
    names = ("perplexity", "loss (nats a token)", "parameters", "prefill tokens/s", "decode tokens/s", "cache bytes")
    for name, cell in zip(names, cells, strict=True):
        yield Line("text", name), Score(cell)


def _scores(measured: Measurements) -> Iterator[tuple[Line, Score]]:
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
    if stories := measured.stories:
        yield from _story_scores(stories)


def _story_scores(stories: JudgeReport) -> Iterator[tuple[Line, Score]]:
    n = stories.completions.texts
    for metric, mark in (stories.judged.marks if stories.judged else {}).items():
        scored = stories.judged.outcomes["scored"] if stories.judged else 0
        yield Line("stories", "stories", metric), Score(Estimate(mark.mean, mark.stderr, ".2f"), scored)
    for metric in DIVERSITY:
        yield Line("stories", "stories", metric), Score(getattr(stories.completions, metric), n)
    if reference := stories.reference:
        cell = Estimate(reference.completions, reference.completions_stderr)
        yield Line("stories", "stories", f"loss under {short_name(reference.model)}"), Score(cell, n)


def _score_changes(differences: Differences) -> Iterator[tuple[Line, Change]]:
    for kind, found in (("tasks", differences.tasks), ("groups", differences.groups)):
        for name, metrics in found.items():
            yield from ((Line(kind, name, metric), _change(metric, change)) for metric, change in metrics.items())
    for task, change in differences.probes.items():
        yield Line("probes", f"probe of {task}", "accuracy"), _change("accuracy", change)
    for mark, change in differences.stories.items():
        cell = Estimate(change.value, change.stderr, "+.2f")
        yield Line("stories", "stories", mark), Change(cell, change.p_value)


def _change(metric: str, change: DifferenceRecord) -> Change:
    if is_perplexity(metric):
        return Change(Estimate(exponential(change.value), None, "x {:.4g}"), change.p_value)
    return Change(Estimate(change.value, change.stderr, "+.4f"), change.p_value)


def _number(value: float, error: float | None) -> Estimate:
    return Estimate(value, error, ".4g" if abs(value) >= 1000 else "")  # such are perplexities


def _text_caption(evaluation: Evaluation, several: bool) -> str:
    notes = ["±: standard error over rows"]
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
