"""Which places of an axis are named."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rectilinear.charts import Axis

# Letters that fit below a panel, and how many there are between two labels at least.
_ROOM, _GAP = 84, 3


def finish_ticks(axis: Any, about: Axis, most: int) -> None:
    """Name the places of an axis of matplotlib, at most so many where they are numbers."""
    from matplotlib.ticker import MaxNLocator

    if about.ticks:
        places = spaced(about.ticks)
        axis.set_ticks(places, [about.ticks[place] for place in places])
        for text in axis.get_ticklabels():
            text.set_parse_math(False)
        if axis.axis_name == "x":
            axis.axes.set_xlim(-0.5, len(about.ticks) - 0.5)
    elif about.whole:
        axis.set_major_locator(MaxNLocator(integer=True, nbins=most, min_n_ticks=1))


def spaced(labels: Sequence[str]) -> list[int]:
    """Which places get a label: each one, or each second, fifth, tenth, ... where not all fit; always the last."""

    def fits(one: int, two: int) -> bool:
        return (two - one) * _ROOM / len(labels) >= (len(labels[one]) + len(labels[two])) / 2 + _GAP

    last = len(labels) - 1
    strides = (digit * 10**power for power in range(len(str(last)) + 1) for digit in (1, 2, 5))
    for stride in strides:
        places = list(range(0, last + 1, stride))
        if all(fits(one, two) for one, two in pairwise(places)):
            break
    while places[-1] != last and places[-1] > 0 and not fits(places[-1], last):
        places.pop()
    return places if places[-1] == last else [*places, last]
