"""What can be read off the hidden states at every depth: the schema of ``probe.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Chart
from rectilinear.command_lines import command_line, loaded_as, model_word
from rectilinear.evaluation.settings import Probing
from rectilinear.models.settings import Loading
from rectilinear.names import short_name
from rectilinear.results import EnvironmentRecord, ModelRecord, Record, ResultFile, Section
from rectilinear.tables import Cell, Column, Estimate, Table
from rectilinear.training.metrics import MetricRecord
from rectilinear.training.results import TaskDataRecord

if TYPE_CHECKING:
    from typing import Self


class ProbePoint(Record):
    """The probe of one depth."""

    depth: int = Field(description="0: what goes into the first block; k: what comes out of block k - 1")
    c: float = Field(description="inverse strength of the penalty, chosen by cross-validation")
    cross_validated: float = Field(description="accuracy over texts of the training part, on held-out folds")
    metrics: dict[str, MetricRecord] = Field(description="on the validation part")


class Probe(ResultFile):
    """What can be read off the hidden states of a model by a linear map, depth by depth."""

    file_name: ClassVar[str] = "probe.json"
    heading: ClassVar[str] = "What linear probes read off the hidden states"

    schema_: Literal["rectilinear.probe/1"] = Field(default="rectilinear.probe/1", alias="schema")
    model: ModelRecord
    task: str
    data: TaskDataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    points: tuple[ProbePoint, ...] = Field(description="by depth")
    questions: str | None = Field(
        default=None, description="SHA-256 of texts, answers and groups of both parts; null in older files"
    )
    right: str | None = Field(
        default=None,
        pattern="^[01]+( [01]+)*$",
        description="a digit a question of the validation part, 1 where the best depth's answer is right; questions "
        "that depend on one another stand together, spaces between others",
    )
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> ProbePoint:
        """The depth that cross-validation on the training part prefers; of equal ones the first."""
        return max(self.points, key=lambda point: point.cross_validated)

    def headline(self) -> str:
        """What the best depth gets right."""
        name, metric = next(iter(self.best.metrics.items()))
        where = f"depth {self.best.depth}, which cross-validation prefers"
        constant = "" if metric.baseline is None else f", {metric.baseline:.3f} by the commonest answer"
        return f"{self.task}: {name.replace('_', ' ')} {metric.value:.3f} at {where}{constant}."

    def command(self) -> str:
        """``rectilinear probe``."""
        arguments = [model_word(self.model), "--task", self.task]
        values = {**self.settings, **loaded_as(self.model, self.environment), "data": self.data.source}
        return command_line("probe", arguments, values, Probing, Loading)

    def charts(self) -> tuple[Chart, ...]:
        """What is right, by depth."""
        from rectilinear.evaluation.probe_charts import probes_chart

        return (probes_chart([self]),)

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section | None:
        """Several models' probes of a task over one another."""
        from rectilinear.evaluation.probe_charts import probes_chart

        tasks = {task: [one for one in results if one.task == task] for task in dict.fromkeys(r.task for r in results)}
        charts = tuple(probes_chart(several) for several in tasks.values() if len(several) > 1)
        from rectilinear.evaluation.probe_charts import probes_headline

        title = f"{cls.heading}, models beside one another"
        return Section(title, probes_headline(results), charts=charts) if charts else None

    def tables(self) -> tuple[Table, ...]:
        """One line a depth: what cross-validation made of the training part, and the metrics of the other one."""
        names, best = [*self.points[0].metrics], self.best
        rows: list[list[Cell]] = [
            [
                f"{point.depth} {'*' if point is best else ' '}",
                f"{1 / point.c:g}",
                point.cross_validated,
                *(Estimate(point.metrics[name].value, point.metrics[name].stderr) for name in names),
            ]
            for point in self.points
        ]
        rows.append(["constant  ", "", "", *(self.points[0].metrics[name].baseline for name in names)])
        counted = f"{self.data.train:,} questions of {short_name(self.data.source)}, {self.data.validation:,} asked"
        # Formats, so that these columns stand on the right.
        columns = [Column(name, ".4f") for name in ("depth", "penalty 1/C", "cross-validated")]
        table = Table.of(
            [*columns, *(Column(name.replace("_", " "), ".4f") for name in names)],
            rows,
            title=f"{short_name(self.model.id)}, {self.task}: {counted}",
            caption="depth 0: what goes into the first block, k: what comes out of block k - 1; ±: standard error over "
            "questions, or the passages they are about; *: the best in cross-validation; constant: the training part's "
            "commonest answer",
            sections=(len(self.points),),
        )
        return (table,)
