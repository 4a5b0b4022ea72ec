"""Tasks, by the field's own harness (https://github.com/EleutherAI/lm-evaluation-harness).

Prompts, metrics and their errors are the harness's; this module gives it models that are in memory and data that are
on disk, and adds what a constant answer would score.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import nn

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.evaluation.bootstrap import RESAMPLES, Aggregate, bootstrap_stderr
from rectilinear.evaluation.record import DifferenceRecord, GroupRecord, MetricRecord, TaskRecord
from rectilinear.evaluation.squad import provide_squad_metrics
from rectilinear.evaluation.task_data import LocalData, find_data, forms_of
from rectilinear.measurement.collect import Progress
from rectilinear.models.capture import evaluating
from rectilinear.models.completion import ends_texts
from rectilinear.models.wrapped import own_randomness

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

#: The paper's columns (arXiv 2405.12250, Table 2), by the harness's names of the tasks.
SUPERGLUE = {
    "boolq": ("acc",),
    "cb": ("acc", "f1"),
    "copa": ("acc",),
    "multirc": ("acc",),
    "record": ("f1", "em"),
    "sglue_rte": ("acc",),
    "wic": ("acc",),
    "xstorycloze_en": ("acc",),
}

#: The group of these.
SUPERGLUE_GROUP = "superglue"

# The harness's own seed, of examples among other things.
_SEED = 1234

# Errors that say what they mean, or that others look for: memory that does not suffice is a RuntimeError.
_OURS = (RequestError, JobError, MemoryError, RuntimeError)


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Tasks, ready to be run on models.

    Attributes:
        tasks: of the harness, by name, with their data.
        groups: of the harness, by name.
        sources: of each task's data.
        columns: tasks of the paper's group; none where that was not asked for.
        missing: others of that group, which have no data.
        limit: documents of each task, at most.
        num_fewshot: examples before each question; None for each task's own number.
        apply_chat_template: whether prompts are put into the tokenizer's chat template, examples as earlier turns.
        system_instruction: that comes before prompts; None for each task's own.
    """

    tasks: Mapping[str, Task]
    groups: Mapping[str, Group]
    sources: Mapping[str, str]
    columns: tuple[str, ...]
    missing: tuple[str, ...]
    limit: int | None
    num_fewshot: int | None
    apply_chat_template: bool
    system_instruction: str | None


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What a model scored.

    Attributes:
        tasks, groups: by name.
        items: by task and metric, what it is aggregated from, document by document.
        aggregations: by task and metric, what of it is compared; of perplexities, the logarithm.
        warnings: prompts that were cut.
    """

    tasks: Mapping[str, TaskRecord]
    groups: Mapping[str, GroupRecord]
    items: Mapping[str, Mapping[str, Sequence[Any]]]
    aggregations: Mapping[str, Mapping[str, Aggregate]]
    warnings: tuple[str, ...]


def load_tasks(
    names: Sequence[str],
    data: str | Path | None = None,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
) -> TaskSet:
    """Find tasks and read their data.

    Args:
        names: of tasks, groups or tags of the harness, patterns of these, or ``superglue``: the paper's columns.
        data: a folder of files (see `rectilinear.evaluation.task_data.find_data`); None for the Hub.
        limit: documents of each task, at most.
        num_fewshot: examples before each question; None for each task's own number.
        apply_chat_template: put prompts into the chat template of the model's tokenizer, examples as earlier turns.
        system_instruction: to put before prompts; None for each task's own.

    Raises:
        RequestError: the harness is not installed, a name it does not know, data that are not there or are not what
            the task needs, no examples to show.
    """
    require("lm_eval", "eval")
    for name, value, least in (("--limit", limit, 1), ("--num-fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise RequestError(f"expected {name} of at least {least}, got {value}")
    if not names:
        raise RequestError("expected at least one task, got none")
    folder = None if data is None else Path(data).expanduser()
    if folder is not None and not folder.is_dir():
        raise RequestError(f"expected a folder for --data, got {data}")
    with _quiet():
        manager = _manager()
        provide_squad_metrics()
        wanted = _expand([name for name in names if name != SUPERGLUE_GROUP], manager, folder)
        columns = [*SUPERGLUE] if SUPERGLUE_GROUP in names else []
        present: dict[str, LocalData] = {}
        if folder is None:
            loaded = _from_hub([*dict.fromkeys((*wanted, *columns))], manager)
        else:
            present = _find_all(wanted, columns, manager, folder)
            loaded = _from_files(present, manager)
    tasks = loaded["tasks"]
    if folder is not None:
        for name, task in tasks.items():
            shots = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
            own = task.get_config("fewshot_config")
            if shots and not task.has_training_docs() and not (own and getattr(own, "samples", None)):
                raise RequestError(
                    f"expected {shots} examples of {name} to show, got none in {folder}; try --num-fewshot 0"
                )
    order = [name for asked in names for name in (SUPERGLUE if asked == SUPERGLUE_GROUP else [asked])]
    tasks = dict(sorted(tasks.items(), key=lambda task: order.index(task[0]) if task[0] in order else len(order)))
    missing = tuple(name for name in columns if name not in tasks)
    there = tuple(name for name in columns if name in tasks)
    sources = {
        name: str(present[name].questions)
        if name in present
        else "/".join(filter(None, (task.DATASET_PATH, task.DATASET_NAME)))
        for name, task in tasks.items()
    }
    return TaskSet(
        tasks,
        loaded.get("groups", {}),
        sources,
        there,
        missing,
        limit,
        num_fewshot,
        apply_chat_template,
        system_instruction,
    )


def run_tasks(
    module: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    asked: TaskSet,
    batch_size: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> TaskScores:
    """Run a model on tasks.

    Args:
        module: a causal language model of transformers; it is left as it is.
        tokenizer: its own.
        asked: the tasks.
        batch_size: requests at once.
        seed: of the choice of examples and of sampling.
        progress: called with (stage, done, total).

    Raises:
        RequestError: no transformers model, a tokenizer without the chat template that is asked for.
        JobError: a task that the harness could not run.
    """
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise RequestError(f"expected a transformers model for tasks, got {type(module).__name__}")
    check_chat_template(tokenizer, asked)
    with _quiet(), evaluating(module), own_randomness(module):
        from lm_eval.evaluator import evaluate

        from rectilinear.evaluation.decoder import HarnessDecoder

        _seed(asked, seed)
        decoder = HarnessDecoder(module, copy.deepcopy(tokenizer), batch_size, ends_texts(tokenizer), progress)
        try:
            results = evaluate(
                decoder,
                {"tasks": dict(asked.tasks), "groups": dict(asked.groups)},
                limit=asked.limit,
                bootstrap_iters=RESAMPLES,
                system_instruction=asked.system_instruction,
                apply_chat_template=asked.apply_chat_template,
                fewshot_as_multiturn=asked.apply_chat_template,
            )
        except _OURS:
            raise
        except Exception as error:  # tasks bring code of their own
            raise JobError(f"the harness could not run {', '.join(asked.tasks)}: {_said(error)}") from error
        return _scores(results, asked, decoder.cut)


def check_chat_template(tokenizer: PreTrainedTokenizerBase, asked: TaskSet) -> None:
    """Refuse a tokenizer without the chat template that is asked for.

    Raises:
        RequestError: it has none.
    """
    if asked.apply_chat_template and not tokenizer.chat_template:
        raise RequestError(
            f"expected a tokenizer with a chat template, got {tokenizer.name_or_path or 'one'} without; try without "
            "--apply-chat-template"
        )


def _seed(asked: TaskSet, seed: int) -> None:
    """Seeds and numbers of examples, as the harness's own `simple_evaluate` sets them; its own seeds for seed 0."""
    random.seed(seed)
    numpy.random.seed(_SEED + seed)
    torch.manual_seed(_SEED + seed)
    for task in asked.tasks.values():
        default = task.get_config("num_fewshot")
        if default is None or (asked.num_fewshot is not None and default != 0):
            task.set_config("num_fewshot", asked.num_fewshot or 0)
        task.set_fewshot_seed(_SEED + seed)


