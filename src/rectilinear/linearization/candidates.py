"""What can be chosen from within a budget, and what each of it costs."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from rectilinear.errors import RequestError
from rectilinear.linearization.budget import QUANTITIES, Budget
from rectilinear.linearization.costs import CacheBytes, check_cache, grown, measure_costs
from rectilinear.linearization.decoding_time import DecodingTime
from rectilinear.linearization.fit import Fitted, merge_edits
from rectilinear.linearization.left_out import find_needed
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, least_shares
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.scope import Scope
from rectilinear.linearization.settings import BUDGET_TOKENS, Selection
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.kept import Kept
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import context_of
from rectilinear.models.surgery import count_new_biases


@dataclass(frozen=True, eq=False)
class Candidates:
    """Replacements that a model can have, and what each costs.

    Attributes:
        bench, selection: what they are for.
        left_out: why others are not considered, by what they are.
        sizes: of the cache.
        time: of decoding a token; None where no budget is of that.
        alone: what each costs where it is the only one, with the replacement.
        kept: costs of earlier runs.
    """

    bench: Workbench
    selection: Selection
    left_out: Mapping[str, str]
    sizes: CacheBytes
    time: DecodingTime | None
    alone: Sequence[CostRecord]
    kept: Kept

    @classmethod
    def measured(cls, scope: Scope, bench: Workbench, kept: Kept) -> Candidates:
        """Those of a request.

        Raises:
            RequestError: a budget that no choice of them can meet, told before they are measured where that is
                possible; a model that has no cache where there is a budget of it, or of decoding.
        """
        selection = scope.request.selection
        tokens = tokens_of(selection, context_of(scope.model.config))
        sizes, limited = CacheBytes.of(bench, tokens), {name for budget in selection.budgets for name in budget.kept}
        if "cache" in limited:
            check_cache(bench.model, sizes)
        time = DecodingTime.of(bench, sizes.ids) if "decoding" in limited else None
        found, left_out = _possible(scope, bench)
        kept = kept.changed(budget_tokens=tokens, **({"timed": platform.node()} if time else {}))
        unmeasured = cls(bench, selection, left_out, sizes, time, found, kept)
        unmeasured.check(["parameters"])
        measured = replace(unmeasured, alone=unmeasured.among([]))
        measured.check(QUANTITIES)
        return measured

    def among(self, fits: Sequence[Fitted]) -> list[CostRecord]:
        """What each costs among others; see `measure_costs`."""
        ones = [cost.replacement.unfitted() for cost in self.alone]
        if not fits:
            return measure_costs(self.bench, ones, (self.sizes, self.time), self.kept)
        found = measure_costs(self.bench, ones, (self.sizes, None), self.kept, fits)
        alone = self._of_each  # among others a part takes as long
        return [cost.model_copy(update={"decoding": alone[cost.replacement.unfitted()].decoding}) for cost in found]

    @property
    def budget(self) -> Budget:
        """That of the result."""
        return cast(Budget, self.selection.budget)

    @cached_property
    def whole(self) -> dict[str, float]:
        """What the original has of each quantity that can be limited."""
        parameters = float(count_parameters([self.bench.model]))
        return {"parameters": parameters, "cache": float(self.sizes.total), "decoding": 1.0}

    def changes(self, fits: Sequence[Fitted]) -> dict[str, float]:
        """How much more, or less, there is of each with some replacements; of decoding by what each changes alone."""
        longer = sum(self._of_each[fitted.replacement.unfitted()].decoding or 0.0 for fitted in fits)
        edits = merge_edits(fits)
        more = sum(map(grown, fits)) + count_new_biases(self.bench.model, edits)
        found = {"parameters": float(more), "cache": 0.0, "decoding": longer}
        if self.sizes.total:
            found["cache"] = float(self.sizes.of_edits(self.bench, edits) - self.sizes.total)
        return found

    def divergence(self, chosen: Iterable[Replacement]) -> float:
        """Sum of what some cost, each by itself, in nats a token."""
        return sum(self._of_each[one].divergence for one in chosen)

    @cached_property
    def _of_each(self) -> dict[Replacement, CostRecord]:
        return {cost.replacement.unfitted(): cost for cost in self.alone}

    def check(self, quantities: Sequence[str]) -> None:
        """Raise a `RequestError` where no choice is within the limits of some quantities, of any of the budgets."""
        for budget in self.selection.budgets:
            limits = {name: most for name, most in budget.limits(self.whole).items() if name in quantities}
            if limits and next(cheapest(self.alone, limits, len(self.bench.stack)), None) is None:
                raise self.refusal(budget, self.alone, [*limits])

    def refusal(self, budget: Budget, costs: Sequence[CostRecord], limited: Collection[str]) -> RequestError:
        """What to say of a budget that no choice is within."""
        if "decoding" in limited and not any((cost.decoding or 0.0) < 0 for cost in costs):
            return RequestError(f"expected choices that decode faster than what they replace for {budget}, got none")
        option = "a `budget`" if budget == self.budget else "shares in `sweep`"
        least = least_shares(costs, self.whole, len(self.bench.stack), limited)
        together = f", not {'both' if len(budget.kept) == 2 else 'all'} at once" * (len(budget.kept) > 1)
        return RequestError(f"expected {option} of at least {least}{together} with these choices, got {budget}")


def _possible(scope: Scope, bench: Workbench) -> tuple[list[CostRecord], dict[str, str]]:
    """What can be replaced in a model, with the parameters that change, and why all else cannot.

    Raises:
        RequestError: nothing.
    """
    scopes, reasons = scope.alternatives
    left_out = {**reasons}
    found = [
        CostRecord(replacement=one, divergence=0, parameters=each.change(one), cache=0)
        for each in scopes
        for one in each.runs()
    ]
    gone = [cost.replacement for cost in found if not cost.replacement.by.keeps_weights]
    parts = {one.parts: one for one in gone if one.target != "block"}
    for ones, why in find_needed(bench, [*parts.values()]).items():
        if len(ones) > 1:  # any of which can be missed while the others are there
            continue
        left_out[f"the {ones[0].target} of block {ones[0].where}"] = why
        without = {one for one in gone if one.parts & ones[0].parts}
        found = [cost for cost in found if cost.replacement not in without]
    if not found:
        raise RequestError(next(iter(left_out.values())))
    return found, left_out


def tokens_of(selection: Selection, context: int | None) -> int:
    """Tokens of a text after which a budget counts the cache and times decoding.

    Raises:
        RequestError: more than the model's context has.
    """
    tokens = selection.budget_tokens or min(BUDGET_TOKENS, context or BUDGET_TOKENS)
    if tokens < 2 and any(budget.decoding is not None for budget in selection.budgets):
        raise RequestError(f"expected `budget_tokens` of at least 2, the last of which is decoded, got {tokens}")
    if context is not None and tokens > context:
        raise RequestError(f"expected `budget_tokens` of at most the model's context of {context:,}, got {tokens:,}")
    return tokens
