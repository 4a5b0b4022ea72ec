"""What came of a training: the schemas of ``training.json`` and ``finetuning.json``."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import Axis, Chart, Curves, Line
from rectilinear.command_lines import command_line, model_word, text_word
from rectilinear.measurement.profile import LinearityRecord, Profile
from rectilinear.names import short_name
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.tables import Cell, Column, Estimate, Table
from rectilinear.training.metrics import MetricRecord
from rectilinear.training.settings import Corpus, Profiling, Recipe, Tuning


class HeldOutRecord(Record):
    """Loss on rows that were not trained on, without the penalty."""

    data: DataRecord
    loss: float = Field(description="nats per predicted token")
    stderr: float | None = Field(description="of the loss, over documents where BOS begins these, else over rows")
    perplexity: float


class Training(ResultFile):
    """A pretraining and what came of it."""

    file_name: ClassVar[str] = "training.json"
    heading: ClassVar[str] = "How a pretraining went"

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
    warnings: tuple[str, ...] = Field(default=(), description="of the profiles of held-out rows; none in older files")

    def headline(self) -> str:
        """The loss on held-out rows."""
        return f"Loss {self.held_out.loss:.4f} nats a token on held-out rows after {self.steps:,} steps."

    def command(self) -> str:
        """``rectilinear pretrain``, of as many processes as there were."""
        values = dict(self.settings)
        if values.get("tokenizer") is not None:
            del values["vocab_size"]
        arguments = ["--text", text_word(self.data)]
        line = command_line("pretrain", arguments, values, Recipe, Corpus, folder=True)
        if self.processes > 1 and line:
            return f"torchrun --nproc-per-node {self.processes} -m {line}"
        return line

    def charts(self) -> tuple[Chart, ...]:
        """The losses that were logged."""
        names = [name for name in ("loss", "eval_loss") if any(name in entry for entry in self.log)]
        if not names:
            return ()
        looks = {"loss": ("training", "grey"), "eval_loss": ("held out", "blue")}
        lines = []
        for name in names:
            entries = [entry for entry in self.log if name in entry and "step" in entry]
            label, color = looks[name]
            steps = [entry["step"] for entry in entries]
            lines.append(Line.of(label, steps, [entry[name] for entry in entries], color=color))
        panel = Curves("Loss over training", Axis("step"), Axis("nats a token"), tuple(lines))
        return (Chart("loss", f"{self.model.parameters:,} parameters, {short_name(self.data.source)}", (panel,)),)

    def tables(self) -> tuple[Table, ...]:
        """One line: how long it was trained, and the loss on held-out rows."""
        held_out = self.held_out
        columns = ("steps", ","), ("tokens", ","), ("tokens/s", ",.0f"), ("loss", ".4f"), ("perplexity", ".2f")
        loss = Estimate(held_out.loss, held_out.stderr)
        row = self.steps, self.data.tokens, self.tokens_per_second, loss, held_out.perplexity
        title = f"{self.model.parameters:,} parameters trained on {short_name(self.data.source)}"
        caption = f"loss in nats per token, on {held_out.data.tokens:,} held-out tokens"
        return (Table.of([Column(*column) for column in columns], [row], title=title, caption=caption),)


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

    sha256: str | None = Field(description="of the weights; null where they cannot be hashed")
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
    heading: ClassVar[str] = "What fine-tuning did to linearity"

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

    def headline(self) -> str:
        """The change of the update's score."""
        change = self.summary.update_linearity.in_sample
        if change.mean is None:
            return ""
        spread = "" if change.deviation is None else f" (deviation {change.deviation:.4f} over {change.n} seeds)"
        return f"{self.task}: the mean over blocks of the update's score changed by {change.mean:+.4f}{spread}."

    def command(self) -> str:
        """``rectilinear finetune``."""
        values = {**self.settings, "revision": self.model.revision, "seeds": len(self.runs)}
        return command_line("finetune", [model_word(self.model), "--task", self.task], values, Tuning, Profiling)

    def with_runs(self, runs: Sequence[SeedRun]) -> Finetuning:
        """The same with these runs, and what they have in common."""
        return self.model_copy(update={"runs": tuple(runs), "summary": summarize(runs)})

    def tables(self) -> tuple[Table, ...]:
        """One line, like the paper's Table 1: the change of the update linearity, and the metrics."""
        change, data, seeds = self.summary.update_linearity, self.data, len(self.runs)
        columns = [Column("task"), Column("change of update\nlinearity in sample", "+.4f"), Column("held out", "+.4f")]
        cells: list[Cell] = [self.task, _estimate(change.in_sample), _estimate(change.held_out)]
        for name, spread in self.summary.metrics.items():
            columns += [Column(name.replace("_", " "), ".4f"), Column("constant\nanswer", ".4f")]
            cells += [_estimate(spread), self.runs[0].metrics[name].baseline]
        before = self.before.update_linearity.model_dump().items()
        levels = ", ".join(f"{value:.4f} {name.replace('_', ' ')}" for name, value in before if value is not None)
        spread_over = f"±: standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no deviation"
        title = (
            f"{short_name(self.model.id)}: trained on {data.train:,} questions of {short_name(data.source)}, "
            f"{data.validation:,} asked; "
            f"linearity on {self.text.tokens:,} tokens of {short_name(self.text.source)}"
        )
        caption = f"means over blocks, after minus before ({levels or 'no score'}); {spread_over}"
        return (Table.of(columns, [cells], title=title, caption=caption),)

    def all_warnings(self) -> tuple[str, ...]:
        """Those of the fine-tuning, and of the profiles before and after, each once."""
        profiles = (self.before, *(run.after for run in self.runs))
        return tuple(dict.fromkeys([*self.warnings, *(text for profile in profiles for text in profile.warnings)]))


