"""Which blocks to replace: in an order that was measured, until a budget is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral, Real
from types import NoneType
from typing import Literal

import torch
from torch import Tensor, nn

from rectilinear.core.scores import score_block
from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.fit import Fitted, Workbench, fit_all, merge_edits, stand_in_options
from rectilinear.linearization.plan import Replacement, SelectionRecord
from rectilinear.measurement.collect import collect_moments, count_rows
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.blocks import BlockStack
from rectilinear.models.describe import count_parameters
from rectilinear.models.modeling_rectilinear import LinearBlock
from rectilinear.models.surgery import find_target, swapped

#: ``score``: most linear first (arXiv 2405.12250). ``influence``: least change of direction first
#: (ShortGPT, 2403.03853). ``loss``: least loss first, measured anew after each (SLEB, 2402.09025).
Select = Literal["score", "influence", "loss"]

# Blocks whose moments are in memory together while they are scored.
_AT_ONCE = 8


@dataclass(frozen=True)
class Budget:
    """How much to replace; exactly one is given.

    Attributes:
        count: number of blocks.
        share: of the model's parameters, to be saved at least.
        loss: nats per token, by which the loss on held-out rows may rise at most.

    Raises:
        RequestError: something that is no number.
    """

    count: int | None = None
    share: float | None = None
    loss: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.count, (Integral, NoneType)):
            raise RequestError(f"expected a whole number for count, got {self.count!r}")
        for name, value in (("budget", self.share), ("max_loss_increase", self.loss)):
            if not isinstance(value, (Real, NoneType)):
                raise RequestError(f"expected a number for {name}, got {value!r}")

    def __str__(self) -> str:
        if self.count is not None:
            return f"{self.count} block{'s' * (self.count != 1)}"
        return f"{self.share:.1%} of parameters" if self.share is not None else f"{self.loss} nats per token"


def group(indices: Sequence[int], template: Replacement, merge: bool) -> list[Replacement]:
    """Replacements of some blocks like a template; consecutive blocks share one where they are merged or folded."""
    indices = sorted(map(int, indices))
    if not (merge or template.kind == "folded"):
        return [template.model_copy(update={"blocks": (index,)}) for index in indices]
    runs = groupby(enumerate(indices), lambda item: item[1] - item[0])
    return [template.model_copy(update={"blocks": tuple(index for _, index in run)}) for _, run in runs]


def candidates(stack: BlockStack, template: Replacement) -> list[int]:
    """Blocks that a template can replace: those that have its target and, to fold, a block before them."""
    found = [index for index in range(len(stack)) if index > 0 or template.kind != "folded"]
    for index in found:
        find_target(stack, index, template.target)
    return found


def check_budget(
    model: nn.Module, stack: BlockStack, template: Replacement, merge: bool, budget: Budget, width: int
) -> None:
    """Refuse a budget that no choice of blocks can meet, before any work.

    Raises:
        RequestError: it cannot be met.
    """
    found = candidates(stack, template)
    most = _most(found, stack, template)
    if budget.loss is not None and not budget.loss > 0:
        raise RequestError(f"expected --max-loss-increase above 0, got {budget.loss}")
    if budget.count is not None and not 1 <= budget.count <= most:
        raise RequestError(f"expected --count from 1 to {most}, got {budget.count}")
    if budget.share is not None:
        total = count_parameters([model])
        largest = saving(model, stack, group(found[-most:], template, merge), width) / total
        if not 0 < budget.share <= largest:
            raise RequestError(
                f"expected --budget above 0% and up to {max(largest, 0):.1%}, which replacing every "
                f"{template.target} saves, got {budget.share:.1%}; try a smaller --rank or another --kind"
            )


def _most(found: Sequence[int], stack: BlockStack, template: Replacement) -> int:
    """How many of the candidates can be replaced at once: a model keeps at least one block."""
    dropped = template.kind == "drop" and template.target == "block"
    return len(found) - (dropped and len(found) == len(stack))


def saving(model: nn.Module, stack: BlockStack, replacements: Sequence[Replacement], width: int) -> int:
    """Parameters that replacements take away, less those of their stand-ins."""
    saved = 0
    for replacement in replacements:
        paths = [find_target(stack, index, replacement.target) for index in replacement.blocks]
        saved += count_parameters(model.get_submodule(path) for path in paths)
        if replacement.kind in ("affine", "filter"):
            with torch.device("meta"):
                saved -= count_parameters([LinearBlock(**stand_in_options(replacement, width, 0))])
    return saved


def choose(
    bench: Workbench,
    held_out: Tensor,
    template: Replacement,
    budget: Budget,
    select: Select,
    merge: bool,
    width: int,
) -> tuple[list[Fitted], SelectionRecord]:
    """Choose blocks and fit their replacements.

    Args:
        bench: the model and the rows to fit on.
        held_out: other rows, token ids ``[rows, seq_len]``, to measure losses on.
        template: the replacement of one block.
        budget: when to stop.
        select: the order.
        merge: whether consecutive blocks share a stand-in.
        width: of the hidden states.

    Raises:
        JobError: not one block can be replaced within the tolerated loss.
    """
    total, size = count_parameters([bench.model]), count_rows(bench.batches[0])

    def enough(chosen: Sequence[int]) -> bool:
        if budget.count is not None:
            return len(chosen) >= budget.count
        if budget.share is not None:
            saved = saving(bench.model, bench.stack, group(chosen, template, merge), width)
            return saved >= budget.share * total or len(chosen) == most
        return len(chosen) == most

    def fit(chosen: Sequence[int], known: Sequence[Fitted] = ()) -> list[Fitted]:
        return fit_all(bench, group(chosen, template, merge), known)

    def loss_of(fits: Sequence[Fitted]) -> float:
        with swapped(bench.model, merge_edits(fits)):
            return measure_perplexity(bench.model, held_out, size).loss

    found = candidates(bench.stack, template)
    most = _most(found, bench.stack, template)
    scores = dict.fromkeys(found, 0.0) if select == "loss" else _order(bench, found, template, select)
    chosen: list[int] = []
    fits: list[Fitted] = []
    before = loss = loss_of([]) if len(held_out) else None
    while not enough(chosen):
        left = [index for index in scores if index not in chosen]
        if select == "loss":
            trials = {index: loss_of(fit([*chosen, index], fits)) for index in left}
            following = min(left, key=lambda index: trials[index])
        else:
            following = left[0]
        if budget.loss is None and select != "loss":
            chosen.append(following)
            continue
        # What comes before it saw nothing of it.
        longer = fit([*chosen, following], [fitted for fitted in fits if fitted.replacement.blocks[-1] < following - 1])
        reached = loss_of(longer)
        if budget.loss is not None and before is not None and reached > before + budget.loss:
            if not chosen:
                raise JobError(
                    f"replacing block {following} alone raises the loss by {reached - before:.4f} nats per token, "
                    f"above the tolerated {budget.loss}; try a larger --max-loss-increase or another --kind"
                )
            break
        chosen.append(following)
        fits, loss = longer, reached
        if select == "loss":
            scores[following] = reached
    if budget.loss is None and select != "loss":
        fits = fit(chosen)
        loss = loss_of(fits) if len(held_out) else None
    record = SelectionRecord(
        select=select,
        budget=str(budget),
        scores={str(index): value for index, value in scores.items() if select != "loss" or index in chosen},
        loss_before=before,
        loss_after=loss,
        tokens=held_out[:, 1:].numel(),
    )
    return fits, record


def _order(bench: Workbench, found: Sequence[int], template: Replacement, select: Select) -> dict[int, float]:
    """Scores by block, the first to be replaced first."""
    modules = tuple(
        bench.model.get_submodule(find_target(bench.stack, index, template.target)) for index in range(len(bench.stack))
    )
    scores: dict[int, float] = {}
    for start in range(0, len(modules), _AT_ONCE):
        some = BlockStack(bench.stack.path, modules[start : start + _AT_ONCE], bench.stack.rule)
        found_moments = collect_moments(bench.model, some, bench.batches, progress=bench.progress, first=start)
        for index, moments in enumerate(found_moments, start):
            scored = score_block(moments)
            linearity = scored.all_tokens.linearity
            share = linearity.held_out if linearity.held_out is not None else linearity.in_sample
            scores[index] = 1 - scored.cosine if select == "influence" else (share or 0.0)
    key: Callable[[int], float] = (lambda index: scores[index]) if select == "influence" else (lambda i: -scores[i])
    return {index: scores[index] for index in sorted(found, key=key)}
