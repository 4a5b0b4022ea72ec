"""What a request can replace in a model, checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.linearization.check_replacements import check_replacements
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Request
from rectilinear.models.depth import check_removal
from rectilinear.models.describe import count_parameters
from rectilinear.models.export import check_exportable
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.parts import Part, Parts, check_not_shared


@dataclass(frozen=True, eq=False)
class Scope:
    """What a request can replace in a model, which may be without weights, and what that saves."""

    request: Request
    model: Any
    stack: BlockStack
    width: int
    parts: Parts | None = None  # of a model with weights

    @cached_property
    def alternatives(self) -> tuple[list[Scope], dict[str, str]]:
        """Scopes of each kind and target that is chosen from, and why others cannot be put into this model.

        Raises:
            RequestError: none can, with the first reason.
        """
        found, reasons = list[Scope](), dict[str, str]()
        for request in self.request.alternatives():
            scope = replace(self, request=request)
            try:
                scope.check()
                if self.parts is not None:  # of a model with weights
                    scope.check_weights(None)
            except RequestError as error:
                reasons[f"{request.template.by} for the {request.template.target}"] = str(error)
            else:
                found.append(scope)
        if not found:
            raise RequestError(next(iter(reasons.values())))
        return found, reasons

    def runs(self) -> list[Replacement]:
        """Replacements like the template of each candidate, and of consecutive blocks as one where they may be."""
        longest = self.request.selection.span if self.request.template.target == "block" else 1
        found: list[tuple[int, ...]] = [(index,) for index in self.candidates]
        for length in range(2, longest + 1):
            begins = range(len(self.stack) - length + 1)
            runs = (tuple(range(begin, begin + length)) for begin in begins)
            found += [run for run in runs if {*run} <= {*self.replaceable} and length < len(self.stack)]
        return [self.request.template.model_copy(update={"blocks": run}) for run in found]

    def check(self) -> None:
        """Raise a `RequestError` for what cannot be done to this model, as far as that shows without its weights."""
        if self.request.selection.by_cost:
            _ = self.alternatives
            return
        template, named, count = self.request.template, self.request.named, len(self.stack)
        asked = [template.model_copy(update={"blocks": (count - 1,)})] if named is None else named
        check_replacements(asked, count, self.width)
        check_exportable(self.model, not all(one.is_stock for one in asked))
        if named is None and template.target == "block":
            self._check_limit()
        for trial in self._trials():
            removed = {index for replacement in trial for index in replacement.removed}
            check_removal(self.model, self.stack, [index for index in range(count) if index not in removed])

    def part(self, index: int, replacement: Replacement | None = None) -> Part:
        """What a replacement, by default one like the template, takes the place of; RequestError for nothing."""
        assert self.parts is not None
        one = (replacement or self.request.template).model_copy(update={"blocks": (index,)})
        return self.parts.part(index, one.target, bool(one.removed))

    def _check_place(self, index: int, one: Replacement) -> None:
        """Raise a `RequestError` for a block in which this replacement has no place."""
        part = self.part(index, one)
        if not one.by.keeps_weights:
            check_not_shared(self.model, part, one.is_stock)
        if one.by.remembers and part.role is None and self.parts is not None and self.parts.caches:
            raise RequestError(
                f"expected something that keeps a state of its own in the cache to put a {one.kind} in its place, got "
                f"{part.path}, which keeps nothing there; try `kind=affine`"
            )
        one.by.check_part(self.model, part)

    def check_weights(self, sha256: str | None) -> None:
        """Raise a `RequestError` for what cannot be done to the model's weights, which have this hash."""
        if self.request.selection.by_cost:
            _ = self.alternatives
            return
        plan = self.request.selection.plan
        if plan is not None and plan.model.sha256 != sha256:
            raise RequestError(
                f"expected a plan for this model, got one for {plan.model.id} with other weights (SHA-256 "
                f"{str(plan.model.sha256)[:12]}, not {str(sha256)[:12]}); was it made with another `dtype`?"
            )
        everything = [*chain(*self._trials())]
        check_exportable(self.model, not all(one.is_stock for one in everything))
        if self.request.named is None:  # where those that have no place are left out
            self._check_limit()
        else:
            for one in everything:
                for index in one.blocks:
                    self._check_place(index, one)
        for replacement in everything:
            replacement.by.check_model(self.model, self.stack, replacement.blocks[0])

    def _trials(self) -> Iterable[Sequence[Replacement]]:
        """The replacements; of a choice each by itself, so that what no choice could mend is found out."""
        named = self.request.named
        return map(self.request.group, ([index] for index in self.replaceable)) if named is None else [named]

    @cached_property
    def replaceable(self) -> list[int]:
        """Blocks that the template can replace: those with such a part, and with a block before where it needs one.

        Raises:
            RequestError: there is none.
        """
        indices = range(int(self.request.template.by.needs_block_before), len(self.stack))
        if self.parts is None:
            return [*indices]
        found, reasons = list[int](), list[RequestError]()
        for index in indices:
            try:
                self._check_place(index, self.request.template)
            except RequestError as error:
                reasons.append(error)
            else:
                found.append(index)
        if reasons and not found:
            raise reasons[0]
        return found

    @cached_property
    def too_large(self) -> list[int]:
        """Blocks whose replacement would have more parameters than they, where the model is to become smaller."""
        selection = self.request.selection
        shrinks = selection.budget is not None or selection.max_loss_increase is not None
        if self.request.named is not None or selection.by_cost or not shrinks:
            return []
        return [index for index in self.replaceable if self.saving([index]) < 0]

    @cached_property
    def candidates(self) -> list[int]:
        """Blocks to choose from."""
        return [index for index in self.replaceable if index not in self.too_large]

    @property
    def most(self) -> int:
        """How many of these can be replaced at once: a model keeps at least one block."""
        return len(self.candidates) - (self.request.template.is_stock and len(self.candidates) == len(self.stack))

    def saving(self, indices: Sequence[int]) -> int:
        """Parameters that replacing some blocks takes away, less those that it brings."""
        ones = self.request.group(indices)
        gone = tuple(f"{self.stack.path_of(block)}." for one in ones for block in one.removed)
        along = sum(count for path, count in self._along.items() if not path.startswith(gone)) if ones else 0
        return -sum(map(self.change, ones)) - along

    @cached_property
    def _along(self) -> Mapping[str, int]:
        """What comes along in a model that has its weights."""
        return {} if self.parts is None else self.request.template.by.comes_along(self.model, self.stack)

    def change(self, one: Replacement) -> int:
        """Parameters that a replacement brings, less those that it takes away."""
        return one.by.parameters(self._width_of(one.blocks[0]), one.target) - self._weight(one)

    def _width_of(self, index: int) -> int:
        """Width of what a stand-in takes: of several residual streams it is more than the configuration's."""
        return self.width if self.parts is None else self.part(index).width

    def _weight(self, replacement: Replacement) -> int:
        """Parameters of what is replaced and goes."""
        if replacement.by.keeps_weights:
            return 0
        if replacement.target == "block":
            return count_parameters(self.stack.blocks[index] for index in replacement.blocks)
        spans = [self.part(index, replacement).span(self.model) for index in replacement.blocks]
        return count_parameters(module for span in spans for module in span[:2])

    def _check_limit(self) -> None:
        """Refuse a count or budget that no choice of blocks can meet, and replacements that are all larger."""
        template, selection, most = self.request.template, self.request.selection, self.most
        advice = f"try a smaller `rank` or another `kind` than {template.kind}"
        if selection.count is not None and not 1 <= selection.count <= most:
            raise RequestError(f"expected `count` from 1 to {most}, got {selection.count}")
        saving = None if selection.budget is None else selection.budget.saving
        if saving is not None and template.by.keeps_weights:
            raise RequestError(
                f"expected no `budget` of parameters with `kind={template.kind}`, which keeps those of what it "
                "replaces; try `budget=cache=25%`, `count`, `blocks` or `max_loss_increase`"
            )
        if saving is not None:
            kept = self.candidates[len(self.candidates) - most :]
            largest = max(self.saving(kept), 0) / count_parameters([self.model])
            if not 0 < saving <= largest:
                raise RequestError(
                    f"expected `budget` above 0% and up to {largest:.1%}, which replacing every {template.target} "
                    f"saves, got {saving:.1%}; {advice}"
                )
        if self.too_large and not self.candidates:
            before = self._weight(*self.request.group(self.too_large[:1]))
            after = template.by.parameters(self._width_of(self.too_large[0]), template.target)
            raise RequestError(
                f"expected replacements that make the model smaller, got {template.by} of {after:,} parameters for "
                f"{before:,} ({template.target} {self.too_large[0]}); {advice}"
            )
