"""What is replaced by what: the schema of ``plan.json``, which can be read, edited and fed back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rectilinear.errors import RequestError
from rectilinear.linearization.defaults import RATES, TAPS
from rectilinear.models.surgery import Target
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile

#: What stands in: nothing, a map in the projection before, an affine map, a causal linear filter.
Kind = Literal["drop", "folded", "affine", "filter"]

# Below this a fit is worth a warning, as a score is.
_TOKENS_A_FEATURE = 20

#: Why a target cannot be replaced by a kind.
_IMPOSSIBLE: dict[tuple[str, str], str] = {
    ("folded", "attention"): "folding takes whole blocks out; try --target block",
    ("folded", "mlp"): "folding takes whole blocks out; try --target block",
    ("filter", "mlp"): "an MLP sees one token at a time, so that an affine map is all there is; try --kind affine",
}


class FitRecord(Record):
    """How a replacement was fitted, and what it weighs."""

    ridge: float | None = Field(description="share of the correlation's unit diagonal; null where nothing is fitted")
    held_out: float | None = Field(description="share of the target's energy that maps of the other folds explain")
    features: int = Field(default=0, description="per token that the map takes; 0 where nothing is fitted")
    tokens: int
    parameters_before: int
    parameters_after: int


class Replacement(Record):
    """One stand-in: what it takes the place of, and what it is."""

    kind: Kind
    target: Target = "block"
    blocks: tuple[int, ...] = Field(min_length=1, description="a block, or consecutive ones that share a stand-in")
    rank: int | None = Field(default=None, ge=1)
    taps: int = Field(default=0, ge=0, le=64)
    rates: tuple[float, ...] = ()
    fit: FitRecord | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, given: Any) -> Any:
        """Refuse what nobody would read; a filter has the usual taps and rates where it names none."""
        if not isinstance(given, dict):
            return given
        if unknown := sorted(given.keys() - cls.model_fields.keys()):
            raise ValueError(f"expected {', '.join(cls.model_fields)}, got {', '.join(unknown)}")
        return {"taps": TAPS, "rates": RATES, **given} if given.get("kind") == "filter" else given

    @property
    def where(self) -> str:
        """Its block, or the first and the last: ``2``, ``2-4``."""
        return "-".join(map(str, sorted({self.blocks[0], self.blocks[-1]})))

    @property
    def removed(self) -> tuple[int, ...]:
        """Blocks that are gone for good, so that those after them move up."""
        if self.target != "block":
            return ()
        return self.blocks if self.kind in ("drop", "folded") else self.blocks[1:]


class ParametersRecord(Record):
    """Parameters of the model."""

    before: int
    after: int


class SelectionRecord(Record):
    """How the blocks were chosen, and the loss before and after the fit on other rows, in nats per token."""

    select: str
    budget: str | None = None
    scores: dict[str, float] = Field(default_factory=dict, description="by block: what they were ordered by")
    loss_before: float | None = None
    loss_after: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Healing:
    """How to train stand-ins.

    Attributes:
        steps: of AdamW, each on one batch; the learning rate falls linearly to zero.
        learning_rate: at the first step.
        batch_size: rows of a step.
        logits_weight: of the divergence from the original's predictions; 0 leaves logits out.
        seed: of the order of the rows.

    Raises:
        RequestError: a value out of range.
    """

    steps: int
    learning_rate: float = 1e-3
    batch_size: int = 8
    logits_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise RequestError(f"expected --heal-steps of at least 0, got {self.steps}")
        if not 0 < self.learning_rate < math.inf:
            raise RequestError(f"expected --heal-learning-rate above 0, got {self.learning_rate}")
        if not 0 <= self.logits_weight < math.inf:
            raise RequestError(f"expected --heal-logits of at least 0, got {self.logits_weight}")
        if self.batch_size < 1:
            raise RequestError(f"expected heal_batch_size of at least 1, got {self.batch_size}")


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
        said = f"Healed in {self.steps:,} step{'s' * (self.steps > 1)}"
        if self.mse_before is None or self.mse_after is None or self.loss_before is None or self.loss_after is None:
            return said
        return (
            f"{said}: relative error of hidden states {self.mse_before:.4g} -> {self.mse_after:.4g}, loss "
            f"{self.loss_before:.4f} -> {self.loss_after:.4f} nats per token on held-out rows"
        )


class Plan(ResultFile):
    """Which replacements to make in which model, and how those that were made turned out."""

    file_name: ClassVar[str] = "plan.json"

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


def find_warnings(replacements: Sequence[Replacement], folds: int, width: int) -> list[str]:
    """What a reader of these fits must know, each with what to do about it.

    Args:
        replacements: with their fits.
        folds: that the rows were split into.
        width: of the hidden states.
    """
    fits = [(f"{one.target} {one.where}", one.fit) for one in replacements if one.fit and one.fit.features]
    found = []
    if scarce := [(name, fit) for name, fit in fits if fit.tokens < _TOKENS_A_FEATURE * fit.features]:
        names = ", ".join(name for name, _ in scarce)
        tokens, features = scarce[0][1].tokens, max(fit.features for _, fit in scarce)
        found.append(
            f"few tokens: {tokens:,} for up to {features:,} features ({names}), so that maps may hold less well "
            f"on other text; {_TOKENS_A_FEATURE} a feature would do: {_TOKENS_A_FEATURE * features:,} to fit on, "
            "nine tenths of --max-tokens"
        )
    if fits and folds < 2:
        found.append(
            "a single fold: none is held out to choose a ridge by, so that there is none (plain least squares), and no "
            "held-out share; try more --folds, of at least a row each"
        )
    if grown := [(name, fit) for name, fit in fits if fit.parameters_after > fit.parameters_before]:
        each = ", ".join(f"{fit.parameters_before:,} -> {fit.parameters_after:,} ({name})" for name, fit in grown)
        rank = min((fit.parameters_before - width) // (fit.features + width) for _, fit in grown)
        hint = f"--rank {rank} or less" if rank > 0 else "--kind affine"
        found.append(f"larger than what they replace: parameters {each}; {hint} would not be")
    return found


def check_trainable(replacements: Iterable[Replacement]) -> None:
    """Refuse to heal where there are no stand-ins.

    Raises:
        RequestError: blocks are dropped and nothing takes their places.
    """
    if all(replacement.kind == "drop" for replacement in replacements):
        raise RequestError("--heal-steps needs stand-ins to train, got only dropped blocks")


def needs_stand_in(replacement: Replacement) -> bool:
    """Whether the edited model has a module that the stock architecture does not know."""
    return replacement.kind in ("affine", "filter") or replacement.target != "block"


def check_replacements(replacements: Sequence[Replacement], num_blocks: int, width: int) -> None:
    """Refuse what cannot be done to a model of some blocks, before any work.

    Raises:
        RequestError: an index out of range or named twice, blocks that are not consecutive, a kind
            that its target cannot take, a rank that saves nothing, folding without a block before.
    """
    taken: dict[tuple[int, str], Replacement] = {}
    for replacement in replacements:
        kind, target = replacement.kind, replacement.target
        for index in replacement.blocks:
            if not 0 <= index < num_blocks:
                raise RequestError(f"expected blocks from 0 to {num_blocks - 1}, got {index}")
            for part in ("attention", "mlp", "block") if target == "block" else (target, "block"):
                if (index, part) in taken:
                    raise RequestError(f"expected each block to be replaced once, got block {index} twice")
        taken.update({(index, target): replacement for index in replacement.blocks})
        if (kind, target) in _IMPOSSIBLE:
            raise RequestError(f"expected another target than {target} for {kind}: {_IMPOSSIBLE[kind, target]}")
        if len(replacement.blocks) > 1 and target != "block":
            raise RequestError(f"expected one {target} a replacement, got {[*replacement.blocks]}; only blocks merge")
        if any(after != before + 1 for before, after in pairwise(replacement.blocks)):
            raise RequestError(f"expected consecutive blocks in one replacement, got {[*replacement.blocks]}")
        if replacement.rank is not None and (kind not in ("affine", "filter") or replacement.rank >= width):
            raise RequestError(
                f"expected a rank below the width of {width} for affine or filter, got {kind}, rank {replacement.rank}"
            )
        if kind != "filter" and (replacement.taps or replacement.rates):
            raise RequestError(
                f"expected taps and rates with filters alone, got {kind} with some; in a plan set them to 0 and []"
            )
        if any(not 0 < rate <= 1 for rate in replacement.rates):
            raise RequestError(f"expected rates above 0 and up to 1, got {[*replacement.rates]}")
    if len(_gone(replacements)) == num_blocks:
        raise RequestError(f"expected at least one of {num_blocks} blocks to stay, got all of them removed")
    for replacement in replacements:
        before = replacement.blocks[0] - 1
        if replacement.kind == "folded" and (before < 0 or (before, "block") in taken or (before, "mlp") in taken):
            raise RequestError(
                f"folding block {replacement.blocks[0]} needs a block before it that stays, "
                f"got {'none' if before < 0 else f'block {before} replaced'}; try --kind affine, or other blocks"
            )


def _gone(replacements: Sequence[Replacement]) -> set[int]:
    return {index for replacement in replacements for index in replacement.removed}
