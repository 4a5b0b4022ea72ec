"""The kind `Bounded`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeInt, PositiveInt

from rectilinear.linearization.kinds.base import Kind
from rectilinear.settings import Target

if TYPE_CHECKING:
    from torch import nn

    from rectilinear.linearization.fit import Fit, Site
    from rectilinear.models.parts import Part

_ATTENTION = "only attention sees a window; try `target=attention`"


class Bounded(Kind):
    """The attention's own weights, on the first tokens of a document and the last ones alone (arXiv 2309.17453)."""

    name: ClassVar[str] = "bounded"
    impossible: ClassVar[Mapping[Target, str]] = {"block": _ATTENTION, "mlp": _ATTENTION}
    trainable: ClassVar[bool] = False
    keeps_weights: ClassVar[bool] = True

    window: PositiveInt = 32
    """Last tokens that bounded attention sees, the querying one among them."""
    sinks: NonNegativeInt = 4
    """First tokens of a document that bounded attention sees, too."""

    @property
    def remembers(self) -> bool:
        """The tokens that are still seen."""
        return True

    def check_part(self, model: nn.Module, part: Part) -> None:
        """The attention has to call transformers' registry of attention functions."""
        from rectilinear.models.attention_probe import find_attention

        find_attention(model, part)

    def fit(self, site: Site) -> Fit:
        """Nothing is fitted."""
        from rectilinear.linearization.fit import Fit
        from rectilinear.models.attention_probe import find_attention
        from rectilinear.models.bounded_attention import bounded_attention

        bench, (part,) = site.bench, site.parts
        with site.trying():
            path = find_attention(bench.model, part, bench.one_row)
        new = bounded_attention(
            bench.model.get_submodule(path),
            bench.padding,
            window=self.window,
            sinks=self.sinks,
            cache_index=part.cache_layers or None,
        )
        return Fit({path: new})

    def __str__(self) -> str:
        return f"bounded, window {self.window}, sinks {self.sinks}"
