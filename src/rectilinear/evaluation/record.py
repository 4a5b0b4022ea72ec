"""How good and how fast a model is, alone or beside another: the schema of ``evaluation.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rectilinear.command_lines import command_line, loaded_as, model_word, text_word
from rectilinear.evaluation.criteria import Marks
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.probe_record import Probe
from rectilinear.evaluation.settings import Evaluating
from rectilinear.models.settings import Loading
from rectilinear.names import short_name
from rectilinear.results import (
    DataRecord,
    EnvironmentRecord,
    IntervalRecord,
    ModelRecord,
    Record,
    ResultFile,
    Section,
)
from rectilinear.tables import Table
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from typing import Self


class SpeedRecord(Record):
    """Tokens per second, or the ratio of two models' there; null where not measured."""

    prefill: float | None = None
    decode: float | None = None


class TimedRecord(SpeedRecord):
    """Tokens per second, and how far what was timed is spread."""

    prefill_middle: tuple[float, float] | None = Field(
        default=None, description="at the ends of the middle half of the times, the slower first; null in older files"
    )
    decode_middle: tuple[float, float] | None = None


class MetricRecord(Record):
    """A score of a task."""

    value: float
    stderr: float | None = Field(description="over documents; the harness's own where it has one")
    constant: float | None = Field(default=None, description="of the best constant answer; null where there is none")
    higher_is_better: bool | None = None


class TaskRecord(Record):
    """What a model scored on a task of lm-evaluation-harness."""

    n: int = Field(description="documents")
    num_fewshot: int
    version: Any = Field(description="of the task in the harness")
    source: str = Field(description="of its data")
    cut: int = Field(description="requests that were longer than the context and lost their beginnings")
    metrics: dict[str, MetricRecord] = Field(description="by the harness's names")
    fingerprint: str | None = Field(
        default=None, description="SHA-256 of documents and targets, in their order; null in older files"
    )


class GroupRecord(Record):
    """Tasks taken together."""

    tasks: tuple[str, ...]
    missing: tuple[str, ...] = Field(default=(), description="others of the group, which had no data")
    metrics: dict[str, MetricRecord]
    weight_by_size: dict[str, bool] = Field(
        default_factory=dict, description="by the harness's metric, whether tasks of more documents count for more"
    )


class DifferenceRecord(Record):
    """A score minus the other model's on the same documents; of perplexities, their logarithms."""

    value: float
    stderr: float | None
    p_value: float | None = Field(default=None, description="two-sided, of no difference")
    n: int | None = Field(default=None, description="documents, questions or stories of both; null of several tasks")


class Measurements(Record):
    """What was measured of one model; definitions in `rectilinear.evaluation`."""

    model: ModelRecord
    environment: EnvironmentRecord
    perplexity: float | None = Field(default=None, description="exp(loss); null beyond the range of float64")
    loss: float | None = Field(default=None, description="nats per predicted token; null where there was no text")
    stderr: float | None = Field(default=None, description="of the loss, over clusters; null for a single one")
    interval: IntervalRecord | None = Field(default=None, description="of the loss, by Student's t over clusters")
    clusters: int | None = Field(default=None, description="what errors are over; null where rows are, in older files")
    clustered_by: Literal["documents", "rows"] | None = Field(
        default=None, description="rows where the text is one document, or in older files"
    )
    tokens: int = Field(
        default=0,
        description="predicted: all but the first of each row, and BOS where rows begin with it",
    )
    parameters: int
    tokens_per_second: TimedRecord = TimedRecord()
    cache_bytes: int | None = Field(
        default=None, description="after prompt and new tokens of one row; null where not measured"
    )
    tasks: dict[str, TaskRecord] = Field(default_factory=dict)
    groups: dict[str, GroupRecord] = Field(default_factory=dict)
    probes: dict[str, Probe] = Field(default_factory=dict, description="by task")
    stories: JudgeReport | None = Field(default=None, description="null where none were included")


class Differences(Record):
    """The model beside the other one: differences are model minus other, ratios model over other."""

    loss: float | None = Field(description="null where there was no text")
    loss_stderr: float | None = Field(description="of the difference, paired by clusters; null for a single one")
    loss_interval: IntervalRecord | None = Field(default=None, description="by Student's t over clusters")
    perplexity_ratio: float | None = Field(description="null beyond the range of float64")
    parameters: int
    tokens_per_second: SpeedRecord = Field(description="ratios")
    cache_bytes: float | None = Field(description="a ratio; null where either is not measured or the other's is 0")
    tasks: dict[str, dict[str, DifferenceRecord]] = Field(default_factory=dict, description="by task and metric")
    groups: dict[str, dict[str, DifferenceRecord]] = Field(default_factory=dict, description="by group and metric")
    probes: dict[str, DifferenceRecord] = Field(
        default_factory=dict, description="by task, of accuracies at the depths that cross-validation prefers"
    )
    stories: dict[str, DifferenceRecord] = Field(
        default_factory=dict, description="by mark, over stories that were scored of both"
    )


