"""Tasks, by the field's own harness (https://github.com/EleutherAI/lm-evaluation-harness).

Prompts, metrics and their errors are the harness's; this module gives it models that are in memory, and adds what a
constant answer would score.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from rectilinear.errors import JobError, RequestError, broken_promise
from rectilinear.evaluation.bootstrap import RESAMPLES, bootstrap_stderr, mean, observe
from rectilinear.evaluation.record import DifferenceRecord, GroupRecord, MetricRecord, Observed, TaskRecord
from rectilinear.evaluation.surroundings import describe, is_ours, quiet
from rectilinear.evaluation.task_set import COLUMNS, SUPERGLUE_GROUP, TaskSet, check_chat_template
from rectilinear.models.completion import ends_texts
from rectilinear.models.running import device_of, evaluating, own_randomness
from rectilinear.progress import Progress
from rectilinear.text.fingerprint import fingerprint

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedTokenizerBase

# The harness's own seed, of examples among other things.
_SEED = 1234

# What documents of SuperGLUE call the text that they are about.
_PASSAGES = ("paragraph", "passage")


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What a model scored on tasks and groups, by name, and by task and metric what it takes to compare it."""

    tasks: Mapping[str, TaskRecord]
    groups: Mapping[str, GroupRecord]
    items: Mapping[str, Mapping[str, Observed]]
    warnings: tuple[str, ...]


def run_tasks(
    module: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    task_set: TaskSet,
    batch_size: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> TaskScores:
    """Run a causal language model of transformers, which is left as it is, on tasks.

    Args:
        module, tokenizer: the model.
        task_set: the tasks, with their data.
        batch_size: requests at once.
        seed: of the choice of examples and of sampling.
        progress: called with ("tasks", done, total).

    Raises:
        RequestError: no transformers model, a tokenizer without the chat template that is asked for.
        JobError: a task that the harness could not run.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise RequestError(f"expected a transformers model for tasks, got {type(module).__name__}")
    check_chat_template(tokenizer, task_set)
    with quiet(), evaluating(module), own_randomness(device_of(module)):
        from lm_eval.evaluator import evaluate

        from rectilinear.evaluation.decoder import HarnessDecoder

        how = task_set.settings
        _seed(task_set, seed)
        decoder = HarnessDecoder(module, copy.deepcopy(tokenizer), batch_size, ends_texts(tokenizer), progress)
        try:
            results = evaluate(
                decoder,
                {"tasks": dict(task_set.tasks), "groups": dict(task_set.groups)},
                limit=how.limit,
                bootstrap_iters=RESAMPLES,
                system_instruction=how.system_instruction,
                apply_chat_template=how.apply_chat_template,
                fewshot_as_multiturn=how.apply_chat_template,
            )
        except Exception as error:  # tasks bring code of their own
            if is_ours(error):
                raise
            raise JobError(f"the harness could not run {', '.join(task_set.tasks)}: {describe(error)}") from error
        try:
            return _scores(results, task_set, decoder.cut)
        except KeyError as missing:
            raise broken_promise("lm_eval", f"have {missing} in its results") from missing


def _seed(task_set: TaskSet, seed: int) -> None:
    """Seeds and numbers of examples, as the harness's own `simple_evaluate` sets them; its own seeds for seed 0."""
    random.seed(seed)
    numpy.random.seed(_SEED + seed)
    torch.manual_seed(_SEED + seed)
    shots = task_set.settings.num_fewshot
    for task in task_set.tasks.values():
        default = task.get_config("num_fewshot")
        if default is None or (shots is not None and default != 0):
            task.set_config("num_fewshot", shots or 0)
        task.set_fewshot_seed(_SEED + seed)


def _scores(results: Any, task_set: TaskSet, cut: Mapping[str, int]) -> TaskScores:
    """The harness's results as records."""
    tasks: dict[str, TaskRecord] = {}
    items: dict[str, dict[str, Observed]] = {}
    for name, task in task_set.tasks.items():
        samples = results["samples"][name]
        metrics, items[name] = _metrics(name, task, results, samples)
        documents = [json.dumps([s["doc"], s["target"]], sort_keys=True, default=str) for s in samples]
        tasks[name] = TaskRecord(
            n=results["n-samples"][name]["effective"],
            num_fewshot=results["n-shot"][name],
            version=results["versions"][name],
            source=task_set.sources[name],
            cut=cut.get(name, 0),
            metrics=metrics,
            fingerprint=fingerprint(documents),
        )
    return TaskScores(tasks, _groups(results, task_set, tasks), items, tuple(_warnings(tasks, task_set)))


def _metrics(
    name: str, task: Task, results: Any, samples: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, MetricRecord], dict[str, Observed]]:
    metrics: dict[str, MetricRecord] = {}
    items: dict[str, Observed] = {}
    constants = _constant_answers(task, samples)
    for label, value, error in _values(results["results"][name]):
        metric, _, kept = label.partition(",")
        own = [place for place, s in enumerate(samples) if s["filter"] == (kept or "none") and metric in s]
        parts = [samples[place][metric] for place in own]
        groups = _passages([samples[place] for place in own])
        if not parts:
            raise broken_promise("lm_eval", f"have samples with the items of {name}'s {label}")
        aggregate = task.aggregation().get(metric, mean)
        observed = observe(_log_perplexity if is_perplexity(label) else aggregate, parts, groups)
        if _number(error) is None:  # resampling takes seconds where a score does: once, then
            scores = observed.resampled if observed and len(parts) > 1 and not is_perplexity(label) else None
            error = float(numpy.std(scores, ddof=1)) if scores else bootstrap_stderr(aggregate, parts)
        metrics[label] = MetricRecord(
            value=float(value),
            stderr=error,
            constant=constants.get(metric),
            higher_is_better=results["higher_is_better"][name].get(metric),
        )
        if observed:
            items[label] = observed
    if not metrics:
        raise broken_promise("lm_eval", f"have metrics of {name}, such as 'acc,none', in its results")
    return metrics, items