def _said(error: BaseException) -> str:
    """What code of a task ran into: messages of such errors are often no more than a name."""
    return f"{type(error).__name__}: {first_line(error)}"


def require(module: str, extra: str) -> None:
    """Say how to install what an extra of this package brings.

    Raises:
        RequestError: it is not installed.
    """
    if find_spec(module) is None:
        raise RequestError(f"expected {module} to be installed; try pip install 'rectilinear[{extra}]'")


@cache
def _manager() -> TaskManager:
    """The harness's index of its tasks, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _expand(names: Sequence[str], manager: TaskManager, folder: Path | None) -> list[str]:
    """The names that patterns stand for, each once, those of files in a folder among them."""
    found: list[str] = []
    for name in names:
        matched = manager.match_tasks([name])
        if not matched and folder is not None and (folder / f"{name}.jsonl").is_file():
            matched = [name]
        if not matched:
            near = get_close_matches(name, [SUPERGLUE_GROUP, *manager.all_tasks], 3, 0.5)
            likely = f"; try {', '.join(near)}" if near else ""
            raise RequestError(f"expected tasks that the harness knows, got {name!r}{likely}")
        groups = [match for match in matched if match in manager.all_groups or match in manager.all_tags]
        if folder is not None and groups:
            raise RequestError(
                f"expected tasks, or {SUPERGLUE_GROUP}, with --data, got {groups[0]}, which stands for several"
            )
        found += [match for match in matched if match not in found]
    return found


def _find_all(
    wanted: Sequence[str], columns: Sequence[str], manager: TaskManager, folder: Path
) -> dict[str, LocalData]:
    """Data of all tasks that are wanted, and of those of the paper's columns that have some."""
    found = {name: find_data(folder, name, name in manager.all_tasks) for name in (*wanted, *columns)}
    present = {name: local for name, local in found.items() if local is not None}
    lacking = [name for name in found if name not in present and (name in wanted or not present)]
    if lacking:
        there = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise RequestError(f"expected data of {', '.join(lacking)} in {folder}, got {there}")
    return present


