"""Choosing blocks, where that is left open, and fitting what replaces them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from rectilinear.core.scores import score_block
from rectilinear.errors import JobError
from rectilinear.linearization.fit import Fitted, Workbench, fit_all, merge_edits
from rectilinear.linearization.plan import SelectionRecord
from rectilinear.linearization.request import Request, candidates, group, larger, most_blocks, saving
from rectilinear.measurement.collect import collect_moments, count_rows
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.surgery import find_target, swapped

# Blocks whose moments are in memory together while they are scored.
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class Choice:
    """What blocks are chosen by.

    Attributes:
        bench: the model and the rows to fit on.
        held_out: other rows, token ids ``[rows, seq_len]``, perhaps none, to measure losses on.
        request: what is asked for.
        width: of the hidden states.
    """

    bench: Workbench
    held_out: Tensor
    request: Request
    width: int

    def make(self) -> tuple[list[Fitted], SelectionRecord]:
        """Choose, where that is left open, and fit.

        Raises:
            JobError: not one block can be replaced within the tolerated loss, or a fit fails.
        """
        before = self.loss([])
        selection = self.request.selection
        scores: dict[int, float] = {}
        if self.request.named is not None:
            fits = fit_all(self.bench, self.request.named)
            after = self.loss(fits)
        elif selection.by_loss:
            fits, after, scores = self._by_loss(before or 0.0)
        else:
            scores = self._order()
            chosen: list[int] = []
            while not self._is_enough(chosen):
                chosen = [*scores][: len(chosen) + 1]
            fits = self._fit(chosen)
            after = self.loss(fits)
        return fits, SelectionRecord(
            select="by hand" if self.request.named is not None else selection.select,
            budget=None if self.request.named is not None else selection.limit,
            scores={str(index): score for index, score in scores.items()},
            loss_before=before,
            loss_after=after,
            tokens=self.held_out[:, 1:].numel(),
        )

    def loss(self, fits: Sequence[Fitted]) -> float | None:
        """Nats per token on the held-out rows with some replacements; None where there are no rows."""
        if not len(self.held_out):
            return None
        with swapped(self.bench.model, merge_edits(fits)):
            return measure_perplexity(self.bench.model, self.held_out, count_rows(self.bench.batches[0])).loss

    @cached_property
    def _candidates(self) -> list[int]:
        model, stack, request = self.bench.model, self.bench.stack, self.request
        too_large = larger(model, stack, request, self.width)
        return [index for index in candidates(stack, request.template) if index not in too_large]

    def _is_enough(self, chosen: Sequence[int]) -> bool:
        selection, bench = self.request.selection, self.bench
        if selection.count is not None:
            return len(chosen) >= selection.count
        if len(chosen) == most_blocks(self._candidates, bench.stack, self.request.template):
            return True
        if selection.budget is None:
            return False
        replacements = group(chosen, self.request.template, selection.merge)
        saved = saving(bench.model, bench.stack, replacements, self.width)
        return saved >= selection.budget * count_parameters([bench.model])

    def _fit(self, chosen: Sequence[int], known: Sequence[Fitted] = ()) -> list[Fitted]:
        replacements = group(chosen, self.request.template, self.request.selection.merge)
        return fit_all(self.bench, replacements, known)

    def _by_loss(self, before: float) -> tuple[list[Fitted], float, dict[int, float]]:
        """Take blocks while the loss allows: their fits, the loss reached, and what they were ordered by."""
        selection = self.request.selection
        scores = {} if selection.select == "loss" else self._order()
        order = [*scores] or self._candidates
        chosen: list[int] = []
        fits: list[Fitted] = []
        loss = before
        while not self._is_enough(chosen):
            left = [index for index in order if index not in chosen]
            following = left[0]
            if selection.select == "loss":
                trials = {index: self.loss(self._fit([*chosen, index], fits)) or 0.0 for index in left}
                following = min(left, key=lambda index: trials[index])
            # What comes before it saw nothing of it.
            known = [fitted for fitted in fits if fitted.replacement.blocks[-1] < following - 1]
            longer = self._fit([*chosen, following], known)
            reached = self.loss(longer) or 0.0
            if selection.max_loss_increase is not None and reached > before + selection.max_loss_increase:
                if not chosen:
                    raise JobError(
                        f"replacing block {following} alone raises the loss by {reached - before:.4f} nats per token, "
                        f"above the tolerated {selection.max_loss_increase}; try a larger `max_loss_increase` or "
                        "another `kind`"
                    )
                break
            chosen.append(following)
            fits, loss = longer, reached
            if selection.select == "loss":
                scores[following] = reached
        return fits, loss, scores

    def _order(self) -> dict[int, float]:
        """Scores by block, the first to be replaced first."""
        bench, target, found = self.bench, self.request.template.target, self._candidates
        influence = self.request.selection.select == "influence"
        paths = [find_target(bench.stack, index, target) for index in range(len(bench.stack))]
        modules = tuple(bench.model.get_submodule(path) for path in paths)
        scores: dict[int, float] = {}
        for start in range(0, len(modules), _AT_ONCE):
            some = BlockStack(bench.stack.path, modules[start : start + _AT_ONCE], bench.stack.rule)
            moments = collect_moments(bench.model, some, bench.batches, progress=bench.progress, first=start)
            for index, block in enumerate(moments, start):
                scored = score_block(block)
                linearity = scored.all_tokens.linearity
                share = linearity.held_out if linearity.held_out is not None else linearity.in_sample
                scores[index] = 1 - scored.cosine if influence else (share or 0.0)
        ordered = sorted(found, key=lambda index: scores[index] if influence else -scores[index])
        return {index: scores[index] for index in ordered}
