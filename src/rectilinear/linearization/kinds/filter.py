"""The kind `Filter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from rectilinear.linearization.kinds.base import LinearMap
from rectilinear.settings import ONE_WORD, Target, words_of


def _parse_rates(value: Any) -> Any:
    """``1,0.9`` as numbers, ``none`` as no numbers; anything else as it is."""
    words = words_of(value)
    if words and [word.lower() for word in words] == ["none"]:
        words = []
    try:
        return value if words is None else [float(word) for word in words]
    except ValueError:
        raise ValueError(f"expected `rates=1,0.9`, got {', '.join(words or ())!r}") from None


def _check_rates(rates: tuple[float, ...]) -> tuple[float, ...]:
    if not all(0 < rate <= 1 for rate in rates) or len({*rates}) < len(rates):
        raise ValueError(f"expected `rates` above 0 and up to 1, each once, got {[*rates]}")
    return rates


class Filter(LinearMap):
    """A causal linear filter: a map of the input, of the tokens before and of decaying means of them."""

    name: ClassVar[str] = "filter"
    impossible: ClassVar[Mapping[Target, str]] = {
        "mlp": "an MLP sees one token at a time, so that an affine map is all there is; try `kind=affine`"
    }

    taps: Annotated[int, Field(ge=0, le=64)] = 3
    """Earlier tokens that a filter sees."""
    rates: Annotated[tuple[float, ...], BeforeValidator(_parse_rates), AfterValidator(_check_rates), ONE_WORD] = (
        1.0,
        0.8,
    )
    """Rates of the decaying means that a filter sees, such as 1,0.9, or none; 1 is the plain mean."""

    @property
    def remembers(self) -> bool:
        """Earlier tokens, or means of them."""
        return bool(self.taps or self.rates)

    def module_options(self, target: Target) -> dict[str, Any]:
        """See `rectilinear.models.modeling_rectilinear.CausalFilter` for those of the features."""
        features = {"present": target == "block", "taps": self.taps, "rates": self.rates}
        return {**super().module_options(target), **features}

    def __str__(self) -> str:
        taps = f"{self.taps} tap{'s' * (self.taps != 1)}"
        return f"{super().__str__()}, {taps}, rates {', '.join(f'{rate:g}' for rate in self.rates) or 'none'}"
