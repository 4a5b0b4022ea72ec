"""Files on disk as the data of the harness's own tasks, so that its prompts stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectilinear.data.task_files import Line, read_lines, split_file, task_folder
from rectilinear.errors import RequestError

#: Rows as the Hub has them, from a line of a file.
Rows = Callable[[Line], Iterator[dict[str, Any]]]

_TRUTH = (False, True)


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
        rows = [row for line in read_lines(path) for row in self.rows(line)]
        if not rows:
            raise RequestError(f"expected at least one question in {path}, got none")
        return rows


def find_data(folder: Path, task: str, known: bool) -> LocalData | None:
    """A task's data in a folder; None where it has none.

    They are ``TASK/val.jsonl`` and perhaps ``TASK/train.jsonl`` in SuperGLUE's own form, or ``task.jsonl`` of objects
    with ``query``, ``choices`` and ``gold``, with ``context`` and ``continuation``, or with the columns that the task
    has on the Hub.

    Args:
        folder: to look in.
        task: its name in the harness, or that of a file with prompts of its own.
        known: whether the harness knows it.

    Raises:
        RequestError: a SuperGLUE folder without ``val.jsonl``, a file in none of these forms.
    """
    if task in _SUPERGLUE:
        name, rows = _SUPERGLUE[task]
        if any(child.is_dir() and child.name.casefold() == name.casefold() for child in folder.iterdir()):
            found = task_folder(folder, name)
            examples = found / "train.jsonl"
            return LocalData(split_file(found, "val"), examples if examples.is_file() else None, rows, {})
    file = folder / f"{task}.jsonl"
    if not file.is_file():
        return None
    columns = [*next(read_lines(file)).record]
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
    """Columns that are understood for a task beside the Hub's, to be told."""
    return "".join(f", or {', '.join(form)}," for form, tasks in _CONVERTED.items() if task in tasks)


def _boolq(line: Line) -> Iterator[dict[str, Any]]:
    yield {**_texts(line, "passage", "question"), "label": line.one_of("label", _TRUTH)}


def _cb(line: Line) -> Iterator[dict[str, Any]]:
    label = line.one_of("label", ("entailment", "contradiction", "neutral"))
    yield {**_texts(line, "premise", "hypothesis"), "label": label}


def _copa(line: Line) -> Iterator[dict[str, Any]]:
    line.one_of("question", ("cause", "effect"))
    yield {**_texts(line, "premise", "question", "choice1", "choice2"), "label": line.one_of("label", (0, 1))}


def _multirc(line: Line) -> Iterator[dict[str, Any]]:
    passage = line.inside(line.get("passage", dict), "passage")
    for asked in passage.get("questions", list):
        question = passage.inside(asked, "questions")
        for given in question.get("answers", list):
            answer = question.inside(given, "answers")
            yield {
                "paragraph": passage.get("text", str),
                "question": question.get("question", str),
                "answer": answer.get("text", str),
                "label": answer.one_of("label", (0, 1)),
            }


def _record(line: Line) -> Iterator[dict[str, Any]]:
    passage = line.inside(line.get("passage", dict), "passage")
    text = passage.get("text", str)
    spans = [passage.inside(entity, "entities") for entity in passage.get("entities", list)]
    entities = sorted({text[span.get("start", int) : span.get("end", int) + 1] for span in spans})  # the end is inside
    for asked in line.get("qas", list):
        question = line.inside(asked, "qas")
        answers = [question.inside(answer, "answers").get("text", str) for answer in question.get("answers", list)]
        yield {
            "passage": text,
            "query": question.get("query", str),
            "entities": entities,
            "answers": sorted({*answers}),
        }


def _rte(line: Line) -> Iterator[dict[str, Any]]:
    label = line.one_of("label", ("entailment", "not_entailment"))
    yield {**_texts(line, "premise", "hypothesis"), "label": label}


def _glue_rte(line: Line) -> Iterator[dict[str, Any]]:
    for row in _rte(line):
        yield {"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"]}


def _wic(line: Line) -> Iterator[dict[str, Any]]:
    places = {name: line.get(name, int) for name in ("start1", "end1", "start2", "end2")}
    yield {**_texts(line, "word", "sentence1", "sentence2"), **places, "label": line.one_of("label", _TRUTH)}


def _wsc(line: Line) -> Iterator[dict[str, Any]]:
    text, target = line.get("text", str), line.inside(line.get("target", dict), "target")
    row: dict[str, Any] = {"text": text, "label": line.one_of("label", _TRUTH)}
    for span in ("span1", "span2"):
        index = target.get(f"{span}_index", int)
        row[f"{span}_index"] = index
        row[f"{span}_text"] = _as_in_text(target.get(f"{span}_text", str), text, index)
    yield row


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
    yield {**_texts(line, "query"), "choices": choices, "gold": line.one_of("gold", tuple(range(len(choices))))}


def _as_continuation(line: Line) -> Iterator[dict[str, Any]]:
    row = _texts(line, "context", "continuation")
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


def _texts(line: Line, *columns: str) -> dict[str, Any]:
    return {column: line.get(column, str) for column in columns}


def _choices(line: Line) -> list[str]:
    choices: list[str] = line.get("choices", list)
    if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise RequestError(f"{line.where}: expected at least two texts in 'choices', got {choices}")
    return choices


# The harness's name: SuperGLUE's folder, and its lines as the Hub has them.
_SUPERGLUE: dict[str, tuple[str, Rows]] = {
    "boolq": ("BoolQ", _boolq),
    "cb": ("CB", _cb),
    "copa": ("COPA", _copa),
    "multirc": ("MultiRC", _multirc),
    "record": ("ReCoRD", _record),
    "rte": ("RTE", _glue_rte),
    "sglue_rte": ("RTE", _rte),
    "wic": ("WiC", _wic),
    "wsc": ("WSC", _wsc),
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
