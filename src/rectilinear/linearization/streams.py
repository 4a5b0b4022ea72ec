"""The original model and the one that is being edited, gone through side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType

from torch import Tensor, nn

from rectilinear.models.capture import Passage, Span, run_until
from rectilinear.models.logits import row_logits
from rectilinear.models.surgery import Edits, swapped
from rectilinear.models.walk import Passes
from rectilinear.text.batches import tensors_of


class Streams:
    """The rows on their way through the original and through the model as edited so far, at one depth in both.

    They go on when something is to be fitted: any number of replacements takes each row through each block of both
    models once.
    """

    def __init__(self, original: Passes) -> None:
        self._model, self._original = original.model, original
        self._edited = self._original  # until there is an edit
        self._edits: Edits = {}
        self._to_come: list[tuple[int, Edits]] = []

    def edit(self, depth: int, edits: Edits) -> None:
        """Have modules at or after a depth, which is still to be gone through, replaced by some more."""
        if depth < self._original.depth:
            raise ValueError(f"expected an edit from block {self._original.depth} on, got one at block {depth}")
        self._to_come.append((depth, edits))

    def advance(self, to: int) -> None:
        """Go on to a depth, no less than that of any edit."""
        for depth, edits in self._to_come:
            self._go(depth)
            if edits and not self._edits:
                self._edited = self._original.branch()
            self._edits = {**self._edits, **edits}
        self._to_come.clear()
        self._go(to)

    def _go(self, to: int) -> None:
        for depth in range(self._original.depth, to):  # together, so that weights on disk are read once
            self._original.advance(depth + 1)
            if self._edited is not self._original:
                self._edited.advance(depth + 1, self._edits)

    def close(self) -> None:
        """Let go what they have in memory."""
        self._original.close()
        self._edited.close()

    def trying(self) -> AbstractContextManager[None]:
        """While open, a pass of the original over the first row here goes no further back than it must."""
        return self._original.resumed(self._original.numbers[0], rows=1)

    def original(self, batch: int, modules: Sequence[nn.Module | Span], edits: Edits) -> list[Passage]:
        """What passes some modules of the original with some edits, in a batch."""
        with swapped(self._model, edits), self._original.resumed(batch):
            return run_until(self._model, self._original.batches[batch], modules)

    def logits(self, batch: int, edits: Edits, *, edited: bool = False) -> Tensor:
        """Logits ``[rows, seq_len, vocabulary]`` of the original with some edits, after where it stands, in a batch.

        Or of the edited model with some more edits.
        """
        passes, edits = (self._edited, {**self._edits, **edits}) if edited else (self._original, edits)
        with swapped(self._model, edits), passes.resumed(batch):
            return row_logits(self._model, tensors_of(passes.batches[batch])[0])

    def passages(
        self,
        batch: int,
        edited: Sequence[nn.Module | Span],
        original: Sequence[nn.Module | Span],
        edits: Edits = MappingProxyType({}),
    ) -> tuple[list[Passage], list[Passage]]:
        """What passes some modules of the edited model, with some more edits, and of the original, in a batch."""
        inputs = self._original.batches[batch]
        if not self._edits and not edits:
            with self._original.resumed(batch):
                found = run_until(self._model, inputs, [*edited, *original])
            return found[: len(edited)], found[len(edited) :]
        with self._original.resumed(batch):
            theirs = run_until(self._model, inputs, original)
        with swapped(self._model, {**self._edits, **edits}), self._edited.resumed(batch):
            return run_until(self._model, inputs, edited), theirs