def _estimate(spread: Spread) -> Estimate | None:
    return None if spread.mean is None else Estimate(spread.mean, spread.deviation)


def linearities_of(profile: Profile) -> Linearities:
    """What a profile says of the blocks."""
    return Linearities(
        sha256=profile.model.sha256,
        linearity=_means([block.linearity for block in profile.blocks]),
        update_linearity=_means([block.update_linearity for block in profile.blocks]),
        blocks=tuple(
            BlockLinearity(index=block.index, linearity=block.linearity, update_linearity=block.update_linearity)
            for block in profile.blocks
        ),
        warnings=profile.warnings,
    )


def change_of(before: Linearities, after: Linearities) -> Change:
    """After minus before."""
    earlier = {block.index: block for block in before.blocks}
    pairs = [(earlier[block.index], block) for block in after.blocks if block.index in earlier]
    return Change(
        linearity=_means([_change(one.linearity, two.linearity) for one, two in pairs]),
        update_linearity=_means([_change(one.update_linearity, two.update_linearity) for one, two in pairs]),
    )


def summarize(runs: Sequence[SeedRun]) -> Summary:
    """Means and deviations over seeds."""
    return Summary(
        linearity=_spreads([run.change.linearity for run in runs]),
        update_linearity=_spreads([run.change.update_linearity for run in runs]),
        metrics={name: _spread(run.metrics[name].value for run in runs) for name in (runs[0].metrics if runs else ())},
    )


def _spreads(scores: Sequence[LinearityRecord | Scores]) -> Spreads:
    return Spreads(**{name: _spread(getattr(score, name) for score in scores) for name in Spreads.model_fields})


def _means(scores: Sequence[LinearityRecord | Scores]) -> Scores:
    spreads = _spreads(scores)
    return Scores(in_sample=spreads.in_sample.mean, held_out=spreads.held_out.mean)


def _change(before: LinearityRecord, after: LinearityRecord) -> Scores:
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Scores.model_fields}
    return Scores(**{name: None if None in pair else pair[1] - pair[0] for name, pair in pairs.items()})


def _spread(values: Iterable[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if known else None
    return Spread(mean=mean, deviation=statistics.stdev(known) if len(known) > 1 else None, n=len(known))
