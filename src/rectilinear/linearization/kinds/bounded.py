"""The kind `Bounded`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Parameter
from pydantic import Field, NonNegativeInt, PositiveInt

from rectilinear.linearization.kinds.base import Kind
from rectilinear.settings import Target

if TYPE_CHECKING:
    from torch import nn

    from rectilinear.linearization.fit import Fit, Site
    from rectilinear.linearization.replacement import Replacement
    from rectilinear.linearization.windows import Wanted
    from rectilinear.linearization.workbench import Workbench
    from rectilinear.models.parts import Part

Far = Literal["none", "mean", "centroids"]

_ATTENTION = "only attention sees a window; try `target=attention`"


class Bounded(Kind):
    """The attention's own, of the first tokens of a document and the last ones, and of sums over the others."""

    name: ClassVar[str] = "bounded"
    impossible: ClassVar[Mapping[Target, str]] = {"block": _ATTENTION, "mlp": _ATTENTION}
    trainable: ClassVar[bool] = False
    keeps_weights: ClassVar[bool] = True

    window: PositiveInt = 32
    """Last tokens that bounded attention sees, the querying one among them: a mean over key-value heads."""
    sinks: NonNegativeInt = 4
    """First tokens of a document that bounded attention sees, too."""
    far: Far = "centroids"
    """What it gets of the tokens between: nothing, their mean value, or mean values by centroids of its queries."""
    centroids: Annotated[int, Field(ge=2, le=64)] = 4
    """Centroids of the queries of each head."""
    uniform: bool = False
    """The same window for all key-value heads; else those get long ones that lose most with short ones."""
    refit: Annotated[bool, Parameter(negative="--no-refit")] = True
    """With a far value: map what the heads give, and mean values of far tokens, to what the residual stream lacks."""

    def check_given(self) -> None:
        """Nothing of what is far is needed without it, and no centroids for a mean."""
        if self.far != "centroids":
            self.refuse_unused(f"with `far={self.far}`", "centroids", *["refit"] * (self.far == "none"))

    @property
    def remembers(self) -> bool:
        """The tokens that are still seen."""
        return True

    @property
    def _wanted(self) -> Wanted:
        from rectilinear.linearization.windows import Wanted

        count = {"none": 0, "mean": 1, "centroids": self.centroids}[self.far]
        return Wanted(self.window, self.sinks, count, self.uniform, self.refit)

    def check_part(self, model: nn.Module, part: Part) -> None:
        """The attention has to call transformers' registry of attention functions."""
        from rectilinear.models.attention_probe import find_attention

        find_attention(model, part)

    def features(self, width: int, target: Target) -> int:
        """Of the map of what is missing, about: what the heads give, which may be wider, mean values, and 1."""
        return 3 * width + 1 if self.refit and self.far != "none" else 0

    def prepare(self, bench: Workbench, replacements: Sequence[Replacement]) -> Mapping[Replacement, Any]:
        """Windows of all key-value heads, and far summaries for these."""
        from rectilinear.linearization.allotment import allot
        from rectilinear.linearization.windows import survey_all

        if self.far == "none" and self.uniform:
            return {}
        surveys = survey_all(bench, replacements, self._wanted)
        windows = allot(surveys, self.window)
        return dict(zip(replacements, zip(surveys, windows, strict=True), strict=True))

    def fit(self, site: Site) -> Fit:
        """Windows and far summaries are there already; what the heads give is mapped to what is missing."""
        from rectilinear.linearization.bounded_refit import place

        return place(site, self._wanted)

    def __str__(self) -> str:
        far = "" if self.far == "none" else f", far {self.far}"
        far += f" {self.centroids}" if self.far == "centroids" else ""
        far += ", not refitted" if far and not self.refit else ""
        return f"bounded, window {self.window}{' each' * self.uniform}, sinks {self.sinks}{far}"
