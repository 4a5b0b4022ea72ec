"""Choosing blocks, where that is left open, and fitting what replaces them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor

from rectilinear.core.scores import score_block
from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.costs import CacheBytes, check_cache, measure_costs
from rectilinear.linearization.divergence import Divergence
from rectilinear.linearization.fit import Fitted, Site, fit_all, fit_alone, merge_edits
from rectilinear.linearization.kept_fits import KeptFits
from rectilinear.linearization.plan import SelectionRecord
from rectilinear.linearization.program import cheapest, least_shares
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Scope
from rectilinear.linearization.settings import BUDGET_TOKENS
from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.collect import collect_moments, find_schedule, hand_over
from rectilinear.measurement.kept import Kept
from rectilinear.measurement.perplexity import measure_perplexity, predicted
from rectilinear.measurement.pieces import count_rows
from rectilinear.models.describe import check_context, count_parameters
from rectilinear.models.find_blocks import context_of
from rectilinear.models.running import evaluating, run
from rectilinear.models.surgery import swapped
from rectilinear.ranks import current


def check_left_out(bench: Workbench, replacements: Sequence[Replacement]) -> None:
    """Raise `RequestError` for what the model does not run without: others take more from it than hidden states."""
    streams = Streams(bench.passes())
    sites = [Site(bench, one, streams) for one in replacements if not one.by.keeps_weights]

    def error_without(*some: Site) -> JobError | None:
        edits = {path: module for site in some for path, module in site.left_out().items()}
        try:
            with evaluating(bench.model), swapped(bench.model, edits):
                run(bench.model, bench.one_row)
        except JobError as error:
            return error
        return None

    if not sites or error_without(*sites) is None:
        return
    for some in (*((site,) for site in sites), sites):
        if error := error_without(*some):
            where = " and ".join(f"{site.target} {site.replacement.where}" for site in some)
            raise RequestError(f"expected a model that runs without {where}, got: {error}; try other blocks")


class _Trial(NamedTuple):
    """Fits, and the loss on held-out rows with them; None where there are none."""

    fits: list[Fitted]
    loss: float | None


@dataclass(frozen=True, eq=False)
class Choice:
    """What blocks are chosen by: what is asked for, rows to fit on, and others to measure losses on, perhaps none."""

    scope: Scope
    bench: Workbench
    held_out: Tensor  # ids [rows, seq_len]
    kept: Kept = Kept()  # costs of earlier runs

    def make(self) -> tuple[list[Fitted], SelectionRecord]:
        """Choose, where that is left open, and fit.

        Raises:
            JobError: not one block can be replaced within the tolerated loss, or a fit fails.
        """
        named, selection = self.scope.request.named, self.scope.request.selection
        check_left_out(self.bench, named or ())
        before = self._loss([])
        scores: dict[int, float] = {}
        if selection.by_cost:
            return self._by_cost(before)
        if named is None and selection.by_loss:
            fits, after, scores = self._by_loss(before or 0.0)
        else:
            if named is None:
                scores = self._order()
                chosen: list[int] = []
                while not self._is_enough(chosen):
                    chosen = [*scores][: len(chosen) + 1]
                named = self.scope.request.group(chosen)
            fits = fit_all(self.bench, named)
            after = self._loss(fits)
        by_hand = self.scope.request.named is not None
        return fits, SelectionRecord(
            select="by hand" if by_hand else selection.select,
            budget=None if by_hand else selection.limit,
            scores={str(index): score for index, score in scores.items()},
            loss_before=before,
            loss_after=after,
            tokens=int(predicted(self.held_out, self.bench.lead).sum()),
        )

    def _by_cost(self, before: float | None) -> tuple[list[Fitted], SelectionRecord]:
        """Measure what each replacement costs alone, and of the cheapest choices within the budget take the best."""
        selection, bench = self.scope.request.selection, self.bench
        tokens = selection.budget_tokens or min(BUDGET_TOKENS, context_of(self.scope.model.config) or BUDGET_TOKENS)
        check_context(self.scope.model.config, tokens)
        sizes, budget = CacheBytes.of(bench, tokens), cast(Budget, selection.budget)
        if budget.cache is not None:
            check_cache(bench.model, sizes)
        singles = [one for each in self.scope.alternatives(checked=Scope.runs) for one in each.runs()]
        check_left_out(bench, [one for one in singles if one.target != "block"])
        whole = {"parameters": float(count_parameters([bench.model])), "cache": float(sizes.total)}
        limits = budget.limits(whole)
        kept, tried = self.kept.changed(budget_tokens=tokens), dict[frozenset[Replacement], _Trial]()
        alone = costs = measure_costs(bench, singles, sizes, kept)
        for number in range(selection.rounds):
            for chosen in islice(cheapest(costs, limits, len(bench.stack)), selection.trials):
                wanted = frozenset(cost.replacement.unfitted() for cost in chosen)
                if wanted not in tried:
                    fits = fit_all(replace(bench, kept=bench.kept.under(str(len(tried)))), [*wanted])
                    tried[wanted] = _Trial(fits, self._loss(fits))
            if not tried:
                least = least_shares(costs, whole, len(bench.stack), limits)
                raise RequestError(f"expected a `budget` of at least {least} with these choices, got {budget}")
            fits, after = min(tried.values(), key=lambda trial: trial.loss or 0.0)
            if number + 1 < selection.rounds:
                costs = measure_costs(bench, singles, sizes, kept, fits)
        return fits, SelectionRecord(
            select="divergence",
            budget=selection.limit,
            costs=tuple(alone),
            budget_tokens=tokens,
            cache_bytes=sizes.total or None,
            loss_before=before,
            loss_after=after,
            losses=tuple(trial.loss for trial in tried.values() if trial.loss is not None),
            tokens=int(predicted(self.held_out, bench.lead).sum()),
        )

    def _loss(self, fits: Sequence[Fitted]) -> float | None:
        """Nats per token on the held-out rows with some replacements; None where there are no rows."""
        if not len(self.held_out):
            return None
        with swapped(self.bench.model, merge_edits(fits)):
            size = count_rows(self.bench.batches[0])
            return measure_perplexity(self.bench.model, self.held_out, size, bos=self.bench.lead).loss

    def _is_enough(self, chosen: Sequence[int]) -> bool:
        selection = self.scope.request.selection
        if selection.count is not None:
            return len(chosen) >= selection.count
        if len(chosen) == self.scope.most:
            return True
        if selection.budget is None:
            return False
        return self.scope.saving(chosen) >= (selection.budget.saving or 0.0) * count_parameters([self.bench.model])

    def _by_loss(self, before: float) -> tuple[list[Fitted], float | None, dict[int, float]]:
        """Take blocks while the loss allows: their fits, the loss reached, and what they were ordered by."""
        request = self.scope.request
        most, by_trial = request.selection.max_loss_increase, request.selection.select == "loss"
        scores = {} if by_trial else self._order()
        bench = replace(self.bench, kept=KeptFits())  # of trials there are too many to keep them
        left = [*scores] or [*self.scope.candidates]
        chosen: list[int] = []
        fits: list[Fitted] = []
        loss = before

        def tried(index: int, known: Sequence[Fitted]) -> tuple[list[Fitted], float]:
            longer = fit_all(bench, request.group([*chosen, index]), known)
            return longer, self._loss(longer) or 0.0

        while not self._is_enough(chosen):
            following = min(left, key=lambda index: tried(index, fits)[1]) if by_trial else left[0]
            # What comes before it saw nothing of it.
            longer, reached = tried(following, [fit for fit in fits if fit.replacement.blocks[-1] < following - 1])
            if most is not None and reached > before + most:
                if not chosen:
                    raise JobError(
                        f"replacing block {following} alone raises the loss by {reached - before:.4f} nats per token, "
                        f"above the tolerated {most}; try a larger `max_loss_increase` or another `kind`"
                    )
                break
            chosen.append(following)
            left.remove(following)
            fits, loss = longer, reached
            if by_trial:
                scores[following] = reached
        return fits, loss, scores

    def _order(self) -> dict[int, float]:
        """Scores by block, the first to be replaced first."""
        by = {"score": "linearity"}.get(self.scope.request.selection.select, self.scope.request.selection.select)
        if by == "divergence":
            with evaluating(self.bench.model), noting_padding(self.bench):
                # Together, so that the model is gone through once for it, and kept before what rests on it.
                self.scope.request.template.by.prepare(self.bench, self._singles())
        found = self.bench.kept.recall(by, self._divergences if by == "divergence" else self._scores)
        scores = dict(zip(found["blocks"].tolist(), found[by].tolist(), strict=True))
        rising = by != "linearity"
        ordered = sorted(self.scope.candidates, key=lambda index: scores[index] if rising else -scores[index])
        return {index: scores[index] for index in ordered}

    def _singles(self) -> list[Replacement]:
        """What each candidate would be replaced by alone."""
        return [self.scope.request.group([index])[0] for index in sorted(self.scope.candidates)]

    def _divergences(self) -> dict[str, Tensor]:
        """How far predictions move with each candidate alone replaced, in one walk through the original."""
        bench, found, divergence = replace(self.bench, kept=KeptFits()), list[float](), Divergence(self.bench)
        singles = self._singles()
        with evaluating(bench.model), noting_padding(bench), closing(Streams(bench.passes())) as streams:
            for one in singles:
                fitted = fit_alone(bench, one, streams)
                found.append(divergence.of(streams, fitted.edits))
        blocks = torch.tensor([one.blocks[-1] for one in singles])
        return {"blocks": blocks, "divergence": torch.tensor(found, dtype=torch.float64)}

    def _scores(self) -> dict[str, Tensor]:
        """How linear each part is that can be replaced, and how much it does: 1 less the cosine of input and output."""
        bench = self.bench
        spans = {index: self.scope.part(index).span(bench.model) for index in self.scope.replaceable}
        collect = partial(collect_moments, progress=bench.progress)
        schedule = find_schedule(bench.batches, ranks=current())
        found: dict[int, tuple[float, float]] = {}
        measured = {index: (index, span) for index, span in spans.items()}
        for index, moments in hand_over(collect, bench.passes(), measured, schedule):
            if moments is not None:
                scored = score_block(moments)
                del moments  # before those of the next block are there
                of_all = scored.all_tokens.linearity
                linearity = (of_all.in_sample if of_all.held_out is None else of_all.held_out) or 0.0
                found[index] = linearity, 1 - (scored.cosine or 0.0)
        for theirs in current().gather(found):
            found |= theirs
        linearities, influences = torch.tensor([found[index] for index in spans], dtype=torch.float64).T
        return {"blocks": torch.tensor([*spans]), "linearity": linearities, "influence": influences}
