"""Results as matplotlib figures, for notebooks and for axes of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rectilinear.evaluation.probe_charts import probes_chart
from rectilinear.evaluation.probe_record import Probe
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.dynamics_charts import dynamics_chart, several_dynamics_chart
from rectilinear.measurement.profile import Profile
from rectilinear.measurement.profile_charts import pairs_chart, profile_chart, profiles_chart
from rectilinear.report.static import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Given = Axes | Sequence[Axes] | None


def plot_profile(profile: Profile, *others: Profile, ax: Given = None) -> Figure:
    """Linearity and update linearity by depth, held out with 95 % intervals, and the levels to read them against.

    With fewer than 20 tokens a feature, adjusted scores stand in the place of held-out ones, which are then too low.

    Left the score of the block's output, with the level that doing nothing reaches (identity); where most blocks score
    above 0.9, by its distance from 1. Right the score of its update, with what inputs of other rows score for it
    in sample (shifted null, without sinks where there are any). In both the null level, what independent tokens would
    score, scores without attention sinks where there are any, and which blocks these decide.

    Of attentions and MLPs a panel each, of what they add to the residual stream. Of several profiles the held-out
    scores alone (in sample where there are none, adjusted where tokens are few), with sinks and without, a colour each.

    Args:
        profile: what to show.
        others: what to show beside it; by relative depth where models are not equally deep.
        ax: axes to draw into, as many as there are panels or, for the last of these alone, fewer; default: those of a
            new figure.
    """
    return draw(profiles_chart((profile, *others)) if others else profile_chart(profile), ax)


def plot_pairs(profile: Profile, ax: Given = None) -> Figure:
    """How linear the way is from every depth (across) to every later one (up), adjusted for the number of tokens.

    Left the score of the later state, right that of the change up to there; without attention sinks where there are
    any. Depth 0 is before the first block.

    Args:
        profile: what to show, measured with ``pairs``.
        ax: two axes to draw into; default: those of a new figure.

    Raises:
        ValueError: it has no pairs.
    """
    if profile.pairs is None:
        raise ValueError("expected a profile that was measured with pairs=True, got one without pairs")
    return draw(pairs_chart(profile, profile.pairs), ax)


def plot_dynamics(dynamics: Dynamics, *others: Dynamics, ax: Given = None) -> Figure:
    """How linear blocks are at each step of training.

    Above, the update linearity of every block (held out where there is such a score); cells without a score
    are hatched. Below, the means over blocks of update linearity and linearity: error bars are 95 %
    intervals over parts of the text, bands reach from the least to the most linear block. Every point has a column
    of the same width, whatever the steps between them, so that early and late steps can both be read.
    Of several trainings the means of update linearity alone, a colour each.

    Args:
        dynamics: what to show.
        others: what to show beside it.
        ax: axes to draw into: two, one above the other, or one for the means alone; default: those of a new figure.
    """
    return draw(several_dynamics_chart((dynamics, *others)) if others else dynamics_chart(dynamics), ax)


def plot_probe(probe: Probe, *others: Probe, ax: Axes | None = None) -> Figure:
    """What probes get right, by depth.

    The first metric of the task on the validation part with a 95 % interval, beside cross-validation on the
    training part, over the level of the commonest answer. Of several probes the validation part alone, a colour each.

    Args:
        probe: what to show.
        others: what to show beside it, of the same task.
        ax: axes to draw into; default: those of a new figure.
    """
    return draw(probes_chart((probe, *others)), ax)