def _from_hub(names: Sequence[str], manager: TaskManager) -> dict[str, Any]:
    told = ", ".join(names)
    try:
        return {**manager.load([*names])}
    except ImportError as error:
        raise RequestError(f"expected what tasks {told} need to be installed, got {_said(error)}") from None
    except Exception as error:  # tasks bring code of their own
        raise RequestError(f"cannot get the data of {told} from the Hub ({_said(error)}); try --data") from None


def _from_files(found: Mapping[str, LocalData], manager: TaskManager) -> dict[str, Any]:
    """The harness's tasks with data of ours."""
    tasks: dict[str, Task] = {}
    for name, local in found.items():
        task = {"task": name, **_changes(local)}
        try:
            # A task inside a group is the harness's own with changes; by itself it is a new one.
            loaded = manager.load({"group": "files", "task": [task]} if name in manager.all_tasks else task)
        except _OURS:
            raise
        except ImportError as error:
            raise RequestError(f"expected what {name} needs to be installed, got {_said(error)}") from None
        except Exception as error:  # tasks bring code of their own
            raise RequestError(
                f"expected columns and answers as {name} has them on the Hub{forms_of(name)} in {local.questions}, got "
                f"others ({_said(error)})"
            ) from None
        _check_answers(loaded["tasks"][name], local)
        tasks |= loaded["tasks"]
    return {"tasks": tasks}


def _check_answers(task: Task, local: LocalData) -> None:
    """Refuse right answers that are none of the choices, which the harness would count as wrong ones."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return
    for place, document in enumerate(task.eval_docs, 1):
        choices, gold = task.doc_to_choice(document), task.doc_to_target(document)
        for answer in gold if isinstance(gold, list) else [gold]:
            if not (answer in choices if isinstance(answer, str) else 0 <= answer < len(choices)):
                raise RequestError(
                    f"{local.questions}, question {place}: expected an answer among {len(choices)} choices, "
                    f"got {answer!r}"
                )


def _changes(local: LocalData) -> dict[str, Any]:
    """What of a task's configuration is to be other than the harness has it."""
    questions = local.read(local.questions)
    examples = local.read(local.examples) if local.examples else None

    def dataset(**_: Any) -> Mapping[str, Any]:
        from datasets import Dataset

        evaluated = Dataset.from_list(questions)
        # Whatever the harness calls the split that it evaluates.
        splits: dict[str, Any] = defaultdict(lambda: evaluated)
        if examples:
            splits["train"] = Dataset.from_list(examples)
        return splits

    without = {} if examples else {"training_split": None, "fewshot_split": None}
    return {**local.template, **without, "custom_dataset": dataset}