def _passages(samples: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Which passage each document is about, by number; None where no two are about one."""
    texts = [next((s["doc"][name] for name in _PASSAGES if isinstance(s["doc"].get(name), str)), None) for s in samples]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return [numbers[text] for text in texts] if None not in numbers and len(numbers) < len(texts) else None


def _warnings(tasks: Mapping[str, TaskRecord], task_set: TaskSet) -> Iterator[str]:
    for name, record in tasks.items():
        if record.cut:
            yield (
                f"{name}: {record.cut:,} requests were longer than the context and lost their beginnings, so that "
                "scores say little of what these said"
            )
    for name, record in tasks.items():
        if task_set.settings.num_fewshot not in (None, record.num_fewshot):
            yield f"{name}: the harness asks it with {record.num_fewshot} examples, whatever `num_fewshot` says"


def _groups(results: Any, task_set: TaskSet, tasks: Mapping[str, TaskRecord]) -> dict[str, GroupRecord]:
    """The harness's groups, and the paper's where it was asked for."""
    records = {}
    aggregated = any(group.has_aggregation for group in task_set.groups.values())
    for name, found in (results["groups"] if aggregated else {}).items():
        group = task_set.groups[name]
        records[name] = GroupRecord(
            tasks=tuple(task.task_name for task in group.get_all_tasks()),
            metrics={label: MetricRecord(value=value, stderr=_number(error)) for label, value, error in _values(found)},
            weight_by_size={part.metric: part.weight_by_size for part in group.aggregate_metric_list or ()},
        )
    if columns := task_set.columns:
        cells = [[tasks[name].metrics[metric] for metric in COLUMNS[name]] for name in columns]
        value, stderr = mean_of_columns(cells)
        constant = mean([mean([cell.constant or 0.0 for cell in row]) for row in cells])
        column = MetricRecord(value=value, stderr=stderr, constant=constant, higher_is_better=True)
        records[SUPERGLUE_GROUP] = GroupRecord(tasks=columns, missing=task_set.missing, metrics={"mean": column})
    return records


def combine(
    cells: Sequence[MetricRecord | DifferenceRecord], sizes: Sequence[int], weighted: bool
) -> tuple[float, float | None]:
    """Scores of tasks, or differences of them, as one of the harness's group, and its standard error.

    Args:
        cells: of the tasks that have the metric.
        sizes: their documents.
        weighted: whether tasks of more documents count for more; else the error is that of a mean of independent tasks.
    """
    weights = sizes if weighted else [1] * len(cells)
    value = sum(cell.value * weight for cell, weight in zip(cells, weights, strict=True)) / sum(weights)
    errors = [cell.stderr for cell in cells if cell.stderr is not None]
    if len(errors) < len(cells):
        return value, None
    if not weighted:
        return value, math.sqrt(sum(error**2 for error in errors)) / len(errors)
    if sum(sizes) == len(sizes):  # a document each
        return value, None
    pooled = sum((size - 1) * size * error**2 for size, error in zip(sizes, errors, strict=True))
    return value, math.sqrt(pooled / (sum(sizes) - len(sizes)) / sum(sizes))


def mean_of_columns(rows: Sequence[Sequence[MetricRecord | DifferenceRecord]]) -> tuple[float, float | None]:
    """The mean over tasks of the mean of each one's columns, and its standard error.

    Errors of one task's columns are taken for one error; the mean has none where a column has none.
    """
    value = mean([mean([cell.value for cell in row]) for row in rows])
    if any(cell.stderr is None for row in rows for cell in row):
        return value, None
    errors = [mean([cell.stderr or 0.0 for cell in row]) for row in rows]
    return value, math.sqrt(sum(error**2 for error in errors)) / len(rows)


def _values(found: Mapping[str, Any]) -> Iterator[tuple[str, float, Any]]:
    """Name, value and error of each metric; of the filters that the harness applies to answers "none" is not told."""
    for key, value in found.items():
        metric, _, kept = key.partition(",")
        if kept and not metric.endswith("_stderr"):
            yield metric if kept == "none" else key, value, found.get(f"{metric}_stderr,{kept}")


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) else None


def _constant_answers(task: Task, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By metric, what the best constant answer scores: always the same choice, or the most frequent target."""
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = min(len(sample["arguments"]) for sample in samples)
        scored = [_always(task, samples, choice) for choice in range(choices)]
        higher = task.higher_is_better()
        return {
            metric: (min if higher.get(metric) is False else max)(found[metric] for found in scored)
            for metric in scored[0]
        }
    if task.OUTPUT_TYPE == "loglikelihood":
        targets = Counter(str(sample["target"]) for sample in samples)
        return {"acc": targets.most_common(1)[0][1] / len(samples)}
    return {}


def _always(task: Task, samples: Sequence[Mapping[str, Any]], choice: int) -> dict[str, float]:
    items: dict[str, list[Any]] = {}
    for sample in samples:
        answers = [(0.0 if place == choice else -1e9, False) for place in range(len(sample["arguments"]))]
        for metric, item in task.process_results(sample["doc"], answers).items():
            items.setdefault(metric, []).append(item)
    return {metric: float(task.aggregation().get(metric, mean)(parts)) for metric, parts in items.items()}


def is_perplexity(metric: str) -> bool:
    """Whether a metric is one whose ratios say more than its differences."""
    return "perplexity" in metric


def _log_perplexity(items: Sequence[Any]) -> float:
    """Of log-likelihoods, or of pairs of those and their weights; the logarithm of what the harness makes of them."""
    pairs = [item if isinstance(item, (tuple, list)) else (item, 1) for item in items]
    return float(-sum(likelihood for likelihood, _ in pairs) / sum(weight for _, weight in pairs))
