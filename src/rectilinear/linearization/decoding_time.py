"""How much longer, or less long, a model takes to decode a token with replacements."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from torch import Tensor

from rectilinear.linearization.fit import Fitted
from rectilinear.linearization.workbench import Workbench
from rectilinear.models.step_time import Decoder, StepTime, share_of_change
from rectilinear.models.surgery import Edits, swapped
from rectilinear.ranks import current

# How often the steps of the original are timed at first, as all else is compared with them; and how often two models
# take turns.
_OFTEN, _TURNS = 25, 3


@dataclass(frozen=True, eq=False)
class DecodingTime:
    """What a token takes to decode after a text, one at a time.

    Times are those of the first process, where several share the work.

    Attributes:
        original: of the original.
        ids: ``[1, tokens]``, the text, whose last token is decoded.
        decoder: the original after the others; None in other processes than the first.
    """

    original: StepTime
    ids: Tensor
    decoder: Decoder | None

    @classmethod
    def of(cls, bench: Workbench, ids: Tensor) -> DecodingTime:
        """That of a model.

        Raises:
            RequestError: it has no cache to decode with.
        """
        made: list[Decoder] = []

        def timed() -> StepTime:
            made.append(Decoder(bench.model, bench.stack, ids))
            return made[0].time(_OFTEN)

        original = current().from_first(timed)
        return cls(original, ids, made[0] if made else None)

    def change(self, bench: Workbench, fitted: Fitted) -> float:
        """How much longer it is with a replacement, as a share of the original's."""

        def timed() -> float:
            keeps = fitted.replacement.target == "mlp"  # what is in the cache
            with swapped(bench.model, fitted.edits):
                decoder = self.decoder if keeps and self.decoder else Decoder(bench.model, bench.stack, self.ids)
                after = decoder.time()
            return share_of_change(self.original, after, fitted.replacement.blocks)

        return current().from_first(timed)

    def beside(self, bench: Workbench, edits: Edits) -> tuple[float, float]:
        """Seconds of a token, those of the original and those with some edits, which take turns."""

        def timed() -> tuple[float, float]:
            found: tuple[list[float], list[float]] = [], []
            original = Decoder(bench.model, bench.stack, self.ids)
            with swapped(bench.model, edits):
                edited = Decoder(bench.model, bench.stack, self.ids)
            for _ in range(_TURNS):
                found[0].append(original.time().whole)
                with swapped(bench.model, edits):
                    found[1].append(edited.time().whole)
            before, after = map(median, found)
            return before, after

        return current().from_first(timed)
