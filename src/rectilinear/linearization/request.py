"""What is to be replaced, checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.linearization.kinds import DEFAULT_KIND, make_kind
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.plan import WITHOUT, Replacement
from rectilinear.linearization.settings import Selection
from rectilinear.models.describe import count_parameters
from rectilinear.models.export import check_exportable
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.surgery import check_removal, find_target


@dataclass(frozen=True)
class Request:
    """What is to be replaced.

    Attributes:
        selection: in one of the ways to say it.
        template: the replacement of one block, whichever it is.
        named: the replacements, where they are named one by one; None where they are to be chosen.
    """

    selection: Selection
    template: Replacement
    named: tuple[Replacement, ...] | None

    @classmethod
    def of(cls, kind: Kind | str | None, selection: Selection) -> Request:
        """A request for what is selected to be replaced by a kind, or as its plan says.

        Raises:
            RequestError: no such kind, a kind beside a plan, or nothing that is selected.
        """
        by = kind if isinstance(kind, Kind) else make_kind(DEFAULT_KIND if kind is None else kind, {})
        template = Replacement(by=by, target=selection.target, blocks=(0,))
        if selection.plan is not None:
            if kind is not None:
                raise RequestError("expected no `kind` with `plan`, where it changes nothing; try without it")
            return cls(selection, template, selection.plan.replacements)
        if selection.blocks is not None:
            return cls(selection, template, tuple(group(selection.blocks, template, selection.merge)))
        if selection.count is None and selection.budget is None and selection.max_loss_increase is None:
            raise RequestError(
                "expected one of `blocks`, `count`, `budget`, `max_loss_increase`, `plan`, got none of them"
            )
        return cls(selection, template, None)

    @property
    def any_trainable(self) -> bool:
        """Whether there is anything to heal."""
        return any(one.by.trainable for one in ([self.template] if self.named is None else self.named))

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plan.json records it; nothing for a plan, which records it itself."""
        if self.selection.plan is not None:
            return {}
        chosen = self.selection.model_dump(include={"target", "merge"})
        return {"kind": self.template.kind, **chosen, **WITHOUT, **self.template.by.model_dump(mode="json")}

    def recipe(self) -> dict[str, Any]:
        """All that the replacements depend on, as JSON has it: the same recipe replaces the same by the same."""
        if self.named is not None:
            return {"replacements": [one.unfitted().model_dump(mode="json") for one in self.named]}
        chosen = self.selection.model_dump(include={"count", "budget", "max_loss_increase", "select", "merge"})
        return {"template": self.template.model_dump(mode="json"), **chosen}

    def check(self, model: Any, stack: BlockStack, width: int) -> None:
        """Refuse what cannot be done to a model, which may be without weights.

        Raises:
            RequestError: that is so.
        """
        last = self.template.model_copy(update={"blocks": (len(stack) - 1,)})
        asked = [last] if self.named is None else self.named
        check_replacements(asked, len(stack), width)
        check_exportable(model, not all(one.is_stock for one in asked))
        if self.named is None:
            check_limit(model, stack, self, width)
        for trial in self._trials(stack):
            for replacement in trial:
                for index in replacement.blocks:
                    find_target(stack, index, replacement.target)
            removed = {index for replacement in trial for index in replacement.removed}
            check_removal(model, stack, [index for index in range(len(stack)) if index not in removed])

    def check_weights(self, model: Any, stack: BlockStack, sha256: str | None) -> None:
        """Refuse what cannot be done to a model with these weights.

        Raises:
            RequestError: that is so.
        """
        plan = self.selection.plan
        if plan is not None and plan.model.sha256 != sha256:
            raise RequestError(
                f"expected a plan for this model, got one for {plan.model.id} with other weights (SHA-256 "
                f"{str(plan.model.sha256)[:12]}, not {str(sha256)[:12]}); was it made with another `dtype`?"
            )
        everything = [*chain(*self._trials(stack))]
        check_exportable(model, not all(one.is_stock for one in everything))
        for replacement in everything:
            replacement.by.check_model(model, stack, replacement.blocks[0])

    def _trials(self, stack: BlockStack) -> list[list[Replacement]]:
        """The replacements; of a choice each by itself, so that what no choice could mend is found out."""
        if self.named is not None:
            return [[*self.named]]
        return [group([index], self.template, False) for index in candidates(stack, self.template)]


def group(indices: Sequence[int], template: Replacement, merge: bool) -> list[Replacement]:
    """Replacements of some blocks like a template; consecutive blocks share one where they are merged or joined."""
    indices = sorted(indices)
    if not (merge or template.by.joins_blocks):
        return [template.model_copy(update={"blocks": (index,)}) for index in indices]
    runs = groupby(enumerate(indices), lambda item: item[1] - item[0])
    return [template.model_copy(update={"blocks": tuple(index for _, index in run)}) for _, run in runs]


