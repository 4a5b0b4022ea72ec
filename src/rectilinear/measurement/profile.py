"""The linearity profile of a model: the schema of ``profile.json``, and what to be warned about."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.core.scores import BlockScores, Linearity
from rectilinear.core.sinks import MARKS, SinkCounts
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.results import (
    DataRecord,
    EnvironmentRecord,
    IntervalRecord,
    ModelRecord,
    Record,
    ResultFile,
    describe_rows,
)
from rectilinear.tables import Cell, Column, Estimate, Table

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
        return None if self.interval is None else (self.interval.high - self.interval.low) / 2

    @property
    def best(self) -> float | None:
        """The held-out score; in sample where nothing was held out."""
        return self.in_sample if self.held_out is None else self.held_out

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
    cosine: float
    null: float = Field(description="what independent tokens would score in sample for the update")
    null_shifted: float | None = Field(
        default=None, description="what inputs of other rows score there; null where rows have no partners"
    )
    without_sinks: WithoutSinksRecord
    solve: SolveRecord


class Profile(ResultFile):
    """How linear each block of a model is on some text."""

    file_name: ClassVar[str] = "profile.json"

    schema_: Literal["rectilinear.profile/1"] = Field(default="rectilinear.profile/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    blocks: tuple[BlockRecord, ...]
    warnings: tuple[str, ...]

    def tables(self) -> tuple[Table, ...]:
        """One line a block: scores in sample and held out, and the levels to read them against."""
        sinks = any(block.without_sinks.sinks for block in self.blocks)
        few = self.data.tokens < TOKENS_A_FEATURE * (self.model.width or 0)
        adjusted = (Column("adjusted", ".4f"),) * few
        scores = (Column("linearity", ".4f"), *adjusted, Column("held out", ".4f"), Column("identity", ".4f"))
        updates = (Column("update\nlinearity", ".4f"), *adjusted, Column("held out", ".4f"), Column("null", ".4f"))
        others = (Column("|d|/|y|", ".3f"), Column("cosine", ".3f"))
        apart = ("linearity", "update", *(["null"] if self.shifted else []))
        without = (Column("sinks"), *(Column(f"{name}\nwithout\nsinks", ".4f") for name in apart))
        blocks = f"{self.model.num_blocks} block{'s' * (self.model.num_blocks != 1)} of width {self.model.width}"
        table = Table.of(
            [Column("block"), *scores, *updates, *others, *(without if sinks else ())],
            [_cells(block, few, sinks, self.shifted) for block in self.blocks],
            title=f"{self.model.id}: {blocks}, {describe_rows(self.data, self.settings)}",
            caption=f"held out: mean over folds, ± standard error\nnull: {self._null()}" + _SINKS * sinks,
        )
        return (table,)

    @property
    def shifted(self) -> bool:
        """Whether there is a shifted null, which earlier versions did not have."""
        return any(block.null_shifted is not None for block in self.blocks)

    def _null(self) -> str:
        if not self.shifted:
            return "what independent tokens would score in sample"
        other = {"document": "the nearest earlier row of another document", "half": "the row half of all rows away"}
        null = max(block.null for block in self.blocks)
        return (
            f"what the inputs of {other[self.settings['partners']]} score for the update in sample; of independent "
            f"tokens any would score {null:.4f}"
        )


_SINKS = (
    "\nsinks: tokens whose input, output or update is far longer than that of others; first: at the beginning of their "
    "row; in brackets their share of the variation of y"
)


def _cells(block: BlockRecord, few: bool, sinks: bool, shifted: bool) -> list[Cell]:
    output, update, without = block.linearity, block.update_linearity, block.without_sinks
    return [
        block.index,
        *(output.in_sample, *[output.adjusted] * few, output.estimate, block.identity),
        *(update.in_sample, *[update.adjusted] * few, update.estimate),
        *(block.null_shifted if shifted else block.null, block.update_ratio, block.cosine),
        *([_sinks(without), without.linearity.in_sample, without.update_linearity.in_sample] if sinks else []),
        *([without.null_shifted] if sinks and shifted else []),
    ]


def _sinks(without: WithoutSinksRecord) -> str:
    """How many there are, how many of them first in their row, and their share of the variation of y."""
    first = without.sinks_by.first_of_row if without.sinks_by else 0
    place = " first" if first == without.sinks else f", {first} first" if first else ""
    share = "" if without.sink_energy is None else f" ({without.sink_energy:.1%})"
    return f"{without.sinks:,}{place}{share}" if without.sinks else "0"


def block_record(index: int, scores: BlockScores) -> BlockRecord:
    """One block's entry of the profile."""
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
