"""Linearity between depths: the schema of ``pairs`` in ``profile.json``."""

from __future__ import annotations

from pydantic import Field

from rectilinear.core.scores import Linearity
from rectilinear.results import Record


class PairScore(Record):
    """Linearity over some tokens, without held-out scores; null where the data cannot give a value."""

    in_sample: float | None
    adjusted: float | None

    @classmethod
    def of(cls, scores: Linearity) -> PairScore:
        """The record of some scores."""
        return cls(in_sample=scores.in_sample, adjusted=scores.adjusted)


class PairScores(Record):
    """Scores of a pair of depths over some tokens; definitions in docs/method.md."""

    linearity: PairScore
    update_linearity: PairScore
    identity: float | None


class PairRecord(PairScores):
    """Scores of the way from one depth to a later one: 0 before the first block, 1 after it, and so on."""

    first: int
    last: int
    without_sinks: PairScores | None = Field(description="null where every token is a sink at some depth")


class PairsRecord(Record):
    """All pairs of depths."""

    depths: int
    tokens: int
    sinks: int = Field(description="tokens that stand out at any depth")
    columns: int | None = Field(
        default=None, description="of the random projection that later states are seen through; null: exact scores"
    )
    relative_error: float | None = Field(
        default=None,
        description="how far an estimated energy is from the true one, as a share of it (one standard deviation, at "
        "most): what is explained, what is left, what there is; scores are ratios of two of them; null of exact scores",
    )
    scores: tuple[PairRecord, ...]

    @property
    def seen(self) -> str:
        """What scores through a projection are worth, after a comma; nothing of exact ones."""
        if self.columns is None or self.relative_error is None:
            return ""
        return f", seen through {self.columns} random columns: energies are known to about {self.relative_error:.0%}"

    def by_length(self) -> dict[int, list[PairScores]]:
        """The ways over 1, 2, 4, 8 and so on blocks, and over all of them; without sinks where there are others."""
        found = {(pair.first, pair.last): pair.without_sinks or pair for pair in self.scores}
        last = self.depths - 1
        lengths = sorted({last, *(2**power for power in range(last.bit_length()) if 2**power < last)})
        return {steps: [found[first, first + steps] for first in range(self.depths - steps)] for steps in lengths}