def candidates(stack: BlockStack, template: Replacement) -> list[int]:
    """Blocks that a template can replace: those that have its target and, where it needs one, a block before."""
    found = list(range(int(template.by.needs_block_before), len(stack)))
    for index in found:
        find_target(stack, index, template.target)
    return found


def most_blocks(found: Sequence[int], stack: BlockStack, template: Replacement) -> int:
    """How many of some candidates can be replaced at once: a model keeps at least one block."""
    return len(found) - (template.is_stock and len(found) == len(stack))


def saving(model: Any, stack: BlockStack, replacements: Sequence[Replacement], width: int) -> int:
    """Parameters that replacements take away, less those that they bring."""
    saved = 0
    for replacement in replacements:
        paths = [find_target(stack, index, replacement.target) for index in replacement.blocks]
        saved += count_parameters(model.get_submodule(path) for path in paths)
        saved -= replacement.by.parameters(width, replacement.target)
    return saved


def larger(model: Any, stack: BlockStack, request: Request, width: int) -> list[int]:
    """Blocks whose replacement would have more parameters than they, where the model is to become smaller."""
    if request.named is not None or request.selection.count is not None:
        return []
    each = {index: group([index], request.template, False) for index in candidates(stack, request.template)}
    return [index for index, alone in each.items() if saving(model, stack, alone, width) < 0]


def check_limit(model: Any, stack: BlockStack, request: Request, width: int) -> None:
    """Refuse a count or budget that no choice of blocks can meet, and replacements that are all larger.

    Raises:
        RequestError: that is so.
    """
    template, selection = request.template, request.selection
    too_large = larger(model, stack, request, width)
    found = [index for index in candidates(stack, template) if index not in too_large]
    most, advice = most_blocks(found, stack, template), f"try a smaller `rank` or another `kind` than {template.kind}"
    if selection.count is not None and not 1 <= selection.count <= most:
        raise RequestError(f"expected `count` from 1 to {most}, got {selection.count}")
    if selection.budget is not None:
        kept = group(found[len(found) - most :], template, selection.merge)
        largest = max(saving(model, stack, kept, width), 0) / count_parameters([model])
        if not 0 < selection.budget <= largest:
            raise RequestError(
                f"expected `budget` above 0% and up to {largest:.1%}, which replacing every {template.target} saves, "
                f"got {selection.budget:.1%}; {advice}"
            )
    if too_large and not found:
        before = count_parameters([model.get_submodule(find_target(stack, too_large[0], template.target))])
        after = template.by.parameters(width, template.target)
        raise RequestError(
            f"expected replacements that make the model smaller, got {template.by} of {after:,} parameters for "
            f"{before:,} ({template.target} {too_large[0]}); {advice}"
        )


def check_replacements(replacements: Sequence[Replacement], num_blocks: int, width: int) -> None:
    """Refuse what cannot be done to a model of some blocks.

    Raises:
        RequestError: an index out of range or named twice, blocks that are not consecutive, a kind
            that its target cannot take, a rank that saves nothing, no block before where one is needed.
    """
    taken: set[tuple[int, str]] = set()
    for one in replacements:
        for index in one.blocks:
            if not 0 <= index < num_blocks:
                raise RequestError(f"expected blocks from 0 to {num_blocks - 1}, got {index}")
            for part in ("attention", "mlp", "block") if one.target == "block" else (one.target, "block"):
                if (index, part) in taken:
                    raise RequestError(f"expected each block to be replaced once, got block {index} twice")
        taken |= {(index, one.target) for index in one.blocks}
        if one.target in one.by.impossible:
            why = one.by.impossible[one.target]
            raise RequestError(f"expected another target than {one.target} for {one.kind}: {why}")
        if len(one.blocks) > 1 and one.target != "block":
            raise RequestError(f"expected one {one.target} a replacement, got {[*one.blocks]}; only blocks merge")
        if any(after != before + 1 for before, after in pairwise(one.blocks)):
            raise RequestError(f"expected consecutive blocks in one replacement, got {[*one.blocks]}")
        one.by.check(width)
    if len({index for one in replacements for index in one.removed}) == num_blocks:
        raise RequestError(f"expected at least one of {num_blocks} blocks to stay, got all of them removed")
    for one in replacements:
        before = one.blocks[0] - 1
        if one.by.needs_block_before and (before < 0 or (before, "block") in taken or (before, "mlp") in taken):
            raise RequestError(
                f"expected a block before {one.kind} block {one.blocks[0]} that stays, got "
                f"{'none' if before < 0 else f'block {before} replaced'}; try other blocks, or another `kind`"
            )
