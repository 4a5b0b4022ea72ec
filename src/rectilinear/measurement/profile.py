"""The linearity profile of a model: the schema of ``profile.json``, and what to be warned about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Chart
from rectilinear.core.scores import BlockScores, Linearity
from rectilinear.core.sinks import MARKS, SinkCounts
from rectilinear.measurement.pairs_record import PairsRecord
from rectilinear.measurement.score_choice import are_few
from rectilinear.measurement.settings import Measurement
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
    command_line,
    describe_rows,
)
from rectilinear.settings import Target
from rectilinear.tables import Cell, Column, Estimate, Table
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
        return command_line("measure", self, Measurement, Rows, Loading)

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section:
        """Profiles over one another, and whether their means over blocks differ."""
        from rectilinear.measurement.profile_words import profiles_section

        return profiles_section(results)

    def tables(self) -> tuple[Table, ...]:
        """One line a block, for each target: scores in sample and held out, and the levels to read them against."""
        return tuple(self._table(target, blocks) for target, blocks in self.scores.items())

    def _table(self, target: Target, blocks: Sequence[BlockRecord]) -> Table:
        few = are_few(self.data.tokens, self.model.width)
        sinks = any(block.without_sinks.sinks for block in blocks)
        columns = [*_columns(target, few, sinks, self.shifted)]
        stack = f"{self.model.num_blocks} block{'s' * (self.model.num_blocks != 1)} of width {self.model.width}"
        whose = "" if target == "block" else f"{_PARTS[target]} of "
        return Table.of(
            [column for column, _ in columns],
            [[cell(block) for _, cell in columns] for block in blocks],
            title=f"{short_name(self.model.id)}: {whose}{stack}, {describe_rows(self.data, self.settings)}",
            caption=f"{_ADDED if target != 'block' else _SHARES}held out: mean over folds, ± standard error\n"
            f"{_ADJUSTED * few}null: {self._null()}" + self._about_sinks(target) * sinks,
        )

    def _about_sinks(self, target: Target) -> str:
        begin = "; and BOS, which each row begins with" if self.settings.get("bos") == "row" else ""
        of = "y" if target == "block" else "what is added"
        return (
            f"\nsinks: tokens whose input, output or update is far longer than that of others{begin}; first: at the "
            f"beginning of their row; in brackets their share of the variation of {of}"
        )

    @property
    def shifted(self) -> bool:
        """Whether there is a shifted null, which earlier versions did not have."""
        return any(block.null_shifted is not None for block in self.blocks)

    def _null(self) -> str:
        if not self.shifted:
            return "what independent tokens would score in sample"
        other = {"document": "the nearest earlier row of another document", "half": "a row half the text away"}
        null = max(block.null for block in self.blocks)
        return (
            f"what unrelated inputs, those of {other[self.settings['partners']]}, score for the update in sample; were "
            f"tokens independent, any inputs would score {null:.4f}"
        )


_PARTS = {"attention": "attentions", "mlp": "MLPs"}

_ADDED = "of what each adds to the residual stream, from what it is given\n"

_SHARES = (
    "linearity: share of the variation of y that a linear map of x explains; update linearity: of d = y - x; identity: "
    "what y = x explains\n"
)

_ADJUSTED = "adjusted: in sample, less what as many features gain by chance\n"


def _columns(
    target: Target, few: bool, sinks: bool, shifted: bool
) -> Iterator[tuple[Column, Callable[[BlockRecord], Cell]]]:
    """What a table of blocks, or of parts of them, has of each."""
    whole = target == "block"
    own, apart = ("update\nlinearity", "update") if whole else ("linearity", "linearity")
    every: list[tuple[bool, str, str, Callable[[BlockRecord], Cell]]] = [
        (True, "block", "", lambda b: b.index),
        (whole, "linearity", ".4f", lambda b: b.linearity.in_sample),
        (whole and few, "adjusted", ".4f", lambda b: b.linearity.adjusted),
        (whole, "held out", ".4f", lambda b: b.linearity.estimate),
        (whole, "identity", ".4f", lambda b: b.identity),
        (True, own, ".4f", lambda b: b.update_linearity.in_sample),
        (few, "adjusted", ".4f", lambda b: b.update_linearity.adjusted),
        (True, "held out", ".4f", lambda b: b.update_linearity.estimate),
        (True, "null", ".4f", lambda b: b.null_shifted if shifted else b.null),
        (whole, "|d|/|y|", ".3f", lambda b: b.update_ratio),
        (whole, "cosine", ".3f", lambda b: b.cosine),
        (sinks, "sinks", "", lambda b: _sinks(b.without_sinks)),
        (sinks and whole, "linearity\nwithout\nsinks", ".4f", lambda b: b.without_sinks.linearity.in_sample),
        (sinks, f"{apart}\nwithout\nsinks", ".4f", lambda b: b.without_sinks.update_linearity.in_sample),
        (sinks and few, "adjusted\nwithout\nsinks", ".4f", lambda b: b.without_sinks.update_linearity.adjusted),
        (sinks and shifted, "null\nwithout\nsinks", ".4f", lambda b: b.without_sinks.null_shifted),
    ]
    return ((Column(name, spec), cell) for shown, name, spec, cell in every if shown)


def _sinks(without: WithoutSinksRecord) -> str:
    """How many there are, how many of them first in their row, and their share of the variation of y."""
    first = without.sinks_by.first_of_row if without.sinks_by else 0
    place = " first" if first == without.sinks else f", {first} first" if first else ""
    share = "" if without.sink_energy is None else f" ({without.sink_energy:.1%})"
    return f"{without.sinks:,}{place}{share}" if without.sinks else "0"


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
