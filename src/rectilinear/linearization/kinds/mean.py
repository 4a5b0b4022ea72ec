"""The kind `Mean`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rectilinear.linearization.kinds.base import Kind
from rectilinear.settings import Target

if TYPE_CHECKING:
    from rectilinear.linearization.fit import Fit, Site


class Mean(Kind):
    """The target's mean output (a whole block's mean update), a constant: the null of all replacements."""

    name: ClassVar[str] = "mean"

    def parameters(self, width: int, target: Target) -> int:
        """Those of the constant."""
        return width

    def fit(self, site: Site) -> Fit:
        """The mean is what least squares give where nothing varies that it could be mapped from."""
        import torch

        new = site.stand_in(kind=self.name)
        fit = site.regress(new, features=lambda x: torch.zeros_like(x[..., :1]))
        if fit.map:
            new.load_state_dict({"map.0.bias": fit.map.bias})
        return fit
