"""The mean of a score over blocks, and its spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rectilinear.measurement.profile import LinearityRecord
from rectilinear.measurement.score_choice import ScoreChoice
from rectilinear.tables import Cell, Estimate


@dataclass(frozen=True)
class Mean:
    """A score at one step of training, or of a profile, over all blocks that have it.

    Attributes:
        step: optimizer steps.
        mean: over blocks; None where no block has the score, as are the others then.
        stderr: at most this is the standard error of the mean over parts of the text: the mean of the blocks' own. They
            are measured on the same tokens, so theirs do not average out. None without held-out scores.
        half_width: half of the interval of the mean, from the blocks' own in the same way; None without them.
        lowest, highest: of the blocks' scores.
        least, most: the blocks that have these.
    """

    step: int
    mean: float | None = None
    stderr: float | None = None
    half_width: float | None = None
    lowest: float | None = None
    highest: float | None = None
    least: int | None = None
    most: int | None = None

    def cells(self) -> list[Cell]:
        """The mean, the least and the most linear block, as a table has them."""
        if self.mean is None:
            return [None, None, None]
        spread = [f"({self.least}) {self.lowest:.3f}", f"({self.most}) {self.highest:.3f}"]
        return [Estimate(self.mean, self.stderr), *spread]


def mean_of(records: Mapping[int, LinearityRecord], choice: ScoreChoice, step: int = 0) -> Mean:
    """The mean over blocks of the scores that stand for them, by index, with its spread."""
    scores = {index: choice.value(record) for index, record in records.items()}
    values = {index: score for index, score in scores.items() if score is not None}
    if not values:
        return Mean(step)
    error, half = (
        None if None in errors else sum(filter(None, errors)) / len(errors)
        for errors in ([of(records[index]) for index in values] for of in (choice.stderr, choice.half_width))
    )
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    return Mean(step, sum(values.values()) / len(values), error, half, values[least], values[most], least, most)
