"""The best choice of replacements within a budget: what each costs, what is cheapest together, what has least loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from rectilinear.errors import RequestError
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.costs import CacheBytes, check_cache, grown, measure_costs
from rectilinear.linearization.fit import Fitted, fit_all, merge_edits
from rectilinear.linearization.left_out import find_needed
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, exchanges, least_shares
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Scope
from rectilinear.linearization.settings import BUDGET_TOKENS, Selection
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.kept import Kept
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import context_of

# How often a lower budget is aimed at, where what is fitted needs more than it was to.
_AIMS = 5


class Trial(NamedTuple):
    """A choice that was fitted, and its loss on held-out rows; None where there are none."""

    chosen: list[CostRecord]
    fits: list[Fitted]
    loss: float | None


class Search:
    """A search for the choice with the least loss among those that cost little.

    Attributes:
        sizes: of the cache.
        alone: what each replacement costs where it is the only one.
        losses: of what was fitted so far, by what was chosen.
        left_out: why replacements were not considered, by what they are.
    """

    def __init__(
        self, scope: Scope, bench: Workbench, loss: Callable[[Sequence[Fitted]], float | None], kept: Kept
    ) -> None:
        """Measure what all replacements cost that a request can choose from.

        Raises:
            RequestError: a budget that cannot be met, a model that has no cache where there is a budget of it.
        """
        self._bench, self._loss, self._selection = bench, loss, scope.request.selection
        self._budget = cast(Budget, self._selection.budget)
        tokens = tokens_of(self._selection, context_of(scope.model.config))
        self.sizes, self._kept = CacheBytes.of(bench, tokens), kept.changed(budget_tokens=tokens)
        if self._budget.cache is not None:
            check_cache(bench.model, self.sizes)
        self._whole = {"parameters": float(count_parameters([bench.model])), "cache": float(self.sizes.total)}
        self._limits = self._aim = self._budget.limits(self._whole)
        scopes, reasons = scope.alternatives
        self.left_out = {**reasons}
        self._ones = self._possible(scopes)
        self.alone = measure_costs(bench, self._ones, self.sizes, self._kept)
        self.losses: dict[frozenset[Replacement], float | None] = {}
        self._leader: Trial | None = None

    def best(self) -> Trial:
        """Fit the cheapest choices, and choices near the best of them; the one with the least loss.

        Raises:
            RequestError: no choice is within the budget.
        """
        costs = self.alone
        for number in range(self._selection.rounds):
            if number and self._leader:
                costs = measure_costs(self._bench, self._ones, self.sizes, self._kept, self._leader.fits)
            self._fit_cheapest(costs)
            if self._leader is None:
                raise self._refusal(costs)
        left = self._selection.swaps
        while left and self._leader:
            inside = _names(self._leader.chosen)
            now = [cost for cost in costs if cost.replacement.unfitted() in inside]
            near = {_names(each): each for each in exchanges(costs, self._aim, len(self._bench.stack), now)}
            for chosen in [each for names, each in near.items() if names not in self.losses][:left]:
                left -= 1
                self._try(chosen)
                if self._leader.chosen is chosen:
                    break
            else:
                break  # none helps
        return cast(Trial, self._leader)

    def _fit_cheapest(self, costs: Sequence[CostRecord]) -> None:
        """Fit as many of the cheapest choices as are asked for; aim lower where what is fitted needs more."""
        fitted = 0
        for _ in range(_AIMS):
            for chosen in cheapest(costs, self._aim, len(self._bench.stack)):
                over = self._try(chosen)
                if over:
                    self._aim = {name: most - over.get(name, 0.0) for name, most in self._aim.items()}
                    break
                fitted += 1
                if fitted >= self._selection.trials:
                    return
            else:
                return

    def _try(self, chosen: list[CostRecord]) -> dict[str, float]:
        """How far a choice is over the budget once it is fitted; where it is not, it leads if it has the least loss.

        Fits together may need more than each alone: windows are allotted to all heads together.
        """
        names = _names(chosen)
        if names in self.losses:
            return {}
        bench = replace(self._bench, kept=self._bench.kept.under(str(len(self.losses))))
        fits = fit_all(bench, [*names])
        changes = {"parameters": float(sum(map(grown, fits)))}
        if "cache" in self._limits:
            changes["cache"] = float(self.sizes.of_edits(bench, merge_edits(fits)) - self.sizes.total)
        over = {name: changes[name] - most for name, most in self._limits.items() if changes[name] > most}
        self.losses[names] = None if over else self._loss(fits)
        if over:
            return over
        trial = Trial(chosen, fits, self.losses[names])
        if self._leader is None or (trial.loss or 0.0) < (self._leader.loss or 0.0):
            self._leader = trial  # of others no fits are kept
        return {}

    def _possible(self, scopes: Sequence[Scope]) -> list[Replacement]:
        """What can be replaced in this model, of all that is chosen from.

        Raises:
            RequestError: nothing, or nothing that saves enough parameters.
        """
        found = [
            CostRecord(replacement=one, divergence=0, parameters=each.change(one), cache=0)
            for each in scopes
            for one in each.runs()
        ]
        gone = [cost.replacement for cost in found if not cost.replacement.by.keeps_weights]
        parts = {one.parts: one for one in gone if one.target != "block"}
        for ones, why in find_needed(self._bench, [*parts.values()]).items():
            if len(ones) > 1:  # any of which can be missed while the others are there
                continue
            self.left_out[f"the {ones[0].target} of block {ones[0].where}"] = why
            without = {one for one in gone if one.parts & ones[0].parts}
            found = [cost for cost in found if cost.replacement not in without]
        if not found:
            raise RequestError(next(iter(self.left_out.values())))
        limit = {name: most for name, most in self._limits.items() if name == "parameters"}
        if next(cheapest(found, limit, len(self._bench.stack)), None) is None:
            raise self._refusal(found, limit)
        return [cost.replacement for cost in found]

    def _refusal(self, costs: Sequence[CostRecord], limits: Iterable[str] = ()) -> RequestError:
        least = least_shares(costs, self._whole, len(self._bench.stack), limits or self._limits)
        return RequestError(f"expected a `budget` of at least {least} with these choices, got {self._budget}")


def tokens_of(selection: Selection, context: int | None) -> int:
    """Tokens of a text after which a budget counts the cache.

    Raises:
        RequestError: more than the model's context has.
    """
    tokens = selection.budget_tokens or min(BUDGET_TOKENS, context or BUDGET_TOKENS)
    if context is not None and tokens > context:
        raise RequestError(f"expected `budget_tokens` of at most the model's context of {context:,}, got {tokens:,}")
    return tokens


def _names(chosen: Iterable[CostRecord]) -> frozenset[Replacement]:
    return frozenset(cost.replacement.unfitted() for cost in chosen)
