"""How much of a model a linearization keeps at most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rectilinear.settings import words_of

#: What a budget can be of.
QUANTITIES = ("parameters", "cache")


@dataclass(frozen=True)
class Budget:
    """Limits that hold together.

    Attributes:
        saving: share of the model's parameters that is saved at least; None for no limit.
        cache: share of the cache's bytes that is kept at most; None for no limit.
    """

    saving: float | None = None
    cache: float | None = None

    @classmethod
    def parse(cls, value: Any) -> Any:
        """``25%`` and 0.25 as what is saved, ``parameters=80%,cache=25%`` as what is kept; anything else as it is."""
        if isinstance(value, float | int) and not isinstance(value, bool):
            return cls(saving=_finite(float(value)))
        words = words_of(value)
        if words is None:
            return value
        if len(words) == 1 and "=" not in words[0]:
            return cls(saving=_parse_share(words[0], value))
        found: dict[str, float] = {}
        for word in words:
            name, _, share = word.partition("=")
            if name not in QUANTITIES or name in found:
                raise ValueError(f"expected `budget=parameters=80%,cache=25%`, each once, got {value!r}")
            found[name] = _parse_share(share, value)
            if not 0 < found[name] < 1:
                raise ValueError(f"expected a share above 0% and below 100% to keep of {name}, got {share}")
        kept = found.get("parameters")
        return cls(saving=None if kept is None else round(1 - kept, 12), cache=found.get("cache"))

    def limits(self, whole: Mapping[str, float]) -> dict[str, float]:
        """How much each limited quantity changes at most, by what there is of it."""
        shares = {"parameters": self.saving, "cache": None if self.cache is None else 1 - self.cache}
        return {name: -share * whole[name] for name, share in shares.items() if share is not None}

    def settings(self) -> float | str:
        """As it is recorded, and parsed again: a number where that is all."""
        return self.saving if self.saving is not None and self.cache is None else str(self)

    def __str__(self) -> str:
        kept = {"parameters": self.saving if self.saving is None else 1 - self.saving, "cache": self.cache}
        return ",".join(f"{name}={100 * share:.6g}%" for name, share in kept.items() if share is not None)


def _parse_share(word: str, whole: Any) -> float:
    try:
        share = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        raise ValueError(f"expected `budget=25%`, got {whole!r}") from None
    if share >= 1 and not word.endswith("%"):
        raise ValueError(f"expected `budget=25%` or 0.25, got {whole!r}; try `budget={str(whole).strip()}%`")
    return _finite(share)


def _finite(share: float) -> float:
    if not math.isfinite(share):
        raise ValueError(f"expected `budget` to be a finite number, got {share}")
    return share
