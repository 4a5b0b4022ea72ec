"""A figure of all pairs of depths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from rectilinear.measurement.profile import Profile
from rectilinear.report import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"linearity": "Linearity of the later state", "update_linearity": "Linearity of the change"}


def plot_pairs(profile: Profile, ax: Axes | Sequence[Axes] | None = None) -> Figure:
    """How linear the way is from every depth (across) to every later one (up), adjusted for the number of tokens.

    Left the score of the later state, right that of the change up to there; without attention sinks where there are
    any. Depth 0 is before the first block.

    Args:
        profile: what to show, measured with ``pairs``.
        ax: two axes to draw into; default: those of a new figure.

    Raises:
        ValueError: it has no pairs.
    """
    pairs = profile.pairs
    if pairs is None:
        raise ValueError("expected a profile that was measured with pairs=True, got one without pairs")
    with style.drawing(ax, (7.2, 3.4), 1, 2, sharey=True) as (figure, axes):
        for panel, (score, title) in zip(axes, _TITLES.items(), strict=True):
            cells = numpy.full((pairs.depths, pairs.depths), numpy.nan)
            for pair in pairs.scores:
                found = getattr(pair.without_sinks or pair, score)
                value = found.in_sample if found.adjusted is None else found.adjusted
                cells[pair.last, pair.first] = numpy.nan if value is None else value
            image = panel.imshow(cells, origin="lower", cmap="viridis", vmin=min(0.0, numpy.nanmin(cells)), vmax=1.0)
            panel.set_title(title)
            panel.set_xlabel("from depth")
            style.mark_whole_numbers(panel.xaxis, 8)
            style.mark_whole_numbers(panel.yaxis, 8)
        axes[0].set_ylabel("to depth")
        label = "adjusted" + ", without sinks" * bool(pairs.sinks)
        figure.colorbar(image, ax=axes, label=label, shrink=0.9)
        if ax is None:
            style.say_what(figure, profile.model.id, profile.data)
    return figure
