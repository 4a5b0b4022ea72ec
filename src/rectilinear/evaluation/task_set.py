"""Tasks of lm-evaluation-harness, found by name, with data of the Hub or on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError, require
from rectilinear.evaluation.settings import Evaluating
from rectilinear.evaluation.surroundings import describe, is_ours, provide_squad_metrics, quiet
from rectilinear.evaluation.task_data import LocalData, find_data, forms_of

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerBase

#: The paper's columns (arXiv 2405.12250, Table 2), by the harness's names of the tasks.
COLUMNS = {
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


@dataclass(frozen=True, eq=False)
class TaskSet:
    """Tasks, ready to be run on models.

    Attributes:
        tasks, groups: of the harness, by name, with their data.
        sources: of each task's data.
        columns: tasks of the paper's group; none without that group.
        missing: others of that group, which have no data.
        settings: how they are asked.
    """

    tasks: Mapping[str, Task]
    groups: Mapping[str, Group]
    sources: Mapping[str, str]
    columns: tuple[str, ...]
    missing: tuple[str, ...]
    settings: Evaluating


def load_tasks(settings: Evaluating) -> TaskSet:
    """Find tasks and read their data.

    Names are of tasks, groups or tags of the harness, patterns of these, or ``superglue``: the paper's columns. For a
    folder with data see `rectilinear.evaluation.task_data.find_data`.

    Raises:
        RequestError: the harness is not installed, a name it does not know, data that are not there or are not what
            the task needs, no examples to show.
    """
    require("lm_eval", "eval")
    names = settings.tasks
    if not names:
        raise RequestError("expected at least one task, got none")
    folder = None if settings.data is None else Path(settings.data).expanduser()
    if folder is not None and not folder.is_dir():
        raise RequestError(f"expected a folder for `data`, got {settings.data}")
    columns = [*COLUMNS] if SUPERGLUE_GROUP in names else []
    with quiet():
        manager = _manager()
        provide_squad_metrics()
        wanted = _expand([name for name in names if name != SUPERGLUE_GROUP], manager, folder)
        present = {} if folder is None else _find_all(wanted, columns, manager, folder)
        loaded = _from_files(present, manager) if folder else _from_hub([*wanted, *columns], manager)
    if folder is not None:
        _check_examples(loaded["tasks"], settings.num_fewshot, folder)
    order = [name for given in names for name in (COLUMNS if given == SUPERGLUE_GROUP else [given])]
    tasks: dict[str, Task] = dict(
        sorted(loaded["tasks"].items(), key=lambda task: order.index(task[0]) if task[0] in order else len(order))
    )
    return TaskSet(
        tasks,
        loaded.get("groups", {}),
        {name: str(present[name].questions) if folder else _on_hub(task) for name, task in tasks.items()},
        columns=tuple(name for name in columns if name in tasks),
        missing=tuple(name for name in columns if name not in tasks),
        settings=settings,
    )


def _check_examples(tasks: Mapping[str, Task], num_fewshot: int | None, folder: Path) -> None:
    for name, task in tasks.items():
        default = task.get_config("num_fewshot")
        shots = default if num_fewshot is None or default == 0 else num_fewshot
        own = task.get_config("fewshot_config")
        if shots and not task.has_training_docs() and not (own and getattr(own, "samples", None)):
            raise RequestError(
                f"expected {shots} examples of {name} to show, got none in {folder}; try `num_fewshot=0`"
            )


def _on_hub(task: Task) -> str:
    return "/".join(filter(None, (task.DATASET_PATH, task.DATASET_NAME)))


def check_chat_template(tokenizer: PreTrainedTokenizerBase, tasks: TaskSet) -> None:
    """Raise a `RequestError` for a tokenizer without a chat template where prompts are to be put into one."""
    if tasks.settings.apply_chat_template and not tokenizer.chat_template:
        raise RequestError(
            f"expected a tokenizer with a chat template, got {tokenizer.name_or_path or 'one'} without; try without "
            "`apply_chat_template`"
        )


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
            tries = ", ".join(near) + (f", or put {name}.jsonl into `data`" if folder else "")
            likely = f"; try {tries.removeprefix(', or ')}" if tries else ""
            raise RequestError(f"expected tasks that the harness knows, got {name!r}{likely}")
        groups = [match for match in matched if match in manager.all_groups or match in manager.all_tags]
        if folder is not None and groups:
            raise RequestError(
                f"expected tasks, or {SUPERGLUE_GROUP}, with `data`, got {groups[0]}, which stands for several"
            )
        found += [match for match in matched if match not in found]
    return found


def _find_all(
    wanted: Sequence[str], columns: Sequence[str], manager: TaskManager, folder: Path
) -> dict[str, LocalData]:
    """Data of all tasks that are wanted, and of those of the paper's columns that have some."""
    found = {name: find_data(folder, name, name in manager.all_tasks) for name in (*wanted, *columns)}
    present = {name: local for name, local in found.items() if local}
    if lacking := [name for name in found if name not in present and (name in wanted or not present)]:
        there = ", ".join(sorted(child.name for child in folder.iterdir())) or "nothing"
        raise RequestError(f"expected data of {', '.join(lacking)} in {folder}, got {there}")
    return present


def _from_hub(names: Sequence[str], manager: TaskManager) -> dict[str, Any]:
    listed = ", ".join(dict.fromkeys(names))
    try:
        return {**manager.load([*dict.fromkeys(names)])}
    except ImportError as error:
        raise RequestError(f"expected what tasks {listed} need to be installed, got {describe(error)}") from None
    except Exception as error:  # tasks bring code of their own
        raise RequestError(f"cannot get the data of {listed} from the Hub ({describe(error)}); try `data`") from None


def _from_files(found: Mapping[str, LocalData], manager: TaskManager) -> dict[str, Any]:
    """The harness's tasks with data of ours."""
    tasks: dict[str, Task] = {}
    for name, local in found.items():
        task = {"task": name, **_changes(local)}
        try:
            # A task inside a group is the harness's own with changes; by itself it is a new one.
            loaded = manager.load({"group": "files", "task": [task]} if name in manager.all_tasks else task)
        except ImportError as error:
            raise RequestError(f"expected what {name} needs to be installed, got {describe(error)}") from None
        except Exception as error:  # tasks bring code of their own
            if is_ours(error):
                raise
            there = f" as {name} has them on the Hub" if name in manager.all_tasks else ""
            raise RequestError(
                f"expected columns and answers{there}{forms_of(name)} in {local.questions}, got others "
                f"({describe(error)})"
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
