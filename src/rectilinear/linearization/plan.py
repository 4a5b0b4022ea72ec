"""What is replaced by what: the schema of ``plan.json``, which can be read, edited and fed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from rectilinear.charts import Chart
from rectilinear.command_lines import command_line, loaded_as, model_word, text_word
from rectilinear.linearization.budget import Budget, percent
from rectilinear.linearization.kinds import KINDS
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.sweep import SweepRecord, sweep_chart, sweep_table
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.models.settings import Loading
from rectilinear.names import short_name
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.tables import Column, Table


class ParametersRecord(Record):
    """Parameters of the model."""

    before: int
    after: int


class CostRecord(Record):
    """What a replacement costs where it is the only one."""

    replacement: Replacement
    divergence: float = Field(description="mean KL of the original's predictions from those with it, nats a token")
    parameters: int = Field(description="how many more, or fewer, the model has with it")
    cache: int = Field(description="bytes that the cache takes more, or less, after `budget_tokens`")
    decoding: float | None = Field(
        default=None,
        description="how much longer a token takes to decode after these, as a share of the original's time; null "
        "where that was not timed",
    )


class SelectionRecord(Record):
    """How the blocks were chosen, and the loss before and after the fit on other rows, in nats per token."""

    select: str
    budget: str | None = None
    scores: dict[str, float] = Field(default_factory=dict, description="by block: what they were ordered by")
    costs: tuple[CostRecord, ...] = Field(default=(), description="of all that was chosen from")
    budget_tokens: int | None = Field(
        default=None, description="tokens of a text after which the cache is counted and decoding timed"
    )
    cache_bytes: int | None = Field(default=None, description="of the original after these; null where it has no cache")
    cache_bytes_after: int | None = Field(default=None, description="the same with all that was chosen")
    decoding_seconds: tuple[float, float] | None = Field(
        default=None, description="of a token after these, the original's and with all that was chosen; null: not timed"
    )
    losses: tuple[float, ...] = Field(default=(), description="of the choices that were fitted, in turn; nats a token")
    sweep: tuple[SweepRecord, ...] = Field(default=(), description="what choices within several budgets keep and lose")
    unmet: dict[str, str] = Field(default_factory=dict, description="why no choice was compared within a budget")
    left_out: dict[str, str] = Field(default_factory=dict, description="why replacements were not considered")
    loss_before: float | None = None
    loss_after: float | None = None
    tokens: int = 0

    def warnings(self, replacements: Sequence[Replacement]) -> list[str]:
        """What was not considered, what a budget has made larger, and what turned out slower, in sentences."""
        found = [f"{what} was not considered: {why}" for what, why in self.left_out.items()]
        found += [f"no choice within {budget} was compared: {why}" for budget, why in self.unmet.items()]
        fits = [one.fit for one in replacements if one.fit] if self.costs else []
        more = sum(fit.parameters_after - fit.parameters_before for fit in fits)
        if more > 0:
            hint = f"try `budget={self.budget},parameters=100%`"
            found.append(f"the model has {more:,} parameters more than the original, which the budget allows; {hint}")
        most = Budget.parse(self.budget).decoding if self.decoding_seconds else None
        if self.decoding_seconds and most and (took := self.decoding_seconds[1] / self.decoding_seconds[0]) > most:
            found.append(
                f"decoding a token takes {took:.1%} of the original's time, above the budget, which what each "
                f"replacement saves alone was within; try a machine that does nothing else, or below {percent(most)}"
            )
        return found

    def spent(self, replacements: Sequence[Replacement]) -> list[str]:
        """What some replacements cost and save together, where that was measured, in sentences."""
        of_these = {one.unfitted() for one in replacements}
        spent = [cost for cost in self.costs if cost.replacement.unfitted() in of_these]
        if not spent:
            return []
        moved = sum(cost.divergence for cost in spent)
        found = [f"each alone, they move predictions by {moved:.4f} nats per token in all"]
        if (before := self.cache_bytes) and (after := self.cache_bytes_after) is not None:
            share = f"{after / before - 1:+.1%}"
            found.append(f"cache after {self.budget_tokens:,} tokens {before:,} -> {after:,} bytes ({share})")
        if self.decoding_seconds:
            first, then = (1000 * seconds for seconds in self.decoding_seconds)
            share, others = f"{then / first - 1:+.1%}", (self.budget_tokens or 1) - 1
            found.append(f"decoding a token after {others:,} others {first:.3g} -> {then:.3g} ms ({share})")
        return found


class HealRecord(Record):
    """How the stand-ins were trained after they had been fitted, and what that was good for on held-out rows."""

    steps: int
    learning_rate: float
    batch_size: int
    logits_weight: float
    seed: int
    mse_before: float | None = Field(description="squared error of hidden states, a share of their variance")
    mse_after: float | None
    loss_before: float | None = Field(description="nats per token")
    loss_after: float | None

    def __str__(self) -> str:
        text = f"Healed in {self.steps:,} step{'s' * (self.steps > 1)}"
        if None in (self.mse_before, self.mse_after, self.loss_before, self.loss_after):
            return text
        return (
            f"{text}: relative error of hidden states {self.mse_before:.4g} -> {self.mse_after:.4g}, loss "
            f"{self.loss_before:.4f} -> {self.loss_after:.4f} nats per token on held-out rows"
        )


class Plan(ResultFile):
    """Which replacements to make in which model, and how those that were made turned out."""

    file_name: ClassVar[str] = "plan.json"
    heading: ClassVar[str] = "What was replaced"

    schema_: Literal["rectilinear.plan/1"] = Field(default="rectilinear.plan/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any] = Field(default_factory=dict)
    environment: EnvironmentRecord | None = None
    selection: SelectionRecord | None = None
    replacements: tuple[Replacement, ...]
    parameters: ParametersRecord | None = None
    heal: HealRecord | None = None
    warnings: tuple[str, ...] = ()

    @property
    def removed(self) -> tuple[int, ...]:
        """Blocks that are gone for good."""
        return tuple(sorted(index for replacement in self.replacements for index in replacement.removed))

    def command(self) -> str:
        """``rectilinear linearize``; "" where replacements were those of a plan."""
        from rectilinear.linearization.settings import CalibrationRows, Fitting, Selection

        named = str(self.settings.get("kind"))
        kinds = [KINDS[named]] if named in KINDS else []
        if not (kinds or self.settings.get("choices")) or self.environment is None:
            return ""
        healing: dict[str, Any] = {}
        if healed := self.heal:
            healing = {
                "heal_steps": healed.steps,
                "heal_learning_rate": healed.learning_rate,
                "heal_batch_size": healed.batch_size,
                "heal_logits": healed.logits_weight,
            }
        arguments = [model_word(self.model), "--text", text_word(self.data), *(["--kind", named] if kinds else [])]
        values = {**self.settings, **loaded_as(self.model, self.environment), "seq_len": self.data.seq_len, **healing}
        if kinds and values.get("target") == "block":  # as usual
            del values["target"]
        options: tuple[type[BaseModel], ...] = (*kinds, Selection, Fitting, CalibrationRows, Loading)
        return command_line("linearize", arguments, values, *options, folder=True)

    def words(self) -> tuple[str, ...]:
        """What was replaced by what."""
        if not self.replacements:
            return ("Nothing was replaced.",)
        targets = {"block": "Blocks", "attention": "The attentions of blocks", "mlp": "The MLPs of blocks"}
        parts = [
            f"{targets[target]} {', '.join(one.where for one in self.replacements if one.target == target)}"
            for target in targets
            if any(one.target == target for one in self.replacements)
        ]
        kinds = " and ".join(sorted({replacement.kind for replacement in self.replacements}))
        fitted = [one for one in self.replacements if one.fit and one.fit.features]
        how = f", fitted by least squares to {self.data.tokens:,} tokens" if fitted else ""
        how += ", then trained" if self.heal else ""
        return (f"What was replaced. {'; '.join(parts)}, by stand-ins of kind {kinds}{how}.",)

    def headline(self) -> str:
        """How many replacements there are, and what that saves."""
        if not self.replacements:
            return "Nothing was replaced."
        saved = ""
        if self.parameters:
            before, after = self.parameters.before, self.parameters.after
            saved = f", {before:,} to {after:,} parameters ({100 * (after / before - 1):+.1f} %)"
        return f"{len(self.replacements)} replacement{'s' * (len(self.replacements) > 1)}{saved}."

    def tables(self) -> tuple[Table, ...]:
        """A line for each replacement: what it is, what it weighs, how much of its target it explains."""
        columns = ("blocks", "target", "by", "parameters", Column("ridge", "g"), Column("held out", ".4f"))
        rows = [
            (one.where, one.target, str(one.by), *([fit.parameters, fit.ridge, fit.held_out] if fit else [None] * 3))
            for one in self.replacements
            for fit in [one.fit]
        ]
        lines = ["held out: share of the target's energy that maps of the other folds explain"]
        if self.parameters:
            before, after = self.parameters.before, self.parameters.after
            lines.append(f"parameters {before:,} -> {after:,} ({after / before - 1:+.1%})")
        if (chosen := self.selection) and chosen.loss_before is not None and chosen.loss_after is not None:
            lines.append(
                f"loss {chosen.loss_before:.4f} -> {chosen.loss_after:.4f} nats per token on {chosen.tokens:,} tokens "
                "that nothing was fitted on"
            )
        lines += chosen.spent(self.replacements) if chosen else []
        lines += [str(self.heal)] * (self.heal is not None)
        title = f"{short_name(self.model.id)}: what was replaced, fitted on {short_name(self.data.source)}"
        table = Table.of(columns, rows, title=title, caption="\n".join(lines))
        if not (chosen and chosen.sweep):
            return (table,)
        caption = [f"cache bytes: after {chosen.budget_tokens:,} tokens"] * (chosen.cache_bytes is not None)
        if chosen.sweep[0].quantity == "decoding":
            caption.append("decoding: of the original's time, by what each replacement saves alone")
        caption += ["alone: sum of the divergences of each replacement by itself", "*: what was replaced"]
        if chosen.sweep[0].increase is not None:
            caption.append(f"loss: {self._of_the_sweep}; ± is the standard error over rows")
        original = (self.model.parameters, chosen.cache_bytes)
        return table, sweep_table(chosen.sweep, self._about_sweep, original, "\n".join(caption))

    def charts(self) -> tuple[Chart, ...]:
        """What other budgets would lose, where they were compared."""
        if not ((chosen := self.selection) and chosen.sweep):
            return ()
        losses = f"{self._of_the_sweep}, with a 95 % interval over rows"
        caption = f"The best of the choices that were fitted, within some budgets: {losses}."
        chart = sweep_chart(chosen.sweep, self._about_sweep, caption)
        return (chart,) if chart else ()

    @property
    def _about_sweep(self) -> str:
        return f"{short_name(self.model.id)}: choices within some budgets"

    @property
    def _of_the_sweep(self) -> str:
        """What losses of other budgets are."""
        tokens = self.selection.tokens if self.selection else 0
        healed = ", before healing" * (self.heal is not None)
        return f"increase in nats a token on {tokens:,} tokens that nothing was fitted on{healed}"


def find_warnings(replacements: Sequence[Replacement], folds: int, width: int) -> list[str]:
    """What a reader of these fits must know, each with what to do about it."""
    fits = [(f"{one.target} {one.where}", one.fit) for one in replacements if one.fit and one.fit.features]
    found = []
    if scarce := [(name, fit) for name, fit in fits if fit.tokens < TOKENS_A_FEATURE * fit.features]:
        names = ", ".join(name for name, _ in scarce)
        tokens, features = scarce[0][1].tokens, max(fit.features for _, fit in scarce)
        found.append(
            f"few tokens: {tokens:,} for up to {features:,} features ({names}), so that maps may hold less well "
            f"on other text; {TOKENS_A_FEATURE} a feature would do: {TOKENS_A_FEATURE * features:,} to fit on, "
            "nine tenths of `max_tokens`"
        )
    if fits and folds < 2:
        found.append(
            "a single fold: none is held out to choose a ridge by, so that there is none (plain least squares), and no "
            "held-out share; try more `folds`, of at least a row each"
        )
    gone = [(f"{one.target} {one.where}", one.fit) for one in replacements if not one.by.keeps_weights]
    if grown := [
        (name, fit) for name, fit in gone if fit and fit.features and fit.parameters_after > fit.parameters_before
    ]:
        each = ", ".join(f"{fit.parameters} ({name})" for name, fit in grown)
        rank = min((fit.parameters_before - width) // (fit.features + width) for _, fit in grown)
        hint = f"`rank={rank}` or less" if rank > 0 else "`kind=affine`"
        found.append(f"larger than what they replace: parameters {each}; {hint} would not be")
    return found
