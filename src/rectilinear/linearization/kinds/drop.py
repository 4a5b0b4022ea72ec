"""The kind `Drop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rectilinear.linearization.kinds.base import Kind

if TYPE_CHECKING:
    from rectilinear.linearization.fit import Fit, Site


class Drop(Kind):
    """Nothing: the target is left out."""

    name: ClassVar[str] = "drop"
    removes_blocks: ClassVar[bool] = True
    trainable: ClassVar[bool] = False

    def fit(self, site: Site) -> Fit:
        """Nothing is fitted."""
        from rectilinear.linearization.fit import Fit

        return Fit(site.left_out())
