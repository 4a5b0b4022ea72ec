"""Choosing blocks, where that is left open, and fitting what replaces them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from rectilinear.core.scores import score_block
from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.candidates import Candidates
from rectilinear.linearization.costs import tried
from rectilinear.linearization.fit import Fitted, fit_all, in_order, merge_edits
from rectilinear.linearization.kept_fits import KeptFits
from rectilinear.linearization.left_out import check_left_out
from rectilinear.linearization.plan import SelectionRecord
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.scope import Scope
from rectilinear.linearization.search import Search, Trial
from rectilinear.linearization.sweep import SweepRecord
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.collect import collect_moments, find_schedule, hand_over
from rectilinear.measurement.kept import Kept
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity, predicted
from rectilinear.measurement.pieces import count_rows
from rectilinear.models.describe import count_parameters
from rectilinear.models.running import evaluating
from rectilinear.models.surgery import swapped
from rectilinear.ranks import current
from rectilinear.results import IntervalRecord


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
        original = self._predicts([])
        before = original.loss if original else None
        scores: dict[int, float] = {}
        searched: dict[str, Any] = {}
        if selection.by_cost:
            fits, after, searched = self._by_cost(original)
        elif named is None and selection.by_loss:
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
            select="by hand" if by_hand else "divergence" if selection.by_cost else selection.select,
            budget=None if by_hand else selection.limit,
            scores={str(index): score for index, score in scores.items()},
            loss_before=before,
            loss_after=after,
            tokens=int(predicted(self.held_out, self.bench.lead).sum()),
            **searched,
        )

    def _by_cost(self, original: Perplexity | None) -> tuple[list[Fitted], float | None, dict[str, Any]]:
        """Take what costs least together within the budget: the fits, the loss reached, and what was found out."""
        candidates = Candidates.measured(self.scope, self.bench, self.kept)
        search, own = Search(candidates, self._predicts), candidates.budget
        search.go(own)
        unmet: dict[str, str] = {}
        others = [each for each in candidates.selection.budgets if each != own]
        for done, budget in enumerate(others):
            if self.bench.progress:
                self.bench.progress(f"choices within {budget}", done, len(others))
            try:
                search.go(budget)
            except (RequestError, JobError) as error:  # which is no reason to lose what is found already
                unmet[str(budget)] = str(error)
        best = cast(Trial, search.best(own))  # perhaps found within another budget
        total, fits = candidates.sizes.total, search.fits(best)
        searched = {
            "costs": tuple(candidates.alone),
            "budget_tokens": candidates.sizes.ids.shape[1],
            "cache_bytes": total or None,
            "cache_bytes_after": total + int(best.changes["cache"]) if total else None,
            "decoding_seconds": candidates.time and candidates.time.beside(self.bench, merge_edits(fits)),
            "losses": tuple(trial.reached.loss for trial in search.within(own) if trial.reached),
            "sweep": tuple(self._sweep(search, candidates, original)),
            "unmet": unmet,
            "left_out": candidates.left_out,
        }
        return fits, best.reached.loss if best.reached else None, searched

    def _sweep(self, search: Search, candidates: Candidates, original: Perplexity | None) -> Iterator[SweepRecord]:
        """What the best choices within all budgets that are compared keep and lose; nothing where none are."""
        selection, whole = candidates.selection, candidates.whole
        if selection.sweep is None:
            return
        quantity, taken = selection.sweep.quantity, search.best(candidates.budget)
        for budget in selection.budgets:
            trial = search.best(budget)
            if trial is None:
                continue
            kept = {name: there + trial.changes[name] for name, there in whole.items()}
            changes = trial.reached.changes(original) if trial.reached and original else None
            increase, stderr = changes.mean() if changes else (None, None)
            yield SweepRecord(
                budget=str(budget),
                quantity=quantity,
                share=budget.kept[quantity],
                kept=kept[quantity] / whole[quantity],
                taken=trial is taken,
                replacements=tuple(in_order(trial.chosen)),
                parameters=int(kept["parameters"]),
                cache_bytes=int(kept["cache"]) if whole["cache"] else None,
                divergence=trial.divergence,
                increase=increase,
                stderr=stderr,
                interval=IntervalRecord.of(increase, stderr, len(changes.sums) if changes else 0),
            )

    def _predicts(self, fits: Sequence[Fitted]) -> Perplexity | None:
        """How well held-out rows are predicted with some replacements; None where there are none."""
        if not len(self.held_out):
            return None
        with swapped(self.bench.model, merge_edits(fits)):
            size = count_rows(self.bench.batches[0])
            return measure_perplexity(self.bench.model, self.held_out, size, bos=self.bench.lead)

    def _loss(self, fits: Sequence[Fitted]) -> float | None:
        found = self._predicts(fits)
        return found.loss if found else None

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
        found = {fitted.replacement.blocks[-1]: moved for fitted, moved in tried(self.bench, self._singles())}
        divergences = torch.tensor([*found.values()], dtype=torch.float64)
        return {"blocks": torch.tensor([*found]), "divergence": divergences}

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
