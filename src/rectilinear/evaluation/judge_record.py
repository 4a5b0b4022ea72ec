"""What a judge said of a model's stories: the schema of ``judge.json``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from rectilinear.evaluation.text_measures import TextMeasures
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile

#: How a request ended.
Outcome = Literal["scored", "refused", "malformed"]


class Marks(BaseModel):
    """What a judge is to answer with, from 1 to 10."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    grammar: int = Field(ge=1, le=10)
    creativity: int = Field(ge=1, le=10)
    consistency: int = Field(ge=1, le=10)
    plot: int = Field(ge=1, le=10)


class Story(Record):
    """A beginning, and what the model made of it."""

    index: int
    beginning: str
    ending: str = Field(description="of the text itself: as many words as the model wrote, or as there are")
    completion: str


class Judgement(Record):
    """One answer of the judge."""

    index: int = Field(description="of the story")
    outcome: Outcome
    answer: str = Field(description="as it came")
    marks: Marks | None = None
    prompt_tokens: int = Field(default=0, description="as the endpoint counts; 0 where it does not say")
    completion_tokens: int = 0


class MarkRecord(Record):
    """A mark over the stories that were given one."""

    mean: float
    stderr: float | None = Field(description="over stories; null for one")


class Judged(Record):
    """What a judge made of the stories."""

    model: str
    url: str
    asked: int = Field(description="stories that the judge answered for")
    outcomes: dict[Outcome, int]
    marks: dict[str, MarkRecord] = Field(description="of scored stories; empty where there are none")
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = Field(default=None, description="of these tokens by --prices; null where none were given")


class ReferenceLoss(Record):
    """How likely another model finds texts after their beginnings."""

    model: str
    completions: float = Field(description="nats per token of what the model wrote")
    completions_stderr: float | None = Field(description="over stories")
    perplexity: float | None = Field(description="exp of it; null beyond the range of float64")
    endings: float = Field(description="nats per token of what the texts themselves go on with")
    tokens: int = Field(description="of completions")


class JudgeReport(ResultFile):
    """A model's stories: counted, compared with the texts' own endings, and judged."""

    file_name: ClassVar[str] = "judge.json"

    schema_: Literal["rectilinear.judge/1"] = Field(default="rectilinear.judge/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    completions: TextMeasures
    endings: TextMeasures = Field(description="of what the texts themselves go on with")
    reference: ReferenceLoss | None = None
    judged: Judged | None = None
    warnings: tuple[str, ...] = ()
