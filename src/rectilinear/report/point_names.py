"""Where names of points stand, so that they neither cover one another nor leave their panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# To which side of its point a name can stand, across and up, in the order of preference. The page's script has the
# same (point_names.js), since places depend on how wide letters are where they are drawn.
_SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))

# Points of print between a name and its point.
_APART = 3.0


class Box(NamedTuple):
    """A rectangle, by its ends."""

    left: float
    low: float
    right: float
    high: float

    def shared(self, other: Box) -> float:
        """The area of both."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.high, other.high) - max(self.low, other.low)
        return max(across, 0.0) * max(up, 0.0)

    @property
    def area(self) -> float:
        """Of the rectangle."""
        return (self.right - self.left) * (self.high - self.low)


def find_sides(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    panel: Box,
    apart: float,
    bars: Sequence[Box] = (),
) -> list[tuple[int, int]]:
    """To which side of its point each name stands, across and up: -1, 0 or 1.

    Args:
        points: where they are.
        sizes: of their names, across and up.
        panel: what names are to stay in.
        apart: how far names are from the middle of their points.
        bars: what they are not to cover besides.
    """
    marks = [Box(x - apart / 2, y - apart / 2, x + apart / 2, y + apart / 2) for x, y in points]
    taken: list[Box] = []
    sides = []
    for point, size in zip(points, sizes, strict=True):

        def covered(side: tuple[int, int], point: Any = point, size: Any = size) -> float:
            box = _box(point, size, side, apart)
            # A name that cannot be read is worse than one across a bar.
            unread = box.area - box.shared(panel) + sum(box.shared(other) for other in taken)
            return 100 * unread + sum(box.shared(other) for other in (*marks, *bars))

        side = min(_SIDES, key=covered)  # of equal ones the first
        sides.append(side)
        taken.append(_box(point, size, side, apart))
    return sides


def _box(point: tuple[float, float], size: tuple[float, float], side: tuple[int, int], apart: float) -> Box:
    ends = []
    for place, length, way in zip(point, size, side, strict=True):
        middle = place + way * (apart + length / 2)
        ends.append((middle - length / 2, middle + length / 2))
    (left, right), (low, high) = ends
    return Box(left, low, right, high)


def place_names(axes: Axes) -> None:
    """Move the names of a panel's points, its annotations, to where there is room; the figure has been laid out."""
    names: list[Any] = [text for text in axes.texts if text.get_text()]
    scale = axes.figure.dpi / 72
    points = [tuple(axes.transData.transform(name.xy)) for name in names]
    extents = [name.get_window_extent() for name in names]
    window = axes.get_window_extent()
    panel = Box(window.x0, window.y0, window.x1, window.y1)
    sizes = [(extent.width, extent.height) for extent in extents]
    bars = [
        Box(low[0] - scale / 2, low[1], high[0] + scale / 2, high[1])
        for container in axes.containers
        for drawn in container[-1]
        for low, high in map(axes.transData.transform, drawn.get_segments())
        if len(container) == 3 and low[1] < high[1]
    ]
    across: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
    up: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}
    for name, (x, y) in zip(names, find_sides(points, sizes, panel, _APART * scale, bars), strict=True):
        name.set(ha=across[x], va=up[y], position=(_APART * x, _APART * y))
