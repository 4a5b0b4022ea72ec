"""What is to be replaced, in any of the ways to say it: refused before any work, or carried out."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, get_args

import torch
from pydantic import ValidationError

from rectilinear.errors import RequestError
from rectilinear.linearization.choose import Budget, Select, candidates, check_budget, choose, group
from rectilinear.linearization.fit import Fitted, Workbench, fit_all, merge_edits
from rectilinear.linearization.plan import (
    Kind,
    Plan,
    Replacement,
    SelectionRecord,
    check_replacements,
    needs_stand_in,
)
from rectilinear.measurement.collect import count_rows
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.blocks import BlockStack
from rectilinear.models.export import check_exportable
from rectilinear.models.surgery import Target, check_removal, find_projection, find_target, swapped
from rectilinear.settings import first_reason


@dataclass(frozen=True)
class Wish:
    """What is to be replaced, in one of the ways to say it."""

    kind: Kind
    target: Target
    blocks: Sequence[int] | None
    budget: Budget
    select: Select
    rank: int | None
    taps: int
    rates: Sequence[float]
    merge: bool
    plan: Plan | None

    def __post_init__(self) -> None:
        given = {
            "blocks": self.blocks,
            "count": self.budget.count,
            "budget": self.budget.share,
            "max-loss-increase": self.budget.loss,
            "plan": self.plan,
        }
        named = [f"--{name}" for name, value in given.items() if value is not None]
        if len(named) != 1:
            ways = ", ".join(f"--{name}" for name in given)
            raise RequestError(f"expected one of {ways}, got {' and '.join(named) or 'none'}")
        if self.select not in get_args(Select):
            raise RequestError(f"expected a select of {', '.join(get_args(Select))}, got {self.select!r}")
        try:
            _ = self.template
        except ValidationError as error:
            raise RequestError(f"wrong {first_reason(error)}") from None
        try:
            _ = [operator.index(block) for block in (() if self.blocks is None else self.blocks)]
        except TypeError:
            raise RequestError(f"expected blocks=[2, 3] (indices, counted from 0), got {self.blocks!r}") from None

    @property
    def template(self) -> Replacement:
        """The replacement of one block, whichever it is."""
        seen = {"taps": self.taps, "rates": self.rates} if self.kind == "filter" else {}
        given = {"kind": self.kind, "target": self.target, "blocks": (0,), "rank": self.rank}
        return Replacement.model_validate({**given, **seen})

    @property
    def named(self) -> list[Replacement] | None:
        """The replacements, where they are asked for by name."""
        if self.plan is not None:
            return list(self.plan.replacements)
        return None if self.blocks is None else group(self.blocks, self.template, self.merge)

    def check(self, model: Any, stack: BlockStack, width: int) -> None:
        """Refuse what cannot be done, before any work; the model may be without weights."""
        if self.merge and self.target != "block":
            raise RequestError(f"expected --target block with --merge, got {self.target}: only whole blocks merge")
        if self.named is None and self.select == "influence" and self.target != "block":
            raise RequestError(
                f"expected --select score or loss for --target {self.target}: influence is how little a whole block "
                "turns its input"
            )
        named = self.named
        asked = named if named is not None else [self.template.model_copy(update={"blocks": (len(stack) - 1,)})]
        check_replacements(asked, len(stack), width)
        check_exportable(model, any(map(needs_stand_in, asked)))
        if named is None:
            check_budget(model, stack, self.template, self.merge, self.budget, width)
        for trial in self._trials(stack):
            for replacement in trial:
                for index in replacement.blocks:
                    find_target(stack, index, replacement.target)
            removed = {index for replacement in trial for index in replacement.removed}
            check_removal(model, stack, [index for index in range(len(stack)) if index not in removed])

    def check_weights(self, model: Any, stack: BlockStack, sha256: str) -> None:
        """Refuse what cannot be done to a model with these weights, before any work."""
        if self.plan is not None and self.plan.model.sha256 != sha256:
            raise RequestError(
                f"expected a plan for this model, got one for {self.plan.model.id} with other weights "
                f"(SHA-256 {str(self.plan.model.sha256)[:12]}, not {sha256[:12]}); was it made with another --dtype?"
            )
        trials = self._trials(stack)
        check_exportable(model, any(map(needs_stand_in, chain(*trials))))
        for replacement in chain(*trials):
            if replacement.kind == "folded":
                find_projection(model, stack, replacement.blocks[0] - 1, torch.zeros(1, 4, dtype=torch.long))

    def _trials(self, stack: BlockStack) -> list[list[Replacement]]:
        """The replacements; of a choice each by itself, so that what no choice could mend is found out."""
        named = self.named
        if named is not None:
            return [named]
        return [[self.template.model_copy(update={"blocks": (i,)})] for i in candidates(stack, self.template)]

    def carry_out(self, bench: Workbench, held_out: torch.Tensor, width: int) -> tuple[list[Fitted], SelectionRecord]:
        """Choose, where that is left open, and fit."""
        named = self.named
        if named is None:
            return choose(bench, held_out, self.template, self.budget, self.select, self.merge, width)

        size = count_rows(bench.batches[0])

        def loss() -> float | None:
            return measure_perplexity(bench.model, held_out, size).loss if len(held_out) else None

        before = loss()
        fits = fit_all(bench, named)
        with swapped(bench.model, merge_edits(fits)):
            after = loss()
        tokens = held_out[:, 1:].numel()
        return fits, SelectionRecord(select="by hand", loss_before=before, loss_after=after, tokens=tokens)

    def recipe(self) -> dict[str, Any]:
        """All that was asked for, as JSON has it: the same wish replaces the same by the same."""
        named = self.named
        if named is not None:
            return {"replacements": [replacement.model_dump(mode="json", exclude={"fit"}) for replacement in named]}
        template = self.template.model_dump(mode="json", exclude={"blocks", "fit"})
        return {"template": template, "budget": asdict(self.budget), "select": self.select, "merge": self.merge}

    def settings(self) -> dict[str, Any]:
        """What was asked for."""
        if self.plan is not None:
            return {}
        asked = {"kind": self.kind, "target": self.target, "rank": self.rank, "merge": self.merge}
        return {**asked, "taps": self.template.taps, "rates": list(self.template.rates)}