class Observed(Record):
    """A score, and what it takes to compare it with another model's on the same documents."""

    score: float = Field(description="of perplexities the logarithm")
    n: int = Field(description="documents")
    values: tuple[float, ...] | None = Field(default=None, description="by document, where the score is their mean")
    groups: tuple[int, ...] | None = Field(
        default=None, description="by document, which passage it is about; null where each is about another"
    )
    resampled: tuple[float, ...] | None = Field(
        default=None,
        description="the score over documents that are drawn anew, the same ones for every model; null where there are "
        "values",
    )


class Items(Record):
    """What scores came from, piece by piece, so that files of two models are enough to compare these."""

    rows: tuple[float, ...] = Field(default=(), description="summed loss of each row's predicted tokens, in nats")
    row_tokens: tuple[int, ...] = Field(default=(), description="predicted tokens of each row, where rows differ")
    documents: tuple[float, ...] = Field(default=(), description="the same sums by document of the text")
    document_tokens: tuple[int, ...] = Field(default=(), description="predicted tokens of each document")
    tasks: dict[str, dict[str, Observed]] = Field(default_factory=dict, description="by task and metric")
    marks: dict[int, Marks] = Field(default_factory=dict, description="of a judge, by the index of the story")


class Evaluation(Measurements, ResultFile):
    """How good and how fast a model is, and the same of the one it was compared to."""

    file_name: ClassVar[str] = "evaluation.json"
    heading: ClassVar[str] = "How good and how fast it is"

    schema_: Literal["rectilinear.evaluation/1"] = Field(default="rectilinear.evaluation/1", alias="schema")
    data: DataRecord | None = Field(default=None, description="the text; null where there was none")
    settings: dict[str, Any]
    against: Measurements | None = None
    differences: Differences | None = None
    warnings: tuple[str, ...] = ()
    items: Items = Items()

    def measurements(self) -> Measurements:
        """What was measured, alone."""
        return Measurements(**{name: getattr(self, name) for name in Measurements.model_fields})

    def headline(self) -> str:
        """The loss, and how far it is from the other model's."""
        if self.loss is None:
            return ""
        error = "" if self.stderr is None else f" (± {self.stderr:.4f})"
        found = f"Loss {self.loss:.4f}{error} nats a token"
        if self.against is None or self.differences is None or self.differences.loss is None:
            return f"{found}."
        error = "" if self.differences.loss_stderr is None else f" (± {self.differences.loss_stderr:.4f})"
        return f"{found}, {self.differences.loss:+.4f}{error} against {short_name(self.against.model.id)}."

    def command(self) -> str:
        """``rectilinear evaluate``."""
        arguments = [model_word(self.model)]
        arguments += [] if self.data is None else ["--text", text_word(self.data)]
        arguments += [] if self.against is None else ["--against", model_word(self.against.model)]
        arguments += ["--tasks", ",".join(self.tasks)] * bool(self.tasks)
        sizes = {"seq_len": self.data.seq_len} if self.data else {}
        values = {**self.settings, **loaded_as(self.model, self.environment), **sizes}
        values |= {"data": values.get("task_data"), "batch_size": None}
        return command_line("evaluate", arguments, values, Rows, Evaluating, Loading)

    def words(self) -> tuple[str, ...]:
        """What was lost and what was gained."""
        from rectilinear.evaluation.evaluation_charts import evaluation_words

        return tuple(evaluation_words(self))

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section | None:
        """Quality against cost of all models on a text."""
        from rectilinear.evaluation.evaluation_charts import evaluations_section

        return evaluations_section(results)

    def tables(self) -> tuple[Table, ...]:
        """Text and speed, and scores; beside those of the other model where there is one."""
        from rectilinear.evaluation.comparison_table import evaluation_tables

        return evaluation_tables([self])

    def to_json(self) -> str:
        """The text of ``evaluation.json``; without ``against`` and ``differences`` where there are none."""
        alone = {"against", "differences"} if self.against is None else set()
        dumped = self.model_dump(mode="json", by_alias=True, exclude=alone)
        items = json.dumps(dumped.pop("items"), separators=(",", ":"), allow_nan=False)  # numbers to read by program
        first = {key: dumped.pop(key) for key in ("schema", "model", "data", "settings", "environment")}
        text = json.dumps({**first, **dumped}, indent=2, allow_nan=False)
        return f'{text.removesuffix("}").rstrip()},\n  "items": {items}\n}}\n'


def finite(value: float) -> float | None:
    """The value; None where it is not finite, which JSON cannot hold."""
    return value if math.isfinite(value) else None
