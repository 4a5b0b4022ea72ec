"""The best choice of replacements within a budget: the cheapest ones are fitted, and the one with least loss taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple, cast

from rectilinear.linearization.budget import Budget
from rectilinear.linearization.costs import grown
from rectilinear.linearization.fit import Fitted, fit_all, merge_edits
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, exchanges
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.settings import Selection
from rectilinear.linearization.survey import Survey
from rectilinear.linearization.workbench import Workbench
from rectilinear.measurement.perplexity import Perplexity

# How often a lower budget is aimed at, where what is fitted needs more than it was to.
_AIMS = 5


class Trial(NamedTuple):
    """A choice that was fitted, and how well it predicts held-out rows; None where there are none."""

    chosen: list[CostRecord]
    fits: list[Fitted]
    reached: Perplexity | None

    @property
    def loss(self) -> float | None:
        """On these rows, nats a token."""
        return self.reached.loss if self.reached else None


class Search:
    """A search for the choice with the least loss among those that cost little, within a budget.

    Attributes:
        losses: of what was fitted so far, by what was chosen; None where it is not within the budget.
    """

    def __init__(
        self,
        survey: Survey,
        bench: Workbench,
        measure: Callable[[Sequence[Fitted]], Perplexity | None],
        selection: Selection,
        budget: Budget | None = None,
    ) -> None:
        """Nothing is tried yet."""
        self._survey, self._bench, self._measure, self._selection = survey, bench, measure, selection
        self._budget = budget or survey.budget
        self._limits = self._aim = self._budget.limits(survey.whole)
        self.losses: dict[frozenset[Replacement], float | None] = {}
        self._leader: Trial | None = None

    def best(self) -> Trial:
        """Fit the cheapest choices, and choices near the best of them; the one with the least loss.

        Raises:
            RequestError: no choice is within the budget.
        """
        costs = self._survey.alone
        for number in range(self._selection.rounds):
            if number and self._leader:
                costs = self._survey.around(self._leader.fits)
            self._fit_cheapest(costs)
            if self._leader is None:
                raise self._survey.refusal(costs, self._budget, self._limits)
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
            sizes = self._survey.sizes
            changes["cache"] = float(sizes.of_edits(bench, merge_edits(fits)) - sizes.total)
        over = {name: changes[name] - most for name, most in self._limits.items() if changes[name] > most}
        trial = Trial(chosen, fits, None if over else self._measure(fits))
        self.losses[names] = trial.loss
        if over:
            return over
        if self._leader is None or (trial.loss or 0.0) < (self._leader.loss or 0.0):
            self._leader = trial  # of others no fits are kept
        return {}


def _names(chosen: Iterable[CostRecord]) -> frozenset[Replacement]:
    return frozenset(cost.replacement.unfitted() for cost in chosen)
