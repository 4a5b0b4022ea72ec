"""The best choice of replacements within a budget: what each costs, what is cheapest together, what has least loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Self, cast

from rectilinear.errors import RequestError
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.costs import CacheBytes, check_cache, measure_costs
from rectilinear.linearization.fit import Fitted, fit_all
from rectilinear.linearization.left_out import check_left_out
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, exchanges, least_shares
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Scope
from rectilinear.linearization.settings import BUDGET_TOKENS, Selection
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.kept import Kept
from rectilinear.models.describe import check_context, count_parameters
from rectilinear.models.find_blocks import context_of


class Trial(NamedTuple):
    """A choice that was fitted, and its loss on held-out rows; None where there are none."""

    chosen: list[CostRecord]
    fits: list[Fitted]
    loss: float | None


@dataclass(frozen=True, eq=False)
class Search:
    """A search for the choice with the least loss among those that cost little.

    Attributes:
        bench, selection: what it is for.
        loss: of fits, on held-out rows.
        kept: costs of earlier runs.
        ones: all replacements that are chosen from.
        sizes: of the cache.
        alone: what each costs where it is the only one.
        tried: what was fitted so far.
    """

    bench: Workbench
    selection: Selection
    loss: Callable[[Sequence[Fitted]], float | None]
    kept: Kept
    ones: Sequence[Replacement]
    sizes: CacheBytes
    alone: Sequence[CostRecord]
    tried: dict[frozenset[Replacement], Trial] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope, bench: Workbench, loss: Callable[[Sequence[Fitted]], float | None], kept: Kept) -> Self:
        """Measure what all replacements cost that a request can choose from.

        Raises:
            RequestError: a model that does not run without a part, or has no cache where there is a budget of it.
        """
        selection, config = scope.request.selection, scope.model.config
        tokens = selection.budget_tokens or min(BUDGET_TOKENS, context_of(config) or BUDGET_TOKENS)
        check_context(config, tokens)
        sizes, kept = CacheBytes.of(bench, tokens), kept.changed(budget_tokens=tokens)
        if cast(Budget, selection.budget).cache is not None:
            check_cache(bench.model, sizes)
        ones = [one for each in scope.alternatives(checked=Scope.runs) for one in each.runs()]
        check_left_out(bench, [one for one in ones if one.target != "block"])
        return cls(bench, selection, loss, kept, ones, sizes, measure_costs(bench, ones, sizes, kept))

    def best(self) -> Trial:
        """Fit the cheapest choices, and choices near the best of them; the one with the least loss.

        Raises:
            RequestError: no choice is within the budget.
        """
        costs, limits, depth = self.alone, self._limits, len(self.bench.stack)
        for number in range(self.selection.rounds):
            if number:
                costs = measure_costs(self.bench, self.ones, self.sizes, self.kept, self._leader.fits)
            for chosen in islice(cheapest(costs, limits, depth), self.selection.trials):
                self._try(chosen)
            if not self.tried:
                least = least_shares(costs, self._whole, depth, limits)
                raise RequestError(
                    f"expected a `budget` of at least {least} with these choices, got {self.selection.budget}"
                )
        left = self.selection.swaps
        while left:
            leader = self._leader
            inside = {cost.replacement.unfitted() for cost in leader.chosen}
            now = [cost for cost in costs if cost.replacement.unfitted() in inside]
            near = {_names(each): each for each in exchanges(costs, limits, depth, now)}
            new = [each for names, each in near.items() if names not in self.tried]
            for chosen in new[:left]:
                left -= 1
                if self._try(chosen) is self._leader:
                    break
            else:
                break  # none helps
        return self._leader

    @property
    def _leader(self) -> Trial:
        return min(self.tried.values(), key=lambda trial: trial.loss or 0.0)

    def _try(self, chosen: Sequence[CostRecord]) -> Trial:
        names = _names(chosen)
        if names not in self.tried:
            bench = replace(self.bench, kept=self.bench.kept.under(str(len(self.tried))))
            fits = fit_all(bench, [*names])
            self.tried[names] = Trial([*chosen], fits, self.loss(fits))
        return self.tried[names]

    @property
    def _whole(self) -> dict[str, float]:
        return {"parameters": float(count_parameters([self.bench.model])), "cache": float(self.sizes.total)}

    @property
    def _limits(self) -> dict[str, float]:
        return cast(Budget, self.selection.budget).limits(self._whole)


def _names(chosen: Iterable[CostRecord]) -> frozenset[Replacement]:
    return frozenset(cost.replacement.unfitted() for cost in chosen)
