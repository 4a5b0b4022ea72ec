"""The kind `Affine`."""

from __future__ import annotations

from typing import ClassVar

from rectilinear.linearization.kinds.base import LinearMap


class Affine(LinearMap):
    """An affine map of the target's input."""

    name: ClassVar[str] = "affine"
