"""What came of a pretraining: the schema of ``training.json``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile


class HeldOutRecord(Record):
    """Loss on rows that were not trained on, without the penalty."""

    data: DataRecord
    loss: float = Field(description="nats per predicted token")
    stderr: float | None = Field(description="of the loss, over rows")
    perplexity: float

    @property
    def told(self) -> str:
        """The loss and its standard error, to be read."""
        return f"{self.loss:.4f}" + ("" if self.stderr is None else f" ± {self.stderr:.4f}")


class Training(ResultFile):
    """A pretraining and what came of it."""

    file_name: ClassVar[str] = "training.json"

    schema_: Literal["rectilinear.training/1"] = Field(default="rectilinear.training/1", alias="schema")
    model: ModelRecord
    data: DataRecord = Field(description="rows to train on; its tokens are those seen, as often as they were")
    held_out: HeldOutRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    processes: int
    steps: int
    seconds: float = Field(description="since the start, or where the run was stopped since it was last resumed")
    tokens_per_second: float | None = Field(description="in these seconds; null where no step was left to make")
    log: tuple[dict[str, float], ...] = Field(description="what Trainer logged, with the step of each entry")
