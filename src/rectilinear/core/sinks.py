"""Attention sinks: how many there are in a block, what told them and where they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import add

import torch
from torch import Tensor

#: What tells an attention sink: the norm of its input, of its output, or of its update.
MARKS = ("input", "output", "update")

#: It is told by the norms of this many tokens.
REFERENCE_TOKENS = 256


def norms_of(*states: Tensor) -> Tensor:
    """``[states, tokens]``, of each ``[tokens, p]``, in the precision of the first."""
    return torch.stack([torch.linalg.vector_norm(each, dim=1).to(states[0].dtype) for each in states])


def sink_limits(norms: Tensor, ratio: float) -> Tensor:
    """Norms ``[states, 1]`` beyond which a token is a sink: so many times their medians, those of zero left out."""
    medians = [float(kind[kind > 0].median()) if bool((kind > 0).any()) else math.inf for kind in norms]
    return ratio * torch.tensor(medians, device=norms.device)[:, None]


@dataclass(frozen=True)
class SinkCounts:
    """How many attention sinks there are of each kind.

    Attributes:
        marks: by what told them, in the order of `MARKS`; one token may have several.
        positions: by position in their row, padding not counted.
        ids: by token id, where tokens have one.
        bos: those that begin a sequence, which are apart whatever their norms are.
    """

    marks: tuple[int, ...] = (0,) * len(MARKS)
    positions: Mapping[int, int] = field(default_factory=dict)
    ids: Mapping[int, int] = field(default_factory=dict)
    bos: int = 0

    @classmethod
    def of(cls, marks: Tensor, begin: Tensor | None, places: Tensor | None) -> SinkCounts:
        """Those of some tokens.

        Args:
            marks: ``[marks, tokens]`` bool, what tells them.
            begin: ``[tokens]`` bool, which begin a sequence; None for none.
            places: ``[sinks, 2]``, position and id (-1 for none) of those that are sinks; None where not known.
        """
        positions, ids = ({}, {}) if places is None else (Counter(column) for column in places.T.tolist())
        found = {token: count for token, count in ids.items() if token >= 0}
        return cls(tuple(marks.sum(1).tolist()), positions, found, 0 if begin is None else int(begin.sum()))

    def __add__(self, other: SinkCounts) -> SinkCounts:
        """Those of both samples."""
        positions, ids = (
            dict(Counter(ours) + Counter(theirs))
            for ours, theirs in ((self.positions, other.positions), (self.ids, other.ids))
        )
        return SinkCounts(tuple(map(add, self.marks, other.marks)), positions, ids, self.bos + other.bos)

    def to_tensors(self) -> dict[str, Tensor]:
        """Counts, and pairs of a position or id and its count, ``[kinds, 2]``."""
        pairs = {name: [*getattr(self, name).items()] for name in ("positions", "ids")}
        tensors = {name: torch.tensor(found, dtype=torch.int64).view(-1, 2) for name, found in pairs.items()}
        return {"marks": torch.tensor(self.marks), "bos": torch.tensor(self.bos), **tensors}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> SinkCounts:
        """The inverse of `to_tensors`; of nothing, for what earlier versions wrote, no counts."""
        if not tensors:
            return cls()
        positions, ids = (dict(map(tuple, tensors[name].tolist())) for name in ("positions", "ids"))
        bos = int(tensors["bos"]) if "bos" in tensors else 0
        return cls(tuple(tensors["marks"].tolist()), positions, ids, bos)
