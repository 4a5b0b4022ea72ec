"""Evaluations as tables on a terminal: of one model, of one against another, of any number side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rectilinear.evaluation.record import Differences, Evaluation, Measurements
from rectilinear.models.origin import short_name
from rectilinear.report.evaluation_cells import (
    SURE,
    Line,
    Score,
    p_values,
    score_changes,
    score_texts,
    scores_of,
    starred,
    text_cells,
    text_changes,
)
from rectilinear.report.tables import print_warnings

# Letters that a model's column takes side by side with others, and those before it.
_COLUMN, _NAMES = 21, 58

# Below this width what a line is of has a single column, which takes about so many letters with the constant's.
_WIDE, _FEW = 118, 30


_KINDS = ("tasks", "groups", "probes", "stories")

#: Columns of a table by their headings, cells by what they are of.
_Columns = dict[str, dict[Line, str]]


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print which models on which text, the tables, and how to read them."""
    if console.width < _WIDE and scores_of(evaluation):
        print_side_by_side([evaluation], console)
    else:
        _print([([evaluation], ())], console)


def print_side_by_side(evaluations: Sequence[Evaluation], console: Console) -> None:
    """Print evaluations of several models, all against the same one or none, in as many tables as the width needs."""
    others = [other.model.id for other in [evaluations[0].against] if other]
    names = _distinct([_cut(short_name(model)) for model in (*(found.model.id for found in evaluations), *others)])
    at_once = max(1, (console.width - (_NAMES if console.width >= _WIDE else _FEW)) // _COLUMN - len(others))
    parts = [
        (evaluations[start : start + at_once], [*names[start : start + at_once], *names[len(evaluations) :]])
        for start in range(0, len(evaluations), at_once)
    ]
    _print(parts, console)


def _print(parts: Sequence[tuple[Sequence[Evaluation], Sequence[str]]], console: Console) -> None:
    """Tables of some models at once, each with their names."""
    everything = [evaluation for part, _ in parts for evaluation in part]
    first = everything[0]
    below = first.against is not None and any(names for _, names in parts)
    against = f" against {first.against.model.id}" if first.against else ""
    text = f": {first.data.tokens:,} tokens of {first.data.source}" if first.data else ""
    # Beside the table, not in it: as narrow as it is, it would break their lines.
    title = ", ".join(evaluation.model.id for evaluation in everything) + against + text
    console.print(title, style="italic", markup=False, highlight=False)
    if first.data:
        for part, names in parts:
            console.print(text_table(part, names))
        console.print(_text_caption(first, below), style="dim italic", markup=False, highlight=False)
    if any(scores_of(evaluation) for evaluation in everything):
        for part, names in parts:
            console.print(scores_table(part, names, compact=console.width < _WIDE))
        console.print(_scores_caption(everything, below), style="dim italic", markup=False, highlight=False)
    print_warnings([*dict.fromkeys(said for found in everything for said in found.warnings)], console)


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
    room = _COLUMN - 3
    return name if len(name) <= room else f"{name[: room // 2 - 2]}…{name[-(room // 2) :]}"


def text_table(evaluations: Sequence[Evaluation], names: Sequence[str] = ()) -> Table:
    """One line a quantity of text and speed.

    Args:
        evaluations: one, with the other model and the differences beside it; or several, the other model before them
            and differences below their numbers.
        names: of several models, then of the other one.
    """
    columns = _columns(evaluations, names, text_cells, text_changes)
    table = Table("", box=HEAVY_HEAD)
    for heading in columns:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for line in next(iter(columns.values())):
        cells = [column.get(line, "-") for column in columns.values()]
        if any(cell != "-" for cell in cells):
            table.add_row(line.name, *cells)
    return table


def scores_table(evaluations: Sequence[Evaluation], names: Sequence[str] = (), *, compact: bool = False) -> Table:
    """One line a metric of tasks, groups, probes and stories; what a constant answer scores beside it.

    Args:
        evaluations, names: as of `text_table`.
        compact: what a line is of in one column.
    """
    columns = _columns(evaluations, names, score_texts, starred if names else score_changes)
    if "difference" in columns and not names:
        columns["p"] = p_values(evaluations[0].differences)
    lines: dict[Line, list[Score]] = {}
    for measured in (*evaluations, *(found.against for found in evaluations[:1] if found.against)):
        for line, score in scores_of(measured).items():
            lines.setdefault(line, []).append(score)
    table = Table(box=HEAVY_HEAD)
    for heading in ("task",) if compact else ("task", "n", "metric"):
        table.add_column(heading, justify="right" if heading == "n" else "left", no_wrap=not compact)
    for heading in ("constant", *columns):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    before = last = None
    for line in sorted(lines, key=lambda line: _KINDS.index(line.kind)):
        if before and line.kind != before.kind:
            table.add_section()
        same = before is not None and (line.kind, line.name) == (before.kind, before.name)
        n = _numbers([score.n for score in lines[line] if score.n is not None])
        constants = {score.constant for score in lines[line]}  # those of probes differ with what they were taught
        name, metric = escape(line.name), escape(line.metric)
        head = ["" if same else name, "" if same and n == last else n, metric]
        table.add_row(
            *([f"{name} {metric}" + (f" ({n})" if n else "")] if compact else head),
            f"{constant:.4f}" if len(constants) == 1 and (constant := constants.pop()) is not None else "-",
            *(column.get(line, "-") for column in columns.values()),
        )
        before, last = line, n
    return table


def _numbers(counts: Sequence[int]) -> str:
    """A number of documents; the least and the largest where models differ, as with stories that a judge refused."""
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _columns(
    evaluations: Sequence[Evaluation],
    names: Sequence[str],
    cells: Callable[[Measurements], dict[Line, str]],
    changes: Callable[[Differences], dict[Line, str]],
) -> _Columns:
    first = evaluations[0]
    if not names:
        columns = {"model": cells(first)}
        if first.against and first.differences:
            columns |= {"against": cells(first.against), "difference": changes(first.differences)}
        return columns
    columns = {names[-1]: cells(first.against)} if first.against else {}
    for name, evaluation in zip(names, evaluations, strict=False):
        below = changes(evaluation.differences) if evaluation.differences else {}
        own = cells(evaluation)
        columns[name] = {
            line: f"{own[line]}\n{below[line]}" if below.get(line, "-") != "-" else own[line] for line in own
        }
    return columns


def _text_caption(evaluation: Evaluation, below: bool) -> str:
    said = ["±: standard error over rows"]
    if evaluation.against:
        said.append("x: ratio of model to against")
    if below:
        said.append("below each number the difference from against, on the same rows")
    if evaluation.settings.get("speed"):
        lengths = (evaluation.settings["prompt_tokens"], evaluation.settings["new_tokens"])
        said.append("speed and cache: one row, {} tokens read, {} decoded".format(*lengths))
    return "; ".join(said)


def _scores_caption(evaluations: Sequence[Evaluation], below: bool) -> str:
    said = []
    if any(evaluation.tasks for evaluation in evaluations):
        said.append("constant: the best answer that is always the same")
    said.append("±: standard error over documents, questions (or their passages), or stories")
    if below:
        said.append(f"below each number the difference from against, paired; *: p < {SURE:g}, each by itself")
    elif evaluations[0].against:
        said.append("p: of no difference, paired")
    if any(evaluation.probes for evaluation in evaluations):
        said.append("probes: at the depth that cross-validation prefers, beside the training part's commonest answer")
    stories = [evaluation.stories for evaluation in evaluations if evaluation.stories]
    if judges := sorted({found.judged.model for found in stories if found.judged}):
        said.append(
            f"marks: from 1 to 10 by {', '.join(judges)}, differences over stories that both models have some of"
        )
    if stories:
        said.append("distinct: different runs of n words over all")
    return "; ".join(said)
