"""One replacement: what takes the place of what, and how it was fitted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_serializer, model_validator

from rectilinear.linearization.kinds import KINDS, make_kind
from rectilinear.linearization.kinds.base import Kind
from rectilinear.results import Record
from rectilinear.settings import Target

#: Options that every replacement in a file has, as they are where its kind has no such option.
WITHOUT: dict[str, Any] = {"rank": None, "taps": 0, "rates": []}


class FitRecord(Record):
    """How a replacement was fitted, and what it weighs."""

    ridge: float | None = Field(description="share of the correlation's unit diagonal; null where nothing is fitted")
    held_out: float | None = Field(description="share of the target's energy that maps of the other folds explain")
    features: int = Field(default=0, description="per token that the map takes; 0 where nothing is fitted")
    tokens: int
    parameters_before: int
    parameters_after: int
    windows: tuple[int, ...] = Field(default=(), description="that bounded attention has, by key-value head, or one")

    @property
    def parameters(self) -> str:
        """Their number before and after."""
        return f"{self.parameters_before:,} -> {self.parameters_after:,}"


class Replacement(Record):
    """What takes the place of a target in a block, or of consecutive blocks together.

    In a file the kind's options stand beside its name: ``{"kind": "filter", "blocks": [2], "rank": 24}``.
    """

    by: Kind
    target: Target = "block"
    blocks: tuple[int, ...] = Field(min_length=1, description="a block, or consecutive ones that are replaced as one")
    fit: FitRecord | None = None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "by" in given:
            return given
        own = {name: given[name] for name in ("target", "blocks", "fit") if name in given}
        name = given.get("kind")
        known = next((kind.model_fields for each, kind in KINDS.items() if each == name), {})
        options = {key: value for key, value in given.items() if key not in {"kind", *own}}
        for key in WITHOUT.keys() & options.keys() - known.keys():
            if options[key] in (WITHOUT[key], ()):
                del options[key]
        try:
            return {"by": make_kind(name, options), **own}
        except ValueError as error:
            raise ValueError(f"replacement of {given.get('blocks')}: {error}") from None

    @model_serializer(mode="plain")
    def _write(self) -> dict[str, Any]:
        fit = self.fit and self.fit.model_dump(mode="json")
        where = {"kind": self.kind, "target": self.target, "blocks": [*self.blocks]}
        return {**where, **WITHOUT, **self.by.model_dump(mode="json"), "fit": fit}

    @property
    def kind(self) -> str:
        """Name of its kind."""
        return self.by.name

    @property
    def where(self) -> str:
        """Its block, or the first and the last: ``2``, ``2-4``."""
        return "-".join(map(str, sorted({self.blocks[0], self.blocks[-1]})))

    @property
    def begins(self) -> int:
        """The first block that it changes, or takes anything from."""
        return self.blocks[0] - self.by.needs_block_before

    @property
    def removed(self) -> tuple[int, ...]:
        """Blocks that are gone for good, so that those after them move up."""
        if self.target != "block":
            return ()
        return self.blocks if self.by.removes_blocks else self.blocks[1:]

    @property
    def parts(self) -> frozenset[tuple[int, str]]:
        """What of which blocks it takes the place of."""
        targets = ("attention", "mlp") if self.target == "block" else (self.target,)
        return frozenset((block, target) for block in self.blocks for target in targets)

    @property
    def rests_on(self) -> frozenset[tuple[int, str]]:
        """What of which blocks has to stay for it, as it is written into that."""
        return frozenset({(self.begins, "mlp")} if self.by.needs_block_before else ())

    @property
    def touches(self) -> frozenset[tuple[int, str]]:
        """What of which blocks has other modules with it."""
        return self.parts | self.rests_on

    @property
    def is_stock(self) -> bool:
        """Whether the stock architecture knows all modules that it leaves."""
        return self.by.removes_blocks and self.target == "block"

    def unfitted(self) -> Replacement:
        """The same without a record of a fit."""
        return self.model_copy(update={"fit": None})


def words_of(replacements: Iterable[Replacement]) -> str:
    """What is replaced by what."""
    return in_words((f"{one.target} {one.by}", one.where) for one in replacements)


def in_words(made: Iterable[tuple[str, str]]) -> str:
    """What was made of which blocks, of which ones each."""
    found: dict[str, list[str]] = {}
    for what, where in made:
        found.setdefault(what, []).append(where)
    return "; ".join(f"{what}: {', '.join(blocks)}" for what, blocks in found.items())
