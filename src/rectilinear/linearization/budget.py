"""How much of a model a linearization keeps at most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rectilinear.settings import words_of

#: What a budget can be of.
QUANTITIES = ("parameters", "cache", "decoding")


@dataclass(frozen=True)
class Budget:
    """Limits that hold together.

    Attributes:
        saving: share of the model's parameters that is saved at least; None for no limit.
        cache: share of the cache's bytes that is kept at most; None for no limit.
        decoding: share of the time to decode a token that is kept at most; None for no limit.
    """

    saving: float | None = None
    cache: float | None = None
    decoding: float | None = None

    @property
    def measured(self) -> bool:
        """Whether it is of something that is known of no replacement before it was tried."""
        return self.cache is not None or self.decoding is not None

    @property
    def kept(self) -> dict[str, float]:
        """Shares that are kept at most, of what is limited."""
        parameters = None if self.saving is None else 1 - self.saving
        shares = {"parameters": parameters, "cache": self.cache, "decoding": self.decoding}
        return {name: share for name, share in shares.items() if share is not None}

    @classmethod
    def parse(cls, value: Any) -> Any:
        """``25%`` and 0.25 as what is saved, ``parameters=80%,cache=25%`` as what is kept; anything else as it is.

        What can be kept a share of is in `QUANTITIES`.
        """
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
                raise ValueError(f"expected `budget=parameters=80%,cache=25%,decoding=70%`, each once, got {value!r}")
            usual = f"expected `budget=parameters=80%,cache=25%,decoding=70%`, got {value!r}"
            found[name] = _parse_kept(name, share, usual, all_of_it=name == "parameters")
        kept = found.pop("parameters", None)
        return cls(saving=None if kept is None else round(1 - kept, 12), **found)

    def limits(self, whole: Mapping[str, float]) -> dict[str, float]:
        """How much each limited quantity changes at most, by what there is of it."""
        saved = {name: 1 - share for name, share in self.kept.items()}
        saved |= {} if self.saving is None else {"parameters": self.saving}  # as it was given
        return {name: -share * whole[name] for name, share in saved.items()}

    def settings(self) -> float | str:
        """As it is recorded, and parsed again: a number where that is all."""
        return self.saving if self.saving is not None and not self.measured else str(self)

    def __str__(self) -> str:
        return ",".join(f"{name}={percent(share)}" for name, share in self.kept.items())


@dataclass(frozen=True)
class Sweep:
    """Budgets that differ in one quantity.

    Attributes:
        quantity: one of QUANTITIES.
        shares: of it that are kept at most.
    """

    quantity: str
    shares: tuple[float, ...]

    @classmethod
    def parse(cls, value: Any) -> Any:
        """``parameters=90%,75%,60%`` as shares of one quantity that are kept; anything else as it is."""
        if value is None or isinstance(value, cls):
            return value
        usual = f"expected `sweep=parameters=90%,75%,60%`, shares of one quantity to keep, got {value!r}"
        words = words_of(value) or [""]
        name, _, first = words[0].partition("=")
        if name not in QUANTITIES:
            raise ValueError(usual)
        return cls(name, tuple(_parse_kept(name, share, usual) for share in (first, *words[1:])))

    def budgets(self, budget: Budget) -> Sequence[Budget]:
        """A budget of that quantity and others like it, with each of the shares for its own; the loosest first."""
        if self.quantity == "parameters":
            saved = {budget.saving or 0.0, *(round(1 - share, 12) for share in self.shares)}
            return [replace(budget, saving=share) for share in sorted(saved)]
        shares = {getattr(budget, self.quantity) or 1.0, *self.shares}
        return [replace(budget, **{self.quantity: share}) for share in sorted(shares, reverse=True)]

    def __str__(self) -> str:
        return f"{self.quantity}={','.join(map(percent, self.shares))}"


def percent(share: float) -> str:
    """A share as it is written."""
    return f"{100 * share:.6g}%"


def _parse_kept(name: str, word: str, usual: str, *, all_of_it: bool = False) -> float:
    """A share that is kept of a quantity, perhaps all of it."""
    share = _share(word)
    if share is None or (share > 1 and not word.endswith("%")):
        raise ValueError(f"{usual}; try shares such as 75%, or 0.75")
    if not 0 < share < 1 and not (all_of_it and share == 1):
        raise ValueError(f"expected a share above 0% and below 100% to keep of {name}, got {word}")
    return share


def _parse_share(word: str, whole: Any) -> float:
    share = _share(word)
    if share is None:
        raise ValueError(f"expected `budget=25%`, got {whole!r}")
    if share >= 1 and not word.endswith("%"):
        raise ValueError(f"expected `budget=25%` or 0.25, got {whole!r}; try `budget={str(whole).strip()}%`")
    return _finite(share)


def _share(word: str) -> float | None:
    """``75%`` or 0.75 as a number; None for anything else."""
    try:
        return round(float(word[:-1]) / 100 if word.endswith("%") else float(word), 12)
    except ValueError:
        return None


def _finite(share: float) -> float:
    if not math.isfinite(share):
        raise ValueError(f"expected `budget` to be a finite number, got {share}")
    return share
