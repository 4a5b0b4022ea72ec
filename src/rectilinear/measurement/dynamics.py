"""How linearity changes over training: profiles of a series of checkpoints, and the schema of ``dynamics.json``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from rectilinear.charts import Chart
from rectilinear.command_lines import command_line, text_word
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.block_means import Mean, mean_of
from rectilinear.measurement.inputs import Inputs, read_inputs
from rectilinear.measurement.measure import profile_model
from rectilinear.measurement.profile import BlockRecord, Profile, Score
from rectilinear.measurement.score_choice import ScoreChoice, in_percent
from rectilinear.measurement.settings import Measurement
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory
from rectilinear.models.series import Checkpoint, check_alike, find_checkpoints
from rectilinear.models.settings import Loading, Placement
from rectilinear.names import short_name
from rectilinear.progress import Progress, reporting
from rectilinear.ranks import in_step
from rectilinear.results import DataRecord, EnvironmentRecord, Record, ResultFile, Section
from rectilinear.settings import BatchSize, takes_settings
from rectilinear.tables import Column, Table
from rectilinear.text.batches import as_batches
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedTokenizerBase


class TrainedModelRecord(Record):
    """Which model was trained; its weights differ from point to point."""

    id: str
    architecture: str
    num_blocks: int
    width: int
    parameters: int


class Point(Record):
    """The scores of the model at one step of its training."""

    step: int = Field(ge=0, description="optimizer steps")
    source: str = Field(description="the checkpoint; 'training' for a model that was being trained")
    revision: str | None
    sha256: str | None = Field(description="of the weights as loaded; null where they were not hashed")
    blocks: tuple[BlockRecord, ...]
    warnings: tuple[str, ...]


class Dynamics(ResultFile):
    """How linear each block of a model is on some text, at some steps of its training."""

    file_name: ClassVar[str] = "dynamics.json"
    heading: ClassVar[str] = "How linearity changed over training"

    schema_: Literal["rectilinear.dynamics/1"] = Field(default="rectilinear.dynamics/1", alias="schema")
    model: TrainedModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    points: tuple[Point, ...] = Field(description="by step, one a step")
    warnings: tuple[str, ...]

    def charts(self) -> tuple[Chart, ...]:
        """Each block's score at each step, and the means over blocks."""
        from rectilinear.measurement.dynamics_charts import dynamics_chart

        return (dynamics_chart(self),)

    def command(self) -> str:
        """``rectilinear dynamics``; "" where a model was measured while it was trained."""
        sources = [None if point.source == "training" else point.source for point in self.points]
        values = {**self.settings, "seq_len": self.data.seq_len, "dtype": self.environment.dtype}
        return command_line(
            "dynamics", [*sources, "--text", text_word(self.data)], values, Rows, Measurement, Placement
        )

    def headline(self) -> str:
        """From what to what the mean went."""
        means = [point for point in mean_curve(self) if point.mean is not None]
        if len(means) < 2:
            return ""
        first, last = means[0], means[-1]
        return (
            "Averaged over blocks, what linear maps explain of updates went from "
            f"{in_percent(first.mean or 0.0)} at step {first.step:,} to {in_percent(last.mean or 0.0)} at step "
            f"{last.step:,}."
        )

    def words(self) -> tuple[str, ...]:
        """How far the mean went, and whether that is beyond doubt."""
        from rectilinear.measurement.dynamics_charts import dynamics_words

        return tuple(dynamics_words(self))

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section:
        """The means of several trainings over one another."""
        from rectilinear.measurement.dynamics_charts import several_dynamics_chart, several_dynamics_headline

        title, charts = f"{cls.heading}, models beside one another", (several_dynamics_chart(results),)
        return Section(title, several_dynamics_headline(results), charts=charts)

    def tables(self) -> tuple[Table, ...]:
        """One line a step: the means over blocks, their errors and spread, the least and the most linear block."""
        steps = f"{len(self.points)} step{'s' * (len(self.points) != 1)}"
        how = "held out where rows were, ±: at most the standard error over parts of the text"
        if ScoreChoice.of(self).few:
            how = "adjusted for the number of tokens"
        spread, curves = (Column("least"), Column("most")), (mean_curve(self), mean_curve(self, "linearity"))
        table = Table.of(
            [Column("step", ","), Column("update linearity", ".4f"), *spread, Column("linearity", ".4f"), *spread],
            [[update.step, *update.cells(), *output.cells()] for update, output in zip(*curves, strict=True)],
            title=f"{short_name(self.model.id)}: {self.model.num_blocks} blocks of width {self.model.width} at "
            f"{steps}, {self.data.tokens:,} tokens of {short_name(self.data.source)}",
            caption=f"means over blocks, {how}; least and most: (block) and its score",
        )
        return (table,)

    def all_warnings(self) -> tuple[str, ...]:
        """The warnings of the series, and those of its points, each once and with the steps that it is of."""
        steps: dict[str, list[int]] = {}
        for point in self.points:
            for warning in point.warnings:
                steps.setdefault(warning, []).append(point.step)
        everywhere = len(self.points)
        return self.warnings + tuple(
            warning if len(where) == everywhere else f"step {', '.join(map(str, where))}: {warning}"
            for warning, where in steps.items()
        )

    @field_validator("points")
    @classmethod
    def _by_step(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        if any(one.step >= two.step for one, two in pairwise(points)):
            raise ValueError("expected points by step, one a step")
        return points


def mean_curve(dynamics: Dynamics, score: Score = "update_linearity") -> list[Mean]:
    """The mean of a score over blocks at each step, with its spread."""
    choice = ScoreChoice.of(dynamics)
    return [
        mean_of({block.index: getattr(block, score) for block in point.blocks}, choice, point.step)
        for point in dynamics.points
    ]


def merge_points(older: Iterable[Point], newer: Iterable[Point]) -> tuple[Point, ...]:
    """All points by step; of two at one step the newer."""
    by_step = {point.step: point for points in (older, newer) for point in points}
    return tuple(by_step[step] for step in sorted(by_step))


@takes_settings
@in_step
@reporting_exhausted_memory()
def dynamics(
    checkpoints: str | Path | Sequence[str | Path],
    text: Any,
    measurement: Measurement = Measurement(),
    *,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | Progress = True,
) -> Dynamics:
    """Profile a series of checkpoints of one model on the same rows of text, as `measure` does each of them.

    One model is in memory at a time.

    Args:
        checkpoints: folders, Hub ids or ``ID@REVISION``, in any order. A folder that holds ``checkpoint-N`` folders,
            as transformers' Trainer makes them, stands for these, and for its own model where that is
            of another step. Steps come from ``trainer_state.json``, else from names
            (``checkpoint-500``, ``step1000``); where one has neither they are places in the series.
        text, measurement, rows, loading, batch_size, progress: as for `measure`.
        tokenizer: for text; default: each checkpoint's own, which must make the same rows.

    Raises:
        RequestError: the request cannot be met, before any weights are loaded: as for `measure`, and checkpoints that
            differ in architecture, number or width of blocks, parameters or rows of text, or two of one step.
        JobError: as for `measure`.
    """
    check_batch_size(batch_size)
    measurement.check_one_target("dynamics")
    with reporting(progress) as report:
        report("reading the text", 0, 0)
        series, warnings = find_checkpoints(checkpoints, loading)
        anatomy = check_alike(series, measurement.blocks)
        inputs = _same_inputs(series, text, rows, tokenizer)
        profiles = []
        for done, checkpoint in enumerate(series):
            report("checkpoints", done, len(series))
            try:
                profiles.append(profile_model(checkpoint.origin, inputs, measurement, batch_size, report))
            except JobError as error:
                raise JobError(f"{checkpoint.source}: {error}") from error
        report("checkpoints", len(series), len(series))
    last = profiles[-1]
    return Dynamics(
        model=TrainedModelRecord(**anatomy._asdict() | {"id": _name(checkpoints), "width": last.model.width}),
        data=last.data,
        settings=last.settings,
        environment=last.environment,
        points=tuple(map(_point, series, profiles)),
        warnings=(*warnings, *_about_precisions(profiles)),
    )


def _about_precisions(profiles: Sequence[Profile]) -> list[str]:
    precisions = {profile.environment.dtype: profile.model.id for profile in profiles}
    if len(precisions) < 2:
        return []
    found = ", ".join(f"{dtype} ({name})" for dtype, name in precisions.items())
    return [f"checkpoints are in different precisions: {found}; try `dtype=float32` to compare them"]


def _same_inputs(
    series: Sequence[Checkpoint], text: Any, rows: Rows, tokenizer: PreTrainedTokenizerBase | None
) -> Inputs:
    """The inputs that every checkpoint takes, and makes of the text with its own tokenizer."""
    tokens = as_batches(text)  # once: it may be an iterator
    given, (first, *others) = text if tokens is None else tokens, series
    inputs = read_inputs(first.origin, given, rows, tokenizer)
    for other in others:
        if read_inputs(other.origin, given, rows, tokenizer).fingerprint != inputs.fingerprint:
            raise RequestError(
                f"expected tokenizers that make the same rows of the text, got different rows of {first.source} and "
                f"{other.source}; try `tokenizer` with the one they were trained with"
            )
    return inputs


def _point(checkpoint: Checkpoint, profile: Profile) -> Point:
    return Point(
        step=checkpoint.step or 0,
        source=checkpoint.source,
        revision=profile.model.revision,
        sha256=profile.model.sha256,
        blocks=profile.blocks,
        warnings=profile.warnings,
    )


def _name(checkpoints: str | Path | Sequence[str | Path]) -> str:
    """What was asked for, or the folder that all of it is in, or its first; without a revision."""
    names = [str(checkpoints)] if isinstance(checkpoints, (str, Path)) else [str(each) for each in checkpoints]
    folders = [Path(name).expanduser() for name in names]
    if len(names) > 1 and all(folder.is_dir() for folder in folders):
        return os.path.commonpath([folder.absolute() for folder in folders])
    return names[0] if folders[0].is_dir() else names[0].partition("@")[0]
