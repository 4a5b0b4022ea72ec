"""One model beside another: what differs, and by how much more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch

from rectilinear.evaluation.bootstrap import grouped_difference, mean, paired_difference
from rectilinear.evaluation.criteria import Marks
from rectilinear.evaluation.harness import combine, mean_of_columns
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.probe_record import Probe
from rectilinear.evaluation.record import (
    DifferenceRecord,
    Differences,
    Evaluation,
    GroupRecord,
    Observed,
    SpeedRecord,
    finite,
)
from rectilinear.evaluation.task_set import COLUMNS, SUPERGLUE_GROUP
from rectilinear.measurement.perplexity import Losses, Perplexity, exponential
from rectilinear.results import IntervalRecord

_Task = Mapping[str, DifferenceRecord]


def find_differences(ours: Evaluation, theirs: Evaluation) -> Differences:
    """Put one model beside another, paired by documents, questions and stories.

    What the two were not asked in the same way has no difference; see `find_unlike`.
    """
    loss: float | None = None
    stderr = interval = None
    if _same_rows(ours, theirs):
        changes = _perplexity(ours).changes(_perplexity(theirs))
        loss, stderr = changes.mean()
        interval = IntervalRecord.of(loss, stderr, len(changes.sums))
    tasks = dict(_task_differences(ours, theirs))
    prefill, decode, cache_bytes = _speed_ratios(ours, theirs)
    return Differences(
        loss=loss,
        loss_stderr=stderr,
        loss_interval=interval,
        perplexity_ratio=None if loss is None else finite(exponential(loss)),
        parameters=ours.parameters - theirs.parameters,
        tokens_per_second=SpeedRecord(prefill=prefill, decode=decode),
        cache_bytes=cache_bytes,
        tasks=tasks,
        groups=dict(_group_differences(ours, theirs, tasks)),
        probes={
            task: probe_difference(probe, theirs.probes[task])
            for task, probe in ours.probes.items()
            if task in theirs.probes and are_comparable(probe, theirs.probes[task])
        },
        stories=_mark_differences(ours, theirs),
    )


def find_unlike(ours: Evaluation, others: Sequence[Evaluation]) -> Iterator[str]:
    """What a model and the first of some others that has the same both have, but cannot be compared by."""
    other = next((found for found in others if found.data), None)
    if other and ours.data and not _same_rows(ours, other):
        why = "have no rows in their files" if _same_text(ours, other) else "are of different texts"
        yield f"losses of {_names(ours, other)} cannot be compared: they {why}; evaluate both on one text"
    for task in ours.tasks:
        other = next((found for found in others if task in found.tasks), None)
        if other and not _same_documents(task, ours, other):
            yield (
                f"scores of {task} cannot be compared: {_names(ours, other)} were asked other documents, or in another "
                "way, or their items were not kept"
            )
    for task, probe in ours.probes.items():
        other = next((found for found in others if task in found.probes), None)
        if other and not are_comparable(probe, other.probes[task]):
            yield (
                f"probes of {task} cannot be compared: {_names(ours, other)} were taught or asked other questions, or "
                "in another way"
            )
    stories = ours.stories
    other = next((found for found in others if found.stories), None)
    if stories and other and other.stories and not begin_alike(stories, other.stories):
        yield f"stories cannot be compared: those of {_names(ours, other)} begin or were drawn differently"
    other = next((found for found in others if found.items.marks), None)
    if stories and ours.items.marks and other and other.stories and not were_judged_alike(stories, other.stories):
        yield f"marks cannot be compared: stories of {_names(ours, other)} had different judges"


def _names(one: Evaluation, other: Evaluation) -> str:
    return f"{one.model.id} and {other.model.id}"


def _same_text(one: Evaluation, other: Evaluation) -> bool:
    if not (one.data and other.data):
        return False
    return (one.data.fingerprint, one.data.seq_len) == (other.data.fingerprint, other.data.seq_len)


def _same_rows(one: Evaluation, other: Evaluation) -> bool:
    return _same_text(one, other) and bool(one.items.rows and other.items.rows)


def _perplexity(found: Evaluation) -> Perplexity:
    items = found.items
    each = items.row_tokens or (found.tokens // len(items.rows),) * len(items.rows)
    rows, documents = (
        Losses(torch.tensor(sums, dtype=torch.float64), torch.tensor(sizes))
        for sums, sizes in ((items.rows, each), (items.documents, items.document_tokens))
    )
    return Perplexity(rows, documents if items.documents else None)


def _same_documents(task: str, one: Evaluation, other: Evaluation) -> bool:
    """Whether two models were asked the same documents of a task, with the same examples and in the same words."""
    records = [found.tasks[task] for found in (one, other)]
    same = ("num_fewshot", "version", "fingerprint")
    how = ("apply_chat_template", "system_instruction", *(["seed"] if records[0].num_fewshot else []))
    return (
        all(task in found.items.tasks for found in (one, other))
        and records[0].fingerprint is not None
        and _alike(vars(records[0]), vars(records[1]), same)
        and _alike(one.settings, other.settings, how)
    )


def are_comparable(one: Probe, other: Probe) -> bool:
    """Whether two probes were taught and asked the same, in the same way, as far as their files tell."""
    same = ("pooling", "folds", "strengths", "seq_len")
    return one.questions is not None and one.questions == other.questions and _alike(one.settings, other.settings, same)


def begin_alike(one: JudgeReport, other: JudgeReport) -> bool:
    """Whether two models' stories have the same beginnings and were drawn in the same way."""
    same = ("beginning_words", "max_new_tokens", "temperature")
    return one.data.fingerprint == other.data.fingerprint and _alike(one.settings, other.settings, same)


