"""What is known of some blocks' linear maps, and of hidden states by depth: the schema of ``explanation.json``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Chart, MarkedText
from rectilinear.command_lines import text_command
from rectilinear.measurement.profile import LinearityRecord
from rectilinear.measurement.settings import Explaining
from rectilinear.models.settings import Loading
from rectilinear.results import (
    DataRecord,
    EnvironmentRecord,
    ModelRecord,
    Record,
    ResultFile,
)
from rectilinear.settings import Target
from rectilinear.tables import Table
from rectilinear.text.settings import Rows


class FormRecord(Record):
    """What a form of map explains; definitions in `rectilinear.core.forms`."""

    output: LinearityRecord
    update: LinearityRecord


class DirectionRecord(Record):
    """A direction of the output of a map."""

    share: float = Field(description="of the update's energy that the map explains along it")
    raises: tuple[str, ...] = Field(default=(), description="tokens whose logits it raises most; none without a head")
    lowers: tuple[str, ...] = ()


class TokenRecord(Record):
    """A token, and how far its update is from the map's."""

    row: int = Field(description="of the text")
    position: int
    before: str
    token: str
    after: str
    residual: float = Field(
        description="|d - map(x)|^2 over the mean of |d - mean d|^2 where the map was fitted: 1 is as far as updates "
        "are from their mean"
    )


class MeanRecord(Record):
    """A token of the vocabulary, and how far its updates are from the map's."""

    token: str
    n: int
    residual: float = Field(description="mean over its places")


class MarkedRecord(Record):
    """A row of text that the map was not fitted on, token by token."""

    tokens: tuple[str, ...] = Field(description="what each adds to the text")
    residuals: tuple[float | None, ...] = Field(description="null of attention sinks")


class BlockExplanation(Record):
    """The best linear map of a block, or of a part of it, and where it fails."""

    index: int
    tokens: int = Field(description="that the map was fitted on; attention sinks are left out")
    sinks: int
    forms: dict[str, FormRecord]
    ranks: dict[int, FormRecord] = Field(description="of the map with so many directions of its output")
    singular_values: tuple[float, ...] = Field(description="of the map from x to d")
    effective_rank: float = Field(description="of the energies that its directions explain")
    directions: tuple[DirectionRecord, ...]
    deviating: tuple[TokenRecord, ...] = Field(description="those furthest from a map that was fitted on other rows")
    least_linear: tuple[MeanRecord, ...] = Field(description="by token of the vocabulary")
    most_linear: tuple[MeanRecord, ...]
    text: MarkedRecord


class DepthRecord(Record):
    """Hidden states at a depth: their geometry, and what they say of the next token."""

    depth: int
    anisotropy: float = Field(description="share of variance of the leading direction, without sinks")
    effective_rank: float
    intrinsic_dimension: float | None = Field(description="by TwoNN; null where scikit-dimension is not installed")
    logit_lens: float | None = Field(description="accuracy of the head on these states; null without a head")
    logit_lens_stderr: float | None = Field(default=None, description="over rows")
    jump_lens: float | None = Field(description="the same after a linear map to the last depth")
    jump_lens_stderr: float | None = None


class Explanation(ResultFile):
    """What the linear maps of some blocks do, and where they fail."""

    file_name: ClassVar[str] = "explanation.json"
    heading: ClassVar[str] = "What linear maps do, and where they fail"

    schema_: Literal["rectilinear.explanation/1"] = Field(default="rectilinear.explanation/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    target: Target
    blocks: tuple[BlockExplanation, ...]
    depths: tuple[DepthRecord, ...] = Field(default=(), description="none where they were not asked for")
    accuracy: float | None = Field(default=None, description="of the model's own next tokens, on the same rows")
    warnings: tuple[str, ...] = ()

    def headline(self) -> str:
        """What maps explain, and over how many directions that is spread."""
        from rectilinear.measurement.explanation_charts import explanation_headline

        return explanation_headline(self)

    def command(self) -> str:
        """``rectilinear explain``."""
        return text_command("explain", self, Explaining, Rows, Loading)

    def words(self) -> tuple[str, ...]:
        """What simpler maps explain, and where maps fail."""
        from rectilinear.measurement.explanation_charts import explanation_words

        return tuple(explanation_words(self))

    def charts(self) -> tuple[Chart, ...]:
        """Ranks and spectra of maps; geometry and lenses by depth."""
        from rectilinear.measurement.explanation_charts import explanation_charts

        return tuple(explanation_charts(self))

    def texts(self) -> tuple[MarkedText, ...]:
        """A row of text, marked by how far each token's update is from the map's."""
        return tuple(
            MarkedText(
                f"Block {block.index}: how far updates are from the map's, token by token",
                block.text.tokens,
                block.text.residuals,
                "Squared distances; 1 is as far as updates are from their mean. The map was fitted on other rows; "
                "attention sinks are not marked.",
                high=2.0,
            )
            for block in self.blocks
        )

    def tables(self) -> tuple[Table, ...]:
        """What forms of maps explain, what is written, and which tokens deviate."""
        from rectilinear.measurement.explanation_charts import explanation_tables

        return tuple(explanation_tables(self))
