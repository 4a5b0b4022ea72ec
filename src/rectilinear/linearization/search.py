"""The best choice of replacements within a budget: the cheapest ones are fitted, and the one with least loss taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rectilinear.linearization.budget import Budget
from rectilinear.linearization.candidates import Candidates
from rectilinear.linearization.fit import Fitted, fit_all, in_order
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.program import cheapest, exchanges
from rectilinear.linearization.replacement import Replacement
from rectilinear.measurement.kept import name_of
from rectilinear.measurement.perplexity import Perplexity

# How often a lower budget is aimed at, where what is fitted needs more than it was to.
_AIMS = 5

_Choice = frozenset[Replacement]


@dataclass(frozen=True, eq=False)
class Trial:
    """A choice that was fitted.

    Attributes:
        chosen: the replacements.
        changes: how much more, or less, there is with it of each quantity that can be limited.
        divergence: sum of what each costs alone.
        reached: how well it predicts held-out rows; None where there are none.
    """

    chosen: _Choice
    changes: Mapping[str, float]
    divergence: float
    reached: Perplexity | None

    @property
    def price(self) -> float:
        """What the best has least of: the loss, or what it costs alone where there is none."""
        return self.reached.loss if self.reached else self.divergence

    def over(self, limits: Mapping[str, float]) -> dict[str, float]:
        """How much it is over some limits, of those that it is over."""
        return {name: self.changes[name] - most for name, most in limits.items() if self.changes[name] > most}


class Search:
    """A search for the choice with the least loss among those that cost little, within one budget after another.

    Attributes:
        trials: what was fitted so far, for whichever budget.
    """

    def __init__(self, candidates: Candidates, measure: Callable[[Sequence[Fitted]], Perplexity | None]) -> None:
        self.trials: dict[_Choice, Trial] = {}
        self._candidates, self._measure = candidates, measure
        self._bench, self._selection = candidates.bench, candidates.selection
        self._fits: dict[_Choice, list[Fitted]] = {}  # of the best ones

    def within(self, budget: Budget) -> list[Trial]:
        """All that was fitted and is within a budget, in turn."""
        limits = budget.limits(self._candidates.whole)
        return [trial for trial in self.trials.values() if not trial.over(limits)]

    def best(self, budget: Budget) -> Trial | None:
        """The one with the least loss of these."""
        return min(self.within(budget), key=lambda trial: trial.price, default=None)

    def fits(self, trial: Trial) -> list[Fitted]:
        """What was fitted for a choice; once more where that is not in memory."""
        if trial.chosen not in self._fits:
            self._fits[trial.chosen] = self._fit(trial.chosen)
        return self._fits[trial.chosen]

    def go(self, budget: Budget) -> None:
        """Fit the cheapest choices within a budget, and choices near the best of them.

        Raises:
            RequestError: no choice is within the budget.
        """
        costs = self._candidates.alone
        aim = budget.limits(self._candidates.whole)
        for number in range(self._selection.rounds):
            if number and (leader := self.best(budget)):
                costs = self._candidates.among(self.fits(leader))
            aim = self._fit_cheapest(costs, aim, budget)
        leader = self.best(budget)
        if leader is None:
            raise self._candidates.refusal(budget, costs, budget.kept)
        left = self._selection.swaps
        while left:
            now = [cost for cost in costs if cost.replacement.unfitted() in leader.chosen]
            near = map(_names, exchanges(costs, aim, len(self._bench.stack), now))
            for chosen in [each for each in near if each not in self.trials][:left]:
                left -= 1
                self._try(chosen, budget)
                if self.best(budget) is not leader:
                    break
            else:
                break  # none helps
            leader = self.best(budget) or leader

    def _fit_cheapest(self, costs: Sequence[CostRecord], aim: dict[str, float], budget: Budget) -> dict[str, float]:
        """Fit as many of the cheapest choices as are asked for; what was aimed at, lower where fits need more."""
        limits = budget.limits(self._candidates.whole)
        fitted, wanted = 0, self._selection.tried
        for _ in range(_AIMS):
            for some in cheapest(costs, aim, len(self._bench.stack)):
                trial = self._try(_names(some), budget)
                over = trial.over(limits)
                if over:
                    aim = {name: most - over.get(name, 0.0) for name, most in aim.items()}
                    break
                fitted += 1
                if fitted >= wanted or trial.reached is None:  # where there is no loss, the first is the best
                    return aim
            else:
                return aim
        return aim

    def _try(self, chosen: _Choice, budget: Budget) -> Trial:
        """A choice as it turns out; fits are kept of the best within its budget and within that of the result.

        Fits together may need more than each alone: windows are allotted to all heads together.
        """
        if chosen not in self.trials:
            fits = self._fit(chosen)
            candidates = self._candidates
            of_it = candidates.changes(fits), candidates.divergence(chosen), self._measure(fits)
            self.trials[chosen] = Trial(chosen, *of_it)
            self._fits[chosen] = fits
            best = {trial.chosen for each in (budget, candidates.budget) if (trial := self.best(each))}
            self._fits = {each: kept for each, kept in self._fits.items() if each in best}
        return self.trials[chosen]

    def _fit(self, chosen: _Choice) -> list[Fitted]:
        ordered = in_order(chosen)
        name = name_of([one.model_dump(mode="json") for one in ordered])
        return fit_all(replace(self._bench, kept=self._bench.kept.under(name)), ordered)


def _names(chosen: Iterable[CostRecord]) -> _Choice:
    return frozenset(cost.replacement.unfitted() for cost in chosen)