def were_judged_alike(one: JudgeReport, other: JudgeReport) -> bool:
    """Whether one judge marked two models' stories, by the same instructions."""
    if not (one.judged and other.judged):
        return False
    same = (one.judged.model, one.judged.url) == (other.judged.model, other.judged.url)
    return same and _alike(one.settings, other.settings, ("instructions",))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(one.get(name) == other.get(name) for name in names)


def _task_differences(ours: Evaluation, theirs: Evaluation) -> Iterator[tuple[str, dict[str, DifferenceRecord]]]:
    for task in ours.tasks:
        if task in theirs.tasks and _same_documents(task, ours, theirs):
            mine, other = ours.items.tasks[task], theirs.items.tasks[task]
            shared = (metric for metric in mine if metric in other)
            yield task, {metric: paired_difference(mine[metric], other[metric]) for metric in shared}


def _group_differences(
    ours: Evaluation, theirs: Evaluation, tasks: Mapping[str, _Task]
) -> Iterator[tuple[str, dict[str, DifferenceRecord]]]:
    """Differences of tasks taken together as their scores are; the test is a normal approximation."""
    for name, group in ours.groups.items():
        if name not in theirs.groups or theirs.groups[name].tasks != group.tasks or {*group.tasks} - tasks.keys():
            continue
        if name == SUPERGLUE_GROUP:
            columns = [[tasks[task][metric] for metric in COLUMNS[task]] for task in group.tasks]
            found = {"mean": mean_of_columns(columns)}
        else:
            found = dict(_combined(group, ours, tasks))
        changes = {}
        for metric, (value, stderr) in found.items():
            p_value = math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else None
            if stderr == value == 0:
                p_value = 1.0
            changes[metric] = DifferenceRecord(value=value, stderr=stderr, p_value=p_value)
        yield name, changes


def _combined(
    group: GroupRecord, ours: Evaluation, tasks: Mapping[str, _Task]
) -> Iterator[tuple[str, tuple[float, float | None]]]:
    """By metric, where the group's score is that of its tasks as `combine` has it."""
    for metric, score in group.metrics.items():
        weighted = group.weight_by_size.get(metric.partition(",")[0], True)
        members = [task for task in group.tasks if metric in tasks[task]]
        sizes = [ours.tasks[task].n for task in members]
        if members and math.isclose(
            combine([ours.tasks[task].metrics[metric] for task in members], sizes, weighted)[0], score.value
        ):
            yield metric, combine([tasks[task][metric] for task in members], sizes, weighted)


def probe_difference(ours: Probe, theirs: Probe) -> DifferenceRecord:
    """Of accuracies; with questions that depend on one another, the error and the test are over their groups."""
    right = [[[int(digit) for digit in group] for group in (probe.right or "").split()] for probe in (ours, theirs)]
    sizes = numpy.array([len(group) for group in right[0]])
    if sizes.max() == 1:
        return _paired(*([digit for [digit] in groups] for groups in right))
    mine, others = (numpy.array([digit for group in groups for digit in group], float) for groups in right)
    return grouped_difference(mine - others, numpy.repeat(numpy.arange(len(sizes)), sizes))


def _mark_differences(ours: Evaluation, theirs: Evaluation) -> dict[str, DifferenceRecord]:
    if not (ours.stories and theirs.stories and begin_alike(ours.stories, theirs.stories)):
        return {}
    both = sorted(ours.items.marks.keys() & theirs.items.marks.keys())
    if not both or not were_judged_alike(ours.stories, theirs.stories):
        return {}
    return {
        mark: _paired(*([getattr(found.items.marks[index], mark) for index in both] for found in (ours, theirs)))
        for mark in Marks.model_fields
    }


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> DifferenceRecord:
    return paired_difference(*(Observed(score=mean(of), n=len(of), values=of) for of in (ours, theirs)))


def _speed_ratios(ours: Evaluation, theirs: Evaluation) -> list[float | None]:
    """Of reading, of decoding and of the cache, where both were timed on as many tokens."""
    timed = _alike(ours.settings, theirs.settings, ("prompt_tokens", "new_tokens"))
    found = [(of.tokens_per_second.prefill, of.tokens_per_second.decode, of.cache_bytes) for of in (ours, theirs)]
    return [one / other if timed and one is not None and other else None for one, other in zip(*found, strict=True)]
