"""What is to be replaced, checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, groupby
from typing import Any, get_args

from rectilinear.errors import RequestError
from rectilinear.linearization.check_replacements import check_replacements
from rectilinear.linearization.kinds import DEFAULT_KIND, make_kind
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.replacement import WITHOUT, Replacement
from rectilinear.linearization.settings import WAYS, Selection
from rectilinear.models.depth import check_removal
from rectilinear.models.describe import count_parameters
from rectilinear.models.export import check_exportable
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.parts import Part, Parts, check_not_shared
from rectilinear.settings import Target


@dataclass(frozen=True)
class Request:
    """What is to be replaced: what is selected, by replacements of single blocks that are like a template."""

    selection: Selection
    template: Replacement

    @classmethod
    def of(cls, kind: Kind | str | None, selection: Selection) -> Request:
        """A request for what is selected to be replaced by a kind, or as its plan says.

        Raises:
            RequestError: no such kind, a kind beside a plan, or nothing that is selected.
        """
        by = kind if isinstance(kind, Kind) else make_kind(DEFAULT_KIND if kind is None else kind, {})
        for other in ("plan", "choices"):
            if getattr(selection, other) is not None and kind is not None:
                raise RequestError(f"expected no `kind` with `{other}`, where it changes nothing; try without it")
        if all(getattr(selection, way) is None for way in WAYS):
            raise RequestError(f"expected one of {', '.join(f'`{way}`' for way in WAYS)}, got none of them")
        request = cls(selection, Replacement(by=by, target=selection.target or "block", blocks=(0,)))
        if not request.templates:
            target = request.template.target
            why = "; ".join(each.impossible[target] for each in selection.choices or ())
            raise RequestError(f"expected `choices` that can take the place of {target}s, got none: {why}")
        return request

    @cached_property
    def named(self) -> Sequence[Replacement] | None:
        """The replacements, where they are named one by one; None where they are to be chosen."""
        if self.selection.plan is not None:
            return self.selection.plan.replacements
        return None if self.selection.blocks is None else self.group(self.selection.blocks)

    @property
    def any_trainable(self) -> bool:
        """Whether there is anything to heal."""
        return any(one.by.trainable for one in ([*self.templates] if self.named is None else self.named))

    @property
    def templates(self) -> Sequence[Replacement]:
        """What is chosen from where replacements are not named: of each kind for each target that it can take."""
        selection = self.selection
        if selection.choices is None:
            return [self.template]
        targets = [selection.target] if selection.target else get_args(Target)
        return [
            self.template.model_copy(update={"by": kind, "target": target})
            for kind in selection.choices
            for target in targets
            if target not in kind.impossible
        ]

    def alternatives(self) -> list[Request]:
        """Requests for each of what is chosen from, without a limit."""
        selection = self.selection.model_copy(update={"choices": None, "budget": None})
        return [Request(selection, template) for template in self.templates]

    def settings(self) -> dict[str, Any]:
        """What was asked for, as plan.json records it; nothing for a plan, which records it itself."""
        if self.selection.plan is not None:
            return {}
        chosen = self.selection.model_dump(mode="json", exclude={"plan", "stack"})
        if self.selection.choices is not None:
            return chosen
        return {"kind": self.template.kind, **chosen, **WITHOUT, **self.template.by.model_dump(mode="json")}

    def recipe(self) -> dict[str, Any]:
        """All that the replacements depend on, as JSON has it: the same recipe replaces the same by the same."""
        if self.named is not None:
            return {"replacements": [one.unfitted().model_dump(mode="json") for one in self.named]}
        templates = [template.model_dump(mode="json") for template in self.templates]
        return {"templates": templates, **self.selection.model_dump(exclude={"plan", "blocks", "choices", "stack"})}

    def group(self, indices: Sequence[int]) -> list[Replacement]:
        """Replacements of some blocks: one for consecutive blocks where they are merged, or need a block before."""
        indices = sorted(indices)
        runs: Iterable[Iterable[int]] = [[index] for index in indices]
        if self.selection.merge or self.template.by.needs_block_before:
            numbered = groupby(enumerate(indices), lambda item: item[1] - item[0])
            runs = ([index for _, index in run] for _, run in numbered)
        return [self.template.model_copy(update={"blocks": tuple(run)}) for run in runs]


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
        return -sum(map(self.change, self.request.group(indices)))

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