def _scores(results: Any, asked: TaskSet, cut: Mapping[str, int]) -> TaskScores:
    """The harness's results as records."""
    tasks: dict[str, TaskRecord] = {}
    items: dict[str, dict[str, Sequence[Any]]] = {}
    aggregations: dict[str, dict[str, Aggregate]] = {}
    for name, task in asked.tasks.items():
        found, samples = results["results"][name], results["samples"][name]
        metrics: dict[str, MetricRecord] = {}
        items[name], aggregations[name] = {}, {}
        constants = _constant_answers(task, samples)
        for label, value, error in _values(found):
            metric, _, kept = label.partition(",")
            parts = [s[metric] for s in samples if s["filter"] == (kept or "none") and metric in s]
            aggregate = task.aggregation().get(metric, _mean)
            metrics[label] = MetricRecord(
                value=float(value),
                stderr=bootstrap_stderr(aggregate, parts) if _number(error) is None else error,
                constant=constants.get(metric),
                higher_is_better=results["higher_is_better"][name].get(metric),
            )
            items[name][label], aggregations[name][label] = parts, aggregate
            if is_perplexity(label):
                aggregations[name][label] = _logarithm(aggregate)
        tasks[name] = TaskRecord(
            n=results["n-samples"][name]["effective"],
            num_fewshot=results["n-shot"][name],
            version=results["versions"][name],
            source=asked.sources[name],
            cut=cut.get(name, 0),
            metrics=metrics,
        )
    cuts = [
        f"{name}: {record.cut:,} requests were longer than the context and lost their beginnings, so that scores say "
        "little of what these said"
        for name, record in tasks.items()
        if record.cut
    ]
    return TaskScores(tasks, _groups(results, asked, tasks), items, aggregations, tuple(cuts))


def _groups(results: Any, asked: TaskSet, tasks: Mapping[str, TaskRecord]) -> dict[str, GroupRecord]:
    """The harness's groups, and the paper's where it was asked for."""
    records = {}
    for name, found in results.get("groups", {}).items():
        metrics = {
            label: MetricRecord(value=float(value), stderr=_number(stderr)) for label, value, stderr in _values(found)
        }
        children = tuple(task.task_name for task in asked.groups[name].get_all_tasks())
        records[name] = GroupRecord(tasks=children, metrics=metrics)
    if asked.columns:
        records[SUPERGLUE_GROUP] = GroupRecord(
            tasks=asked.columns, missing=asked.missing, metrics={"mean": _mean_column(asked.columns, tasks)}
        )
    return records


def combine(
    groups: Mapping[str, Group], tasks: Mapping[str, Mapping[str, DifferenceRecord]], sizes: Mapping[str, int]
) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Differences of the harness's groups and their standard errors, by group and metric, as it combines scores.

    Args:
        groups: by name.
        tasks: differences by task and metric.
        sizes: documents of each task.
    """
    told = {
        task: {"sample_len": sizes[task]}
        | {key: value for name, cell in metrics.items() for key, value in _as_result(name, cell)}
        for task, metrics in tasks.items()
    }
    return {
        name: {metric: (value, _number(error)) for metric, value, error in _values(group.aggregate(told))}
        for name, group in groups.items()
        if group.has_aggregation
    }


def _as_result(name: str, cell: DifferenceRecord) -> Iterator[tuple[str, Any]]:
    """As the harness has metrics in its results."""
    metric, _, kept = name.partition(",")
    yield f"{metric},{kept or 'none'}", cell.value
    yield f"{metric}_stderr,{kept or 'none'}", "N/A" if cell.stderr is None else cell.stderr


def _mean_column(columns: Sequence[str], tasks: Mapping[str, TaskRecord]) -> MetricRecord:
    cells = [[tasks[name].metrics[metric] for metric in SUPERGLUE[name]] for name in columns]
    value, stderr = mean_of_columns(cells)
    constant = _mean([_mean([cell.constant or 0.0 for cell in row]) for row in cells])
    return MetricRecord(value=value, stderr=stderr, constant=constant, higher_is_better=True)


def mean_of_columns(rows: Sequence[Sequence[MetricRecord | DifferenceRecord]]) -> tuple[float, float | None]:
    """The mean over tasks of the mean of each one's columns, and its standard error.

    Errors of one task's columns are taken for one error; the mean has none where a column has none.
    """
    value = _mean([_mean([cell.value for cell in row]) for row in rows])
    if any(cell.stderr is None for row in rows for cell in row):
        return value, None
    errors = [_mean([cell.stderr or 0.0 for cell in row]) for row in rows]
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
        best = {metric: min if higher.get(metric) is False else max for metric in scored[0]}
        return {metric: best[metric](found[metric] for found in scored) for metric in scored[0]}
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
    return {metric: float(task.aggregation().get(metric, _mean)(parts)) for metric, parts in items.items()}


def is_perplexity(metric: str) -> bool:
    """Whether a metric is one whose ratios say more than its differences."""
    return "perplexity" in metric


def _logarithm(aggregate: Aggregate) -> Aggregate:
    return lambda items: math.log(aggregate(items))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@contextmanager
def _quiet() -> Iterator[None]:
    """The harness without what users can do nothing about, and without traces of it in this process."""
    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    states = random.getstate(), numpy.random.get_state()
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a bootstrap in forks of a process that has threads may hang
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.filterwarnings("ignore", "F-score is ill-defined")  # where an answer is never given
            yield
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
