"""A model on the bench: what stand-ins are fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.core.moments import holds_float64
from rectilinear.errors import RequestError
from rectilinear.linearization.kept_fits import KeptFits
from rectilinear.measurement.partners import Schedule
from rectilinear.measurement.pieces import count_rows
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.parts import Parts
from rectilinear.models.running import device_of
from rectilinear.models.stand_ins import PaddingMask, watch_padding
from rectilinear.models.walk import Passes, Walk
from rectilinear.progress import Progress
from rectilinear.ranks import current
from rectilinear.text.batches import Batch, first_row

# This share of the rows, the last ones, is never fitted on: losses are measured on it.
_HELD_OUT = 0.1


def count_fitted(ids: Tensor) -> int:
    """How many of some rows are fitted on."""
    return len(ids) - max(1, round(_HELD_OUT * len(ids))) if len(ids) > 1 else len(ids)


def check_shared(ids: Tensor) -> None:
    """Raise a `RequestError` for fewer rows to fit on than processes that share them."""
    rows, processes = count_fitted(ids), current().count
    if rows < processes:
        raise RequestError(
            f"expected a row to fit on for each of {processes} processes, got {rows}; try more `max_tokens`, or fewer "
            "processes"
        )


@dataclass(frozen=True)
class Workbench:
    """A model that is being edited, and the rows that stand-ins are fitted on, in contiguous folds for the ridge."""

    model: nn.Module  # the original, whose modules are only ever swapped out for a time
    stack: BlockStack
    parts: Parts
    padding: PaddingMask  # where the stand-ins find the attention mask
    batches: Sequence[Batch]
    folds: int = 4
    progress: Progress | None = None
    lead: int | None = None  # id of the token that each row begins with, which no loss is of
    resumes: bool = True  # whether a pass can begin at a block
    kept: KeptFits = field(default_factory=KeptFits)  # maps that a run which was killed has fitted
    seed: int = 0  # of what is drawn
    surveys: dict[Any, Any] = field(default_factory=dict)  # what kinds found out of the original, for all trials
    judged: Sequence[Batch] = ()  # rows that are not fitted on, on which replacements are compared

    @property
    def precision(self) -> torch.dtype:
        """Of differences and products: float64 where the device has it."""
        return torch.float64 if holds_float64(device_of(self.model)) else torch.float32

    def exact(self, tensor: Tensor) -> Tensor:
        """A tensor in that precision."""
        return tensor.to(self.precision)

    def passes(self, *, judged: bool = False) -> Passes:
        """The rows before the first block of the original, on a walk through it where that can be.

        After those that are fitted on, perhaps those that replacements are compared on.
        """
        batches = [*self.batches, *self.judged] if judged else self.batches
        found = Walk(self.model, self.stack, batches) if self.resumes else Passes(self.model, batches)
        found.numbers = [*self.schedule.order, *self.judged_here] if judged else self.schedule.order
        return found

    @property
    def judged_here(self) -> Sequence[int]:
        """Numbers of the batches to compare on that run here, where other processes run others."""
        first, own = len(self.batches), current().share(len(self.judged))
        return range(first + own.start, first + own.stop)

    @property
    def schedule(self) -> Schedule:
        """Which batches run here, where other processes run others."""
        return Schedule.of([*map(count_rows, self.batches)], ranks=current())

    @property
    def one_row(self) -> Batch:
        """The first row that runs here, to try things out on."""
        return first_row(self.batches[self.schedule.order[0]])


@contextmanager
def noting_padding(bench: Workbench) -> Iterator[None]:
    """While open, the stand-ins are told of padding."""
    with watch_padding(bench.model, bench.stack.path, bench.padding):
        try:
            yield
        finally:
            bench.padding.mask = None
