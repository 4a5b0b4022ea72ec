"""The linearity profile of a model: the schema of ``profile.json``, and what to be warned about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.core.block_moments import MARKS, SinkCounts
from rectilinear.core.scores import BlockScores, Linearity
from rectilinear.intervals import LEVEL, half_width
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.tables import Cell, Column, Estimate, Table

#: How close scores are to come to those of a float64 decomposition of stored activations.
ACCURACY = 1e-6


class IntervalRecord(Record):
    """An interval that covers what a score is expected to be: of maps fitted on as many tokens, on other text."""

    low: float
    high: float
    level: float


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
        interval = None
        if scores.held_out is not None and scores.stderr is not None:
            half = half_width(scores.stderr, scores.folds)
            interval = IntervalRecord(low=scores.held_out - half, high=scores.held_out + half, level=LEVEL)
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
    first_of_row: int = Field(description="at the first position of their row")
    ids: dict[str, int] = Field(description="by token id, the most frequent five")

    @classmethod
    def of(cls, counts: SinkCounts) -> SinkCountsRecord:
        """The record of some counts."""
        most = dict(sorted(counts.ids.items(), key=lambda pair: -pair[1])[:5])
        marks = dict(zip(MARKS, counts.marks, strict=True))
        return cls(**marks, first_of_row=counts.positions.get(0, 0), ids={str(token): n for token, n in most.items()})


class WithoutSinksRecord(Record):
    """The scores over tokens that are not attention sinks, and what the sinks carry."""

    tokens: int
    sinks: int
    sinks_by: SinkCountsRecord | None = None
    sink_energy: float | None
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
    null: float
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
        without = (Column("sinks"), *(Column(f"{name}\nwithout\nsinks", ".4f") for name in ("linearity", "update")))
        blocks = f"{self.model.num_blocks} block{'s' * (self.model.num_blocks != 1)} of width {self.model.width}"
        table = Table.of(
            [Column("block"), *scores, *updates, *others, *(without if sinks else ())],
            [_cells(block, few, sinks) for block in self.blocks],
            title=f"{self.model.id}: {blocks}, {self.data.tokens:,} tokens of {self.data.source}",
            caption="held out: mean over folds, ± standard error; null: what independent data would score in sample"
            + _SINKS * sinks,
        )
        return (table,)


_SINKS = (
    "\nsinks: tokens whose input, output or update is far longer than that of others; first: at the beginning of their "
    "row; in brackets their share of the variation of y"
)


def _cells(block: BlockRecord, few: bool, sinks: bool) -> list[Cell]:
    output, update, without = block.linearity, block.update_linearity, block.without_sinks
    return [
        block.index,
        *(output.in_sample, *[output.adjusted] * few, output.estimate, block.identity),
        *(update.in_sample, *[update.adjusted] * few, update.estimate, block.null),
        *(block.update_ratio, block.cosine),
        *([_sinks(without), without.linearity.in_sample, without.update_linearity.in_sample] if sinks else []),
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
        without_sinks=WithoutSinksRecord(
            tokens=without.tokens if without else 0,
            sinks=scores.sinks,
            sinks_by=SinkCountsRecord.of(scores.sink_counts),
            sink_energy=scores.sink_energy,
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


def _constant(block: BlockRecord) -> list[str]:
    """What of a block differs from token to token by no more than rounding."""
    without = block.without_sinks
    whole = {"output": block.linearity, "update": block.update_linearity}
    others = {"output": without.linearity, "update": without.update_linearity} if without.tokens else {}
    found = [name for name, scores in whole.items() if scores.in_sample is None]
    return found + [
        f"{name} without sinks" for name, each in others.items() if each.in_sample is None and name not in found
    ]


def find_warnings(blocks: list[BlockRecord], data: DataRecord, width: int, wanted_folds: int) -> list[str]:
    """What a reader of these scores must know, each with what to do about it."""
    folds, tokens, enough = min(wanted_folds, data.rows), data.tokens, TOKENS_A_FEATURE * width
    found = []
    if tokens <= width + 1:
        found.append(
            f"{tokens} tokens for width {width}: every in-sample score is 1, unless tokens repeat; "
            f"measure at least {enough} tokens"
        )
    elif tokens < enough:
        found.append(
            f"{tokens} tokens are fewer than {TOKENS_A_FEATURE} x width {width}: in-sample scores are biased up "
            f"(independent data would score {blocks[0].null:.3f}), held-out scores down; read adjusted, or measure "
            f"{enough} tokens"
        )
    if folds < wanted_folds:
        found.append(
            f"rows of text: {data.rows}, fewer than the {wanted_folds} folds asked for; "
            + ("there are no held-out scores" if folds < 2 else f"{folds} folds were used")
        )
    train = tokens * (folds - 1) // folds
    if folds > 1 and train <= width:
        found.append(
            f"held-out maps were fitted on about {train} tokens, no more than width {width}: measure more tokens"
        )
    about: dict[str, dict[int, str]] = {
        "rank-deficient Gram matrix, directions that never vary were left out: rank": {
            b.index: f"{b.solve.rank} of {width}" for b in blocks if b.solve.rank < width < tokens
        },
        "float32 products resolve these activations poorly, try `products=float64`: scores may be off by": {
            b.index: f"{b.solve.error:.0e}" for b in blocks if b.solve.error > ACCURACY
        },
        "a fold has none of these tokens, or none that differ, there are no held-out scores: over": {
            b.index: "all tokens" if b.linearity.held_out is None else "without sinks"
            for b in blocks
            for sets in [(b.linearity, b.without_sinks.linearity)]
            if folds > 1 and any(scores.held_out is None and scores.in_sample is not None for scores in sets)
        },
        "no variance beyond the rounding of the states, scores are null, try `dtype=float32` if it is not: constant": {
            b.index: ", ".join(constant) for b in blocks if (constant := _constant(b))
        },
    }
    for text, details in about.items():
        groups = {detail: [index for index, other in details.items() if other == detail] for detail in details.values()}
        if groups:
            found.append(f"{text} " + "; ".join(f"{detail} ({_blocks(group)})" for detail, group in groups.items()))
    return found + _about_sinks(blocks)


def _about_sinks(blocks: list[BlockRecord]) -> list[str]:
    """One sentence where sinks decide the scores of some blocks."""
    ruled = [block for block in blocks if (block.without_sinks.sink_energy or 0.0) > 0.5]
    if not ruled:
        return []
    counts, shares = ([getattr(b.without_sinks, name) for b in ruled] for name in ("sinks", "sink_energy"))
    first = [block.without_sinks.sinks_by.first_of_row for block in ruled if block.without_sinks.sinks_by]
    place = ", each the first of its row," if first == counts else ""
    return [
        f"attention sinks{place} carry most of the variation of y in {_blocks([b.index for b in ruled])} (up to "
        f"{max(counts)} tokens, up to {max(shares):.1%}) and decide the scores there: read those without sinks"
    ]


def _blocks(indices: Sequence[int]) -> str:
    """Blocks by index, runs of them as ranges: "blocks 2, 5-9"."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    named = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"block{'s' * (len(indices) > 1)} {named}"
