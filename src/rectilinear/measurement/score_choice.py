"""Which of its scores stands for a block, in figures, words, means and tests alike; and how a score is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rectilinear.measurement.settings import TOKENS_A_FEATURE

if TYPE_CHECKING:
    from rectilinear.measurement.profile import LinearityRecord

#: Why adjusted scores stand for blocks, in a sentence.
WHY_ADJUSTED = (
    f"With fewer than {TOKENS_A_FEATURE} tokens a feature, held-out scores are too low and scores in sample too high: "
    "adjusted scores, corrected for the number of tokens, stand in their place, and have no intervals."
)

# What a score below 0 says, which is no share.
_NOTHING = "nothing (worse than the mean)"


def are_few(tokens: int, width: int | None) -> bool:
    """Whether these are too few tokens for held-out scores, which then are biased down."""
    return tokens < TOKENS_A_FEATURE * (width or 0)


@dataclass(frozen=True)
class ScoreChoice:
    """The scores that stand for the blocks of a result.

    They are held-out ones, in sample where nothing was held out. With few tokens a feature, where the first are biased
    down and the others up, they are adjusted ones; none where there are no more tokens than features.

    Attributes:
        few: whether there are fewer tokens a feature than held-out scores need.
    """

    few: bool = False

    @classmethod
    def of(cls, result: Any) -> ScoreChoice:
        """The choice for a result that has data and a model."""
        return cls(are_few(result.data.tokens, result.model.width))

    def corrected(self, record: LinearityRecord) -> float | None:
        """The score that is corrected for what a map learns of noise; None where there is none."""
        return record.adjusted if self.few else record.held_out

    def value(self, record: LinearityRecord) -> float | None:
        """The score that stands for the block."""
        found = self.corrected(record)
        return record.in_sample if found is None and not self.few else found

    def of_all_rows(self, record: LinearityRecord) -> float | None:
        """The score of the map that was fitted on all rows, on these: in sample; adjusted where there are few."""
        return record.adjusted if self.few else record.in_sample

    def stderr(self, record: LinearityRecord) -> float | None:
        """The standard error of the score; None where it has none."""
        return None if self.few else record.stderr

    def half_width(self, record: LinearityRecord) -> float | None:
        """Half of the interval of the score; None where it has none."""
        return None if self.few else record.half_width

    def name(self, records: Iterable[LinearityRecord]) -> str:
        """What scores of some blocks are called."""
        if self.few:
            return "adjusted"
        return "held out" if any(record.held_out is not None for record in records) else "in sample"


def in_percent(share: float) -> str:
    """A score as a share of what is explained; below 0 it is none."""
    return f"{100 * share:.1f} %" if share >= 0 else _NOTHING


def from_to(shares: Iterable[float | None]) -> str:
    """The least and the largest of some scores; "no share that is known" where there are none."""
    known = [share for share in shares if share is not None]
    if not known:
        return "no share that is known"
    least, most = min(known), max(known)
    if least >= 0:
        return f"{in_percent(least)} to {in_percent(most)}"
    return _NOTHING if most < 0 else f"between {_NOTHING} and {in_percent(most)}"
