"""The linearity profile of a model: the schema of ``profile.json``, and what to be warned about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Chart
from rectilinear.command_lines import text_command
from rectilinear.core.scores import BlockScores, Linearity
from rectilinear.core.sinks import MARKS, SinkCounts
from rectilinear.measurement.pairs_record import PairsRecord
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.results import (
    DataRecord,
    EnvironmentRecord,
    IntervalRecord,
    ModelRecord,
    Record,
    ResultFile,
    Section,
)
from rectilinear.settings import Target
from rectilinear.tables import Estimate, Table
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from typing import Self

#: Which of a block's two scores.
Score = Literal["linearity", "update_linearity"]

#: How close scores are to come to those of a float64 decomposition of stored activations.
ACCURACY = 1e-6


class LinearityRecord(Record):
    """See `rectilinear.core.scores.Linearity`, of which it is made; null where the data cannot give a value."""

    in_sample: float | None
    adjusted: float | None
    held_out: float | None
    stderr: float | None
    interval: IntervalRecord | None = Field(
        default=None, description="of the held-out score, by Student's t over folds"
    )

    @classmethod
    def of(cls, scores: Linearity) -> LinearityRecord:
        """The record of some scores."""
        interval = IntervalRecord.of(scores.held_out, scores.stderr, scores.folds)
        known = {name: getattr(scores, name) for name in ("in_sample", "adjusted", "held_out", "stderr")}
        return cls(**known, interval=interval)

    @property
    def half_width(self) -> float | None:
        """Half of the interval; None where there is none, as in what earlier versions wrote."""
        return None if self.interval is None else self.interval.half_width

    @property
    def estimate(self) -> Estimate | None:
        """The held-out score with its standard error."""
        return None if self.held_out is None else Estimate(self.held_out, self.stderr)


class SinkCountsRecord(Record):
    """How many attention sinks there are of each kind, by what told them (a token may have several marks) and place."""

    input: int
    output: int
    update: int
    bos: int = Field(default=0, description="that begin their row by request, and are set apart whatever their norms")
    first_of_row: int = Field(description="at the first position of their row")
    ids: dict[str, int] = Field(description="by token id, the most frequent five")

    @classmethod
    def of(cls, counts: SinkCounts) -> SinkCountsRecord:
        """The record of some counts."""
        most = dict(sorted(counts.ids.items(), key=lambda pair: -pair[1])[:5])
        marks = dict(zip(MARKS, counts.marks, strict=True))
        first, ids = counts.positions.get(0, 0), {str(token): n for token, n in most.items()}
        return cls(**marks, bos=counts.bos, first_of_row=first, ids=ids)


class WithoutSinksRecord(Record):
    """The scores over tokens that are not attention sinks, and what the sinks carry."""

    tokens: int
    sinks: int
    sinks_by: SinkCountsRecord | None = None
    sink_energy: float | None
    identity: float | None = None
    null_shifted: float | None = None
    linearity: LinearityRecord
    update_linearity: LinearityRecord


class SolveRecord(Record):
    """How the least-squares problem over all tokens was solved."""

    rank: int
    condition: float
    method: Literal["cholesky", "eigh"]
    cutoff: float
    products: Literal["float32", "float64"]
    error: float = Field(description="estimate of how far float32 products may have moved the scores")


class BlockRecord(Record):
    """The scores of one block; definitions in docs/method.md."""

    index: int
    linearity: LinearityRecord
    update_linearity: LinearityRecord
    identity: float | None
    update_ratio: float | None
    cosine: float | None
    null: float = Field(description="what independent tokens would score in sample for the update")
    null_shifted: float | None = Field(
        default=None, description="what inputs of other rows score there; null where rows have no partners"
    )
    without_sinks: WithoutSinksRecord
    solve: SolveRecord


class Profile(ResultFile):
    """How linear each block of a model is on some text."""

    file_name: ClassVar[str] = "profile.json"
    heading: ClassVar[str] = "How linear each block is"

    schema_: Literal["rectilinear.profile/1"] = Field(default="rectilinear.profile/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    target: Target = Field(default="block", description="what of each block its scores are of")
    blocks: tuple[BlockRecord, ...]
    parts: dict[Target, tuple[BlockRecord, ...]] = Field(
        default_factory=dict, description="scores of what else was asked for, by target"
    )
    pairs: PairsRecord | None = Field(default=None, description="of depths; null where they were not asked for")
    warnings: tuple[str, ...]

    @property
    def scores(self) -> dict[Target, tuple[BlockRecord, ...]]:
        """Scores by target: of blocks, of their attentions, of their MLPs."""
        return {self.target: self.blocks, **self.parts}

    def charts(self) -> tuple[Chart, ...]:
        """Scores by depth and, where they were measured, of all pairs of depths."""
        from rectilinear.measurement.profile_charts import pairs_chart, profile_chart

        own = profile_chart(self)
        return (own, pairs_chart(self, self.pairs)) if self.pairs else (own,)

    def headline(self) -> str:
        """How much of outputs and of updates linear maps explain."""
        from rectilinear.measurement.profile_words import profile_headline

        return profile_headline(self)

    def words(self) -> tuple[str, ...]:
        """What was measured, of the output and of the update, how far to trust it, and what sinks do."""
        from rectilinear.measurement.profile_words import profile_words

        return tuple(profile_words(self))

    def command(self) -> str:
        """``rectilinear measure``."""
        return text_command("measure", self, Measurement, Rows, Loading)

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section:
        """Profiles over one another, and whether their means over blocks differ."""
        from rectilinear.measurement.profile_words import profiles_section

        return profiles_section(results)

    def tables(self) -> tuple[Table, ...]:
        """One line a block, for each target: scores in sample and held out, and levels to read them against; pairs."""
        from rectilinear.measurement.profile_table import pairs_table, profile_table

        of_blocks = [profile_table(self, target, blocks) for target, blocks in self.scores.items()]
        return (*of_blocks, pairs_table(self.pairs)) if self.pairs else tuple(of_blocks)

    @property
    def shifted(self) -> bool:
        """Whether there is a shifted null, which earlier versions did not have."""
        return any(block.null_shifted is not None for block in self.blocks)


def block_record(index: int, scores: BlockScores) -> BlockRecord:
    """One block's entry of the profile, or that of a part of it."""
    whole, without, factor = scores.all_tokens, scores.without_sinks, scores.all_tokens.solution.factor
    return BlockRecord(
        index=index,
        linearity=LinearityRecord.of(whole.linearity),
        update_linearity=LinearityRecord.of(whole.update_linearity),
        identity=whole.identity,
        update_ratio=whole.update_ratio,
        cosine=scores.cosine,
        null=whole.null,
        null_shifted=whole.null_shifted,
        without_sinks=WithoutSinksRecord(
            tokens=without.tokens if without else 0,
            sinks=scores.sinks,
            sinks_by=SinkCountsRecord.of(scores.sink_counts),
            sink_energy=scores.sink_energy,
            identity=without.identity if without else None,
            null_shifted=without.null_shifted if without else None,
            linearity=LinearityRecord.of(without.linearity if without else Linearity()),
            update_linearity=LinearityRecord.of(without.update_linearity if without else Linearity()),
        ),
        solve=SolveRecord(
            rank=factor.rank,
            condition=factor.condition,
            method=factor.method,
            cutoff=factor.cutoff,
            error=without.error if without else whole.error,  # sinks have products of their own
            products=str(whole.moments.products).removeprefix("torch."),
        ),
    )
