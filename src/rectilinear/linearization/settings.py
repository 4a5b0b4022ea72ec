"""Which parts of a model are replaced, and how what replaces them is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import BeforeValidator, Field, NonNegativeInt, PlainSerializer, PositiveInt, model_validator

from rectilinear.linearization.budget import Budget, Sweep, percent
from rectilinear.linearization.kinds import parse_kinds
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.plan import Plan
from rectilinear.models.settings import Named
from rectilinear.settings import ONE_WORD, Indices, NonNegative, Positive, Settings, Target
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from typing import Self

#: ``score``: most linear first (arXiv 2405.12250). ``influence``: least change of direction first
#: (ShortGPT, 2403.03853). ``divergence``: what moves predictions least first. ``loss``: least loss first, measured anew
#: after each (SLEB, 2402.09025).
Select = Literal["score", "influence", "divergence", "loss"]

#: Tokens of a text after which a budget counts the cache and times decoding, where that is not said.
BUDGET_TOKENS = 2048

# How many choices among several kinds are fitted, where that is not said: costs add up to more than their sum, and what
# that is differs most between kinds.
_TRIALS = 4

#: The ways to say which blocks are replaced.
WAYS = ("blocks", "count", "budget", "max_loss_increase", "plan")


def _read_plan(value: Any) -> Any:
    return Plan.load(value) if isinstance(value, (str, Path)) else value


class CalibrationRows(Rows):
    """The rows that replacements are fitted on; the last tenth of them is not, and scores what was fitted."""

    max_tokens: PositiveInt = Field(300_000, description=Rows.model_fields["max_tokens"].description)
    seq_len: int = Field(256, ge=4, description=Rows.model_fields["seq_len"].description)


class Selection(Named):
    """What is replaced: a part of some blocks, which are named, chosen in some order, or those of a plan."""

    target: Target | None = None
    """What of a block is replaced: all of it when not given, and with `choices` whatever costs least."""
    blocks: Annotated[Indices | None, ONE_WORD, Parameter(metavar="2-4,7")] = None
    """Blocks to replace, counted from 0, such as 2-4,7."""
    count: int | None = None
    """Number of blocks to replace."""
    budget: Annotated[
        Budget | None,
        BeforeValidator(Budget.parse),
        PlainSerializer(lambda budget: budget and budget.settings()),
        ONE_WORD,
        Parameter(metavar="SHARE"),
    ] = None
    """Share of the model's parameters to save at least, such as 25%; or what is kept at most, such as
    parameters=80%,cache=25%,decoding=70%, the last of the time to decode a token."""
    budget_tokens: PositiveInt | None = None
    """Tokens of a text after which a budget counts the cache and times decoding; 2,048 when not given, or the model's
    context."""
    max_loss_increase: Positive | None = None
    """Replace blocks until the loss on held-out rows would rise by more than this, in nats per token."""
    plan: Annotated[Plan | None, BeforeValidator(_read_plan), ONE_WORD, Parameter(metavar="PATH")] = None
    """A plan.json of this model, perhaps edited: replace what it says."""
    choices: Annotated[
        tuple[Kind, ...] | None,
        BeforeValidator(parse_kinds),
        PlainSerializer(lambda kinds: kinds and [kind.spelled() for kind in kinds]),
        ONE_WORD,
        Parameter(metavar="KIND:OPTION=VALUE,..."),
    ] = None
    """Kinds to choose from for each attention, MLP and block, such as bounded:window=16,affine,drop: those that move
    predictions least together within `budget`."""
    sweep: Annotated[
        Sweep | None,
        BeforeValidator(Sweep.parse),
        PlainSerializer(lambda sweep: sweep and str(sweep)),
        ONE_WORD,
        Parameter(metavar="QUANTITY=SHARES"),
    ] = None
    """Shares to compare with that of `budget`, such as parameters=90%,75%,60%: what the best choice within each
    keeps and loses."""
    span: PositiveInt = 1
    """Most consecutive blocks that one stand-in takes the place of, among `choices`."""
    trials: PositiveInt | None = None
    """How many of the cheapest choices by these costs are fitted, to take the one with the least loss on held-out
    rows; 4 when not given, or 1 of a single kind."""
    swaps: NonNegativeInt = 0
    """How many choices near the best one are fitted at most, until none has less loss."""
    rounds: PositiveInt = 1
    """How often costs are measured: at first with each replacement alone, then among those of the best choice so
    far."""
    select: Select = "score"
    """Which blocks first: most linear, least change of direction, least divergence of predictions with that one
    replaced, or least loss, measured each time."""
    merge: bool = False
    """Replace consecutive blocks by one stand-in."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [f"`{way}`" for way in WAYS if getattr(self, way) is not None]
        if len(given) > 1:
            raise ValueError(f"expected one of {', '.join(f'`{way}`' for way in WAYS)}, got {' and '.join(given)}")
        if self.plan is not None:
            self.refuse_unused("with `plan`", "target", "select", "merge")
        if self.blocks is not None:
            self.refuse_unused("with `blocks`", "select")
        if self.budget is None or not self.budget.measured:
            self.refuse_unused("without a `budget` of the cache or of decoding", "budget_tokens")
        if self.by_cost:
            saving = None if self.budget is None else self.budget.saving
            no_more = saving == 0 and self.budget is not None and self.budget.measured
            if saving is not None and not (0 < saving < 1 or no_more):
                raise ValueError(f"expected `budget` above 0% and below 100%, got {saving:.1%}")
            self.refuse_unused("where the cost of each replacement is measured", "select", "merge")
            if self.sweep and self.budget and self.sweep.quantity not in self.budget.kept:
                hint = f"try `budget={self.budget},{self.sweep.quantity}={percent(self.sweep.shares[0])}`"
                raise ValueError(f"expected `sweep` of what `budget` limits, {self.budget}, got {self.sweep}; {hint}")
        else:
            self.refuse_unused(
                "without `choices` or a `budget` of the cache or of decoding",
                "sweep",
                "span",
                "trials",
                "rounds",
                "swaps",
            )
        part = None if self.target == "block" else self.target
        if part:
            self.refuse_unused(f"with `target={self.target}`", "span")
        if self.choices is not None and self.budget is None:
            raise ValueError("expected a `budget` with `choices`, got none; try `budget=parameters=80%`")
        if self.merge and part:
            raise ValueError(f"expected `target=block` with `merge`, got {self.target}: only whole blocks merge")
        if self.select == "influence" and part:
            raise ValueError(
                f"expected `select=score`, divergence or loss for `target={self.target}`: influence is how little a "
                "whole block turns its input"
            )
        return self

    @property
    def budgets(self) -> Sequence[Budget]:
        """That of the result, and those that are compared with it, the loosest first."""
        assert self.budget is not None
        return self.sweep.budgets(self.budget) if self.sweep else [self.budget]

    @property
    def by_cost(self) -> bool:
        """Whether the costs of all replacements are measured, and the least taken together."""
        return self.choices is not None or (self.budget is not None and self.budget.measured)

    @property
    def tried(self) -> int:
        """How many of the cheapest choices are fitted."""
        return self.trials or (_TRIALS if self.choices and len(self.choices) > 1 else 1)

    @property
    def by_loss(self) -> bool:
        """Whether losses decide which blocks, or how many."""
        several = (self.trials or 1) > 1 or self.rounds > 1 or self.swaps > 0
        return self.max_loss_increase is not None or self.select == "loss" or several

    @property
    def limit(self) -> str:
        """When enough is replaced, in words."""
        if self.count is not None:
            return f"{self.count} block{'s' * (self.count != 1)}"
        if self.budget is not None:
            saves = None if self.budget.measured else self.budget.saving
            return str(self.budget) if saves is None else f"{saves:.1%} of parameters"
        return f"{self.max_loss_increase} nats per token"


class Fitting(Settings):
    """How replacements are fitted, and trained towards the original's hidden states and predictions after that."""

    folds: PositiveInt = 4
    """Contiguous folds of the rows, by which ridges are chosen; 1 for none."""
    heal_steps: NonNegativeInt = 0
    """Steps to train the stand-ins for after the fit, towards the original's hidden states and predictions."""
    heal_learning_rate: Positive = 1e-3
    """Learning rate of the first of these steps; it falls to 0."""
    heal_batch_size: PositiveInt = 8
    """Rows of each of these steps."""
    heal_logits: NonNegative = 1.0
    """Weight of the divergence from the original's predictions in them; 0 for hidden states alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.heal_steps:
            self.refuse_unused("without `heal_steps`", "heal_learning_rate", "heal_batch_size", "heal_logits")
        return self
