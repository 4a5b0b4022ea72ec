"""What can be chosen from within a budget, and what each of it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

from rectilinear.errors import RequestError
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.costs import CacheBytes, check_cache, measure_costs
from rectilinear.linearization.left_out import find_needed
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, least_shares
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Scope
from rectilinear.linearization.settings import BUDGET_TOKENS, Selection
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.kept import Kept
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import context_of


class Survey:
    """What a request can choose from, and what each of it costs.

    Attributes:
        ones: replacements that this model can have.
        sizes: of the cache.
        alone: what each replacement costs where it is the only one.
        around: the same among others, which are given.
        left_out: why other replacements are not considered, by what they are.
        whole: what the original has of each quantity that can be limited.
    """

    def __init__(self, scope: Scope, bench: Workbench, kept: Kept) -> None:
        """Measure.

        Raises:
            RequestError: a budget that cannot be met, a model that has no cache where there is a budget of it.
        """
        selection, self._bench = scope.request.selection, bench
        tokens = tokens_of(selection, context_of(scope.model.config))
        self.sizes = CacheBytes.of(bench, tokens)
        self.budget = cast(Budget, selection.budget)
        if self.budget.cache is not None:
            check_cache(bench.model, self.sizes)
        self.whole = {"parameters": float(count_parameters([bench.model])), "cache": float(self.sizes.total)}
        scopes, reasons = scope.alternatives
        self.left_out = {**reasons}
        self.ones = self._possible(scopes)
        self.around = partial(measure_costs, bench, self.ones, self.sizes, kept.changed(budget_tokens=tokens))
        self.alone = self.around()

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
        limit = {name: most for name, most in self.budget.limits(self.whole).items() if name == "parameters"}
        if next(cheapest(found, limit, len(self._bench.stack)), None) is None:
            raise self.refusal(found, self.budget, limit)
        return [cost.replacement for cost in found]

    def refusal(self, costs: Sequence[CostRecord], budget: Budget, limited: Iterable[str]) -> RequestError:
        """What to say where no choice is within a budget."""
        least = least_shares(costs, self.whole, len(self._bench.stack), limited)
        return RequestError(f"expected a `budget` of at least {least} with these choices, got {budget}")


def tokens_of(selection: Selection, context: int | None) -> int:
    """Tokens of a text after which a budget counts the cache.

    Raises:
        RequestError: more than the model's context has.
    """
    tokens = selection.budget_tokens or min(BUDGET_TOKENS, context or BUDGET_TOKENS)
    if context is not None and tokens > context:
        raise RequestError(f"expected `budget_tokens` of at most the model's context of {context:,}, got {tokens:,}")
    return tokens
