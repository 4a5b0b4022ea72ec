"""Files on disk as the data of the harness's own tasks, whose prompts stay what they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.text.lines import Line, read_lines
from rectilinear.text.superglue import SUPERGLUE, Rows, split_file


@dataclass(frozen=True)
class LocalData:
    """Where a task's data are, and how the harness is to have them.

    Attributes:
        questions: the file that a model is evaluated on.
        examples: one to take examples from; None where there is none.
        rows: of a line.
        template: prompts for a task that the harness does not know; empty for those it does.
    """

    questions: Path
    examples: Path | None
    rows: Rows
    template: Mapping[str, Any]

    def read(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a file.

        Raises:
            RequestError: a line that is not JSON, a column that is missing, or has something else in it; no rows.
        """
        rows = [row for line in read_lines(path, required=True) for row in self.rows(line)]
        if not rows:
            raise RequestError(f"expected at least one question in {path}, got none")
        return rows


def find_data(folder: Path, task: str, known: bool) -> LocalData | None:
    """A task's data in a folder; None where it has none.

    They are ``TASK/val.jsonl`` and perhaps ``TASK/train.jsonl`` in SuperGLUE's own form, or ``task.jsonl`` of objects
    with ``query``, ``choices`` and ``gold``, with ``context`` and ``continuation``, or, where the harness has
    ``known`` of the task, with the columns that it has on the Hub.

    Raises:
        RequestError: a SuperGLUE folder without ``val.jsonl``, a file in none of these forms.
    """
    if task in _SUPERGLUE:
        name, rows = _SUPERGLUE[task]
        if found := SUPERGLUE[name].find(folder):
            examples = found / "train.jsonl"
            own = rows or SUPERGLUE[name].rows
            return LocalData(split_file(found, "val"), examples if examples.is_file() else None, own, {})
    file = folder / f"{task}.jsonl"
    if not file.is_file():
        return None
    columns = [*next(read_lines(file, required=True)).record]
    for form, (template, own) in _FORMS.items():
        if {*form} <= {*columns}:
            if not known:
                return LocalData(file, None, own, template)
            if task in _CONVERTED[form]:
                return LocalData(file, None, _CONVERTED[form][task], {})
            raise RequestError(
                f"expected the Hub's own columns of {task} in {file}, got {', '.join(form)}, which are understood for "
                f"{', '.join(_CONVERTED[form])}; to use them as they are, give the file a name that is no task's"
            )
    if not known:
        forms = " or ".join(", ".join(form) for form in _FORMS)
        raise RequestError(
            f"expected {forms} in {file}, since the harness knows no task {task}, got {', '.join(columns)}"
        )
    return LocalData(file, None, lambda line: iter([{column: line.get(column, object) for column in columns}]), {})


def forms_of(task: str) -> str:
    """Columns that are understood for a task beside the Hub's, for messages."""
    return "".join(f", or {', '.join(form)}," for form, tasks in _CONVERTED.items() if task in tasks)


def _glue_rte(line: Line) -> Iterator[dict[str, Any]]:
    for row in SUPERGLUE["rte"].rows(line):
        yield {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"]}


def _wsc_fixed(line: Line) -> Iterator[dict[str, Any]]:
    for row in SUPERGLUE["wsc"].rows(line):
        fixed = {
            f"{span}_text": _as_in_text(row[f"{span}_text"], row["text"], row[f"{span}_index"])
            for span in ("span1", "span2")
        }
        yield {**row, **fixed}


def _as_in_text(span: str, text: str, index: int) -> str:
    """A span as the Hub's ``wsc.fixed`` has it: where it is not in the text, with the case of the word there,
    without a full stop and line ends."""
    words = text.split()
    if span in text or not span or not 0 <= index < len(words):
        return span
    first = span[0].lower() if words[index][0].islower() else span[0].upper()
    fixed = (first + span[1:]).rstrip(".").replace("\n", " ")
    return fixed if fixed in text else span


def _as_choices(line: Line) -> Iterator[dict[str, Any]]:
    choices = _choices(line)
    yield {**line.texts("query"), "choices": choices, "gold": line.one_of("gold", tuple(range(len(choices))))}


def _as_continuation(line: Line) -> Iterator[dict[str, Any]]:
    row = line.texts("context", "continuation")
    blank = "" if row["continuation"][:1].isspace() else " "
    yield {**row, "continuation": blank + row["continuation"]}


def _arc(line: Line) -> Iterator[dict[str, Any]]:
    choices = _choices(line)
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    yield {
        "question": line.get("query", str).removeprefix("Question: "),  # the harness's prompt says so itself
        "choices": {"text": choices, "label": letters},
        "answerKey": letters[line.one_of("gold", tuple(range(len(choices))))],
    }


def _lambada(line: Line) -> Iterator[dict[str, Any]]:
    context, last = line.get("context", str), line.get("continuation", str)
    if " " in last:  # the harness takes what follows the last space for the word to predict
        raise RequestError(f"{line.where}: expected one word in 'continuation', got {last!r}")
    yield {"text": f"{context} {last}"}


def _choices(line: Line) -> list[str]:
    choices: list[str] = line.get("choices", list)
    if len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError(f"{line.where}: expected at least two texts in 'choices', none of them empty, got {choices}")
    return choices


# The harness's name: SuperGLUE's task, and its lines as the harness wants them where that is not as the Hub has them.
_SUPERGLUE: dict[str, tuple[str, Rows | None]] = {
    **{name: (name, None) for name in SUPERGLUE},
    "rte": ("rte", _glue_rte),
    "sglue_rte": ("rte", None),
    "wsc": ("wsc", _wsc_fixed),
}

# Forms of other files, by the columns that they have. What the harness does for a task that only a file knows: what
# the file says, and nothing else.
_QUERY, _CONTEXT = ("query", "choices", "gold"), ("context", "continuation")
_FORMS: dict[tuple[str, ...], tuple[dict[str, Any], Rows]] = {
    _QUERY: (
        {
            "output_type": "multiple_choice",
            "validation_split": "validation",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        _as_choices,
    ),
    _CONTEXT: (
        {
            "output_type": "loglikelihood",
            "validation_split": "validation",
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{continuation}}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        _as_continuation,
    ),
}
# Tasks that the harness knows, whose Hub columns can be made of these forms.
_CONVERTED: dict[tuple[str, ...], dict[str, Rows]] = {
    _QUERY: {"arc_easy": _arc, "arc_challenge": _arc},
    _CONTEXT: {"lambada_openai": _lambada, "lambada_standard": _lambada},
}
