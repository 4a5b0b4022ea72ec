"""What came of a fine-tuning: the schema of ``finetuning.json``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.measurement.profile import LinearityRecord, Profile
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.training.metrics import MetricRecord


class TaskDataRecord(Record):
    """Which questions were trained on, and asked."""

    source: str
    fingerprint: str = Field(description="SHA-256 of the tokens and answers of both parts")
    train: int = Field(description="questions to train on")
    validation: int = Field(description="questions asked")
    cut: int = Field(description="texts of both that were longer than seq_len and lost their beginning")


class Scores(Record):
    """A score in sample, as the paper has it, and held out; null where there is none."""

    in_sample: float | None
    held_out: float | None


class BlockLinearity(Record):
    """The scores of one block; as in a profile."""

    index: int
    linearity: LinearityRecord
    update_linearity: LinearityRecord


class Linearities(Record):
    """How linear the blocks are at one time, and their means over blocks."""

    sha256: str | None = Field(description="of the weights")
    linearity: Scores
    update_linearity: Scores
    blocks: tuple[BlockLinearity, ...]
    warnings: tuple[str, ...]


class Change(Record):
    """Means over blocks after training minus those before, over blocks that have the score both times."""

    linearity: Scores
    update_linearity: Scores


class SeedRun(Record):
    """The training with one seed."""

    seed: int
    steps: int
    seconds: float
    metrics: dict[str, MetricRecord]
    after: Linearities
    change: Change
    log: tuple[dict[str, float], ...] = Field(description="what Trainer logged, with the step of each entry")


class Spread(Record):
    """A number over seeds."""

    mean: float | None
    deviation: float | None = Field(description="standard deviation over seeds (n - 1 below); null for one seed")
    n: int


class Spreads(Record):
    """A score in sample and held out, over seeds."""

    in_sample: Spread
    held_out: Spread


class Summary(Record):
    """All seeds together."""

    linearity: Spreads = Field(description="changes of the mean over blocks")
    update_linearity: Spreads = Field(description="changes of the mean over blocks; in sample the paper's Table 1")
    metrics: dict[str, Spread]


class Finetuning(ResultFile):
    """A model fine-tuned on a task with some seeds, how well it does, and how its linearity changed."""

    file_name: ClassVar[str] = "finetuning.json"

    schema_: Literal["rectilinear.finetuning/1"] = Field(default="rectilinear.finetuning/1", alias="schema")
    model: ModelRecord = Field(description="before training")
    task: str
    data: TaskDataRecord
    text: DataRecord = Field(description="rows on which linearity is measured, before and after")
    settings: dict[str, Any]
    environment: EnvironmentRecord
    before: Linearities
    runs: tuple[SeedRun, ...] = Field(description="by seed")
    summary: Summary
    warnings: tuple[str, ...]


def linearities_of(profile: Profile) -> Linearities:
    """What a profile says of the blocks."""
    blocks = tuple(
        BlockLinearity(index=block.index, linearity=block.linearity, update_linearity=block.update_linearity)
        for block in profile.blocks
    )
    return Linearities(
        sha256=profile.model.sha256,
        linearity=_means([block.linearity for block in blocks]),
        update_linearity=_means([block.update_linearity for block in blocks]),
        blocks=blocks,
        warnings=profile.warnings,
    )


def change_of(before: Linearities, after: Linearities) -> Change:
    """After minus before."""
    earlier = {block.index: block for block in before.blocks}
    pairs = [(earlier[block.index], block) for block in after.blocks if block.index in earlier]
    return Change(
        linearity=_changes([(one.linearity, two.linearity) for one, two in pairs]),
        update_linearity=_changes([(one.update_linearity, two.update_linearity) for one, two in pairs]),
    )


def summarize(runs: Sequence[SeedRun]) -> Summary:
    """Means and deviations over seeds."""
    return Summary(
        linearity=_spreads([run.change.linearity for run in runs]),
        update_linearity=_spreads([run.change.update_linearity for run in runs]),
        metrics={name: _spread(run.metrics[name].value for run in runs) for name in (runs[0].metrics if runs else ())},
    )


def _means(records: Sequence[LinearityRecord]) -> Scores:
    return Scores(
        in_sample=_mean(record.in_sample for record in records), held_out=_mean(record.held_out for record in records)
    )


def _changes(pairs: Sequence[tuple[LinearityRecord, LinearityRecord]]) -> Scores:
    return Scores(
        in_sample=_mean(_difference(one.in_sample, two.in_sample) for one, two in pairs),
        held_out=_mean(_difference(one.held_out, two.held_out) for one, two in pairs),
    )


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _spreads(scores: Sequence[Scores]) -> Spreads:
    return Spreads(
        in_sample=_spread(score.in_sample for score in scores), held_out=_spread(score.held_out for score in scores)
    )


def _spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(mean=_mean(known), deviation=statistics.stdev(known) if len(known) > 1 else None, n=len(known))
