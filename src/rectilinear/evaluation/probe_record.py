"""What linear probes found: the schema of ``probe.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.results import EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.training.metrics import MetricRecord
from rectilinear.training.results import TaskDataRecord


class ProbePoint(Record):
    """The probe of one depth."""

    depth: int = Field(description="0: what goes into the first block; k: what comes out of block k - 1")
    c: float = Field(description="inverse strength of the penalty, chosen by cross-validation")
    cross_validated: float = Field(description="accuracy over texts of the training part, on held-out folds")
    metrics: dict[str, MetricRecord] = Field(description="on the validation part")


class Probe(ResultFile):
    """What can be read off the hidden states of a model by a linear map, depth by depth."""

    file_name: ClassVar[str] = "probe.json"

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
        return best_of(self.points)


def best_of(points: Sequence[ProbePoint]) -> ProbePoint:
    """The depth that cross-validation prefers; of equal ones the first."""
    return max(points, key=lambda point: point.cross_validated)
