"""What is to be replaced, checked before any work is done for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, get_args

from rectilinear.errors import RequestError
from rectilinear.linearization.kinds import DEFAULT_KIND, make_kind
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.replacement import WITHOUT, Replacement
from rectilinear.linearization.settings import WAYS, Selection
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
        for each in (by, *(selection.choices or ())):
            each.check_given()
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
        chosen |= {"kind": self.template.kind, "target": self.template.target}
        return {**chosen, **WITHOUT, **self.template.by.model_dump(mode="json")}

    def recipe(self) -> dict[str, Any]:
        """All that the replacements depend on, as JSON has it: the same recipe replaces the same by the same."""
        if self.named is not None:
            return {"replacements": [one.unfitted().model_dump(mode="json") for one in self.named]}
        templates = [template.model_dump(mode="json") for template in self.templates]
        return {
            "templates": templates,
            **self.selection.model_dump(exclude={"plan", "blocks", "choices", "stack", "sweep"}),
        }

    def group(self, indices: Sequence[int]) -> list[Replacement]:
        """Replacements of some blocks: one for consecutive blocks where they are merged, or need a block before."""
        indices = sorted(indices)
        runs: Iterable[Iterable[int]] = [[index] for index in indices]
        if self.selection.merge or self.template.by.needs_block_before:
            numbered = groupby(enumerate(indices), lambda item: item[1] - item[0])
            runs = ([index for _, index in run] for _, run in numbered)
        return [self.template.model_copy(update={"blocks": tuple(run)}) for run in runs]
