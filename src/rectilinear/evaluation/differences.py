"""One model beside another: what differs, and by how much more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy

from rectilinear.evaluation.bootstrap import Aggregate, no_spread, paired_difference, sign_test
from rectilinear.evaluation.gather import Stories
from rectilinear.evaluation.harness import TaskScores, combine, mean, mean_of_columns
from rectilinear.evaluation.judge_record import Marks
from rectilinear.evaluation.probe_record import Probe
from rectilinear.evaluation.record import DifferenceRecord, Differences, SpeedRecord, finite
from rectilinear.evaluation.run import Run
from rectilinear.evaluation.task_set import SUPERGLUE, SUPERGLUE_GROUP, TaskSet
from rectilinear.measurement.perplexity import exponential


def compare(ours: Run, theirs: Run, asked: TaskSet | None = None) -> Differences:
    """Put one model beside another, paired by rows of text, documents, questions and stories."""
    one, other = ours.measured, theirs.measured
    loss, stderr = (None, None)
    if ours.perplexity and theirs.perplexity:
        loss, stderr = ours.perplexity.minus(theirs.perplexity)
    tasks = _task_differences(ours.scores, theirs.scores) if ours.scores and theirs.scores else {}
    return Differences(
        loss=loss,
        loss_stderr=stderr,
        perplexity_ratio=None if loss is None else finite(exponential(loss)),
        parameters=one.parameters - other.parameters,
        tokens_per_second=SpeedRecord(
            prefill=_ratio(one.tokens_per_second.prefill, other.tokens_per_second.prefill),
            decode=_ratio(one.tokens_per_second.decode, other.tokens_per_second.decode),
        ),
        cache_bytes=_ratio(one.cache_bytes, other.cache_bytes),
        tasks=tasks,
        groups=_group_differences(ours.scores, asked, tasks) if ours.scores and asked else {},
        probes={
            task: _probe_difference(probe, other.probes[task])
            for task, probe in one.probes.items()
            if task in other.probes and are_comparable(probe, other.probes[task])
        },
        stories=_mark_differences(ours.stories, theirs.stories),
    )


def are_comparable(one: Probe, other: Probe) -> bool:
    """Whether two probes were taught and asked the same, in the same way, as far as their files tell."""
    same = ("pooling", "folds", "strengths", "seq_len")
    return one.questions is not None and one.questions == other.questions and _alike(one.settings, other.settings, same)


def begin_alike(one: Stories, other: Stories) -> bool:
    """Whether two models' stories have the same beginnings and were drawn in the same way."""
    same = ("beginning_words", "max_new_tokens", "temperature")
    return one.report.data.fingerprint == other.report.data.fingerprint and _alike(
        one.report.settings, other.report.settings, same
    )


def were_judged_alike(one: Stories, other: Stories) -> bool:
    """Whether one judge marked two models' stories, told the same."""
    ours, theirs = one.report, other.report
    if not (ours.judged and theirs.judged):
        return False
    asked = (ours.judged.model, ours.judged.url) == (theirs.judged.model, theirs.judged.url)
    return asked and _alike(ours.settings, theirs.settings, ("instructions",))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(one.get(name) == other.get(name) for name in names)


def _task_differences(ours: TaskScores, theirs: TaskScores) -> dict[str, dict[str, DifferenceRecord]]:
    return {
        task: {
            metric: _paired(ours.aggregations[task][metric], ours.items[task][metric], theirs.items[task][metric])
            for metric in record.metrics
        }
        for task, record in ours.tasks.items()
    }


def _group_differences(
    scores: TaskScores, asked: TaskSet, tasks: Mapping[str, Mapping[str, DifferenceRecord]]
) -> dict[str, dict[str, DifferenceRecord]]:
    """Differences of tasks taken together as their scores are; the test is a normal approximation."""
    found = combine(asked.groups, tasks, {task: record.n for task, record in scores.tasks.items()})
    if asked.columns:
        columns = [[tasks[task][metric] for metric in SUPERGLUE[task]] for task in asked.columns]
        found[SUPERGLUE_GROUP] = {"mean": mean_of_columns(columns)}
    return {
        group: {
            metric: DifferenceRecord(value=value, stderr=stderr, p_value=_normal_p_value(value, stderr))
            for metric, (value, stderr) in metrics.items()
        }
        for group, metrics in found.items()
    }


def _normal_p_value(value: float, stderr: float | None) -> float | None:
    if not stderr:
        return 1.0 if stderr == value == 0 else None
    return math.erfc(abs(value) / stderr / math.sqrt(2))


def _probe_difference(ours: Probe, theirs: Probe) -> DifferenceRecord:
    """Of accuracies; with questions that depend on one another, the error and the test are over their groups."""
    right = [[[int(digit) for digit in group] for group in (probe.right or "").split()] for probe in (ours, theirs)]
    sizes = numpy.array([len(group) for group in right[0]])
    if sizes.max() == 1:
        return _paired(mean, *([digit for [digit] in groups] for groups in right))
    changes = numpy.array([sum(mine) - sum(other) for mine, other in zip(*right, strict=True)])
    value, n = float(changes.sum() / sizes.sum()), len(sizes)
    if n < 2:
        return DifferenceRecord(value=value, stderr=None, n=int(sizes.sum()))
    from scipy.stats import t as student

    stderr = math.sqrt(((changes - value * sizes) ** 2).sum() * n / (n - 1)) / int(sizes.sum())
    p_value = sign_test(changes) if no_spread(value, stderr) else 2 * float(student.sf(abs(value) / stderr, n - 1))
    return DifferenceRecord(value=value, stderr=stderr, p_value=p_value, n=int(sizes.sum()))


def _mark_differences(ours: Stories | None, theirs: Stories | None) -> dict[str, DifferenceRecord]:
    if not (ours and theirs and begin_alike(ours, theirs) and were_judged_alike(ours, theirs)):
        return {}
    both = sorted(ours.marks.keys() & theirs.marks.keys())
    return {
        mark: _paired(mean, *([getattr(found.marks[index], mark) for index in both] for found in (ours, theirs)))
        for mark in (Marks.model_fields if both else ())
    }


def _paired(aggregate: Aggregate, ours: Sequence[Any], theirs: Sequence[Any]) -> DifferenceRecord:
    return DifferenceRecord(**asdict(paired_difference(aggregate, ours, theirs)), n=len(ours))


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
