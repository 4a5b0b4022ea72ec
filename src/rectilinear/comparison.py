"""Models beside another by the files of their results: the schema of ``comparison.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Chart
from rectilinear.command_lines import command_line
from rectilinear.errors import RequestError
from rectilinear.evaluation.comparison_table import evaluation_tables
from rectilinear.evaluation.differences import find_differences, find_unlike
from rectilinear.evaluation.evaluation_charts import pareto_chart
from rectilinear.evaluation.gather import gather_results
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.probe_record import Probe
from rectilinear.evaluation.record import Differences, Evaluation, Items, Measurements
from rectilinear.names import short_name
from rectilinear.results import DataRecord, Record, ResultFile
from rectilinear.tables import Table


class Compared(Record):
    """A model, and how it differs from the one that all are compared with."""

    measured: Measurements
    differences: Differences


class Comparison(ResultFile):
    """Some models beside the one that all are compared with."""

    file_name: ClassVar[str] = "comparison.json"
    heading: ClassVar[str] = "Models beside one another"

    schema_: Literal["rectilinear.comparison/1"] = Field(default="rectilinear.comparison/1", alias="schema")
    sources: tuple[str, ...] = Field(description="of the results: first that of the model that all are compared with")
    data: DataRecord | None = Field(description="the text of all models; null where they have none in common")
    settings: dict[str, Any] = Field(description="those that all models share")
    against: Measurements
    models: tuple[Compared, ...]
    warnings: tuple[str, ...] = ()

    def headline(self) -> str:
        """How losses differ from that of the first model."""
        found = [
            f"{short_name(each.measured.model.id)} {each.differences.loss:+.4f}"
            for each in self.models
            if each.differences.loss is not None
        ]
        return f"Loss against {short_name(self.against.model.id)}: {', '.join(found)} nats a token." if found else ""

    def command(self) -> str:
        """``rectilinear compare``."""
        in_memory = {each.model.id for each in (self.against, *(each.measured for each in self.models))}
        return command_line("compare", (None if name in in_memory else name for name in self.sources), {})

    def charts(self) -> tuple[Chart, ...]:
        """Quality against cost."""
        against = (self.against, None)
        chart = pareto_chart([against, *((each.measured, each.differences) for each in self.models)])
        return (chart,) if chart else ()

    def tables(self) -> tuple[Table, ...]:
        """Text and speed, and scores, as of evaluations."""
        shared = {"data": self.data, "settings": self.settings, "against": self.against}
        return evaluation_tables(
            [Evaluation(**dict(each.measured), **shared, differences=each.differences) for each in self.models]
        )


def compare(first: str | Path | Evaluation, *others: str | Path | Evaluation) -> Comparison:
    """Compare models with a first one by results that are there: nothing is loaded or run.

    Losses and tasks are compared document by document, probes question by question and marks story by story.
    Differences are a model minus the first one, ratios a model over the first one.

    Args:
        first, others: results of one model each: an `Evaluation`, a file of one, or a folder with ``evaluation.json``,
            or with results of `rectilinear.probe` and `rectilinear.judge` at any depth.

    Raises:
        RequestError: no results, or several models' in one place; nothing that two models have in common.
    """
    if not others:
        raise RequestError("expected results of at least two models to compare, got those of one")
    theirs, *models = (read_results(place) for place in (first, *others))
    warnings = [warning for ours in models for warning in (*_own_warnings(ours), *find_unlike(ours, [theirs]))]
    compared = [Compared(measured=ours.measurements(), differences=find_differences(ours, theirs)) for ours in models]
    texts = {(ours.data.fingerprint, ours.data.seq_len) if ours.data else None for ours in (theirs, *models)}
    return Comparison(
        sources=tuple(place.model.id if isinstance(place, Evaluation) else str(place) for place in (first, *others)),
        data=theirs.data if len(texts) == 1 else None,
        settings={
            name: value
            for name, value in theirs.settings.items()
            if all(name in ours.settings and ours.settings[name] == value for ours in models)
        },
        against=theirs.measurements(),
        models=compared,
        warnings=tuple(dict.fromkeys([*_own_warnings(theirs), *warnings])),
    )


def read_results(place: str | Path | Evaluation) -> Evaluation:
    """What there is of a model in a file or a folder; a `RequestError` for nothing, or results of several models."""
    if isinstance(place, Evaluation):
        return place
    path = Path(place).expanduser()
    if not path.is_dir() or (path / Evaluation.file_name).exists():
        return Evaluation.load(path)
    if not any(True for name in (Probe.file_name, JudgeReport.file_name) for _ in path.rglob(name)):
        raise RequestError(
            f"expected {Evaluation.file_name}, {Probe.file_name} or {JudgeReport.file_name} in {path}, got none"
        )
    gathered = gather_results([path])
    models = {model.sha256: model for model in gathered.models.values()}
    if len(models) > 1:
        names = ", ".join(model.id for model in models.values())
        raise RequestError(f"expected results of one model in {path}, got those of {names}; try a folder for each")
    probes, stories, marks = gathered.of(next(iter(models)))
    found: list[Probe | JudgeReport] = [*probes.values(), *([stories] if stories else [])]
    if not found:
        raise RequestError(f"expected results of a model whose weights have a hash in {path}, got others")
    return Evaluation(
        model=found[0].model,
        settings={},
        environment=found[0].environment,
        parameters=found[0].model.parameters,
        probes=probes,
        stories=stories,
        items=Items(marks=marks),
    )


def _own_warnings(found: Evaluation) -> Iterator[str]:
    """Warnings of a model's results that are not about one beside it."""
    for warning in found.warnings:
        if "cannot be compared" not in warning:
            yield warning if warning.startswith(found.model.id) else f"{found.model.id}: {warning}"
