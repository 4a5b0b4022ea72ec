"""Which rows are paired with which others for the shifted null, and which batches are run in which order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rectilinear.core.shifted import RowPairs
from rectilinear.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Partners:
    """For each row, by number, the one whose inputs its updates are paired with; None where there is none to be had.

    Attributes:
        rows: the partners' numbers.
        how: whether a partner is the nearest earlier row of another document, or the row half of all rows away.
    """

    rows: tuple[int | None, ...]
    how: Literal["document", "half"]

    @classmethod
    def of(cls, documents: Tensor) -> Partners:
        """Those of rows of known documents, ``[rows, seq_len]`` in ascending order.

        A partner has no document in common with its row. Where that leaves a quarter of the rows without one, as in a
        text of one document, it is the row half of all rows away.
        """
        first, last = documents[:, 0].contiguous(), documents[:, -1].contiguous()
        nearest = (torch.searchsorted(last, first) - 1).tolist()
        found = tuple(row if row >= 0 else None for row in nearest)
        return cls(found, "document") if 4 * found.count(None) < len(found) else cls.by_half(len(found))

    @classmethod
    def by_half(cls, count: int) -> Partners:
        """Those of rows whose documents are not known."""
        half = (count + 1) // 2
        pairs = {row: row + half for row in range(count - half)}
        both = pairs | {later: row for row, later in pairs.items()}
        return cls(tuple(both.get(row) for row in range(count)), "half")


@dataclass(frozen=True)
class Schedule:
    """Which batches a process runs, in which order, and what their rows are paired with.

    Where partners are half of all rows away, the batches of both halves take turns, so that few rows have to be kept.

    Attributes:
        order: numbers of the batches, each after those of its rows' partners.
        counted: those whose tokens count here. The others are run since the limits of attention sinks are of their
            tokens, or since rows of those that count are paired with rows of theirs.
        pairs: numbers of the rows whose inputs and whose updates are paired; the updates are of batches that count.
    """

    order: Sequence[int]
    counted: frozenset[int]
    pairs: Sequence[tuple[int, int]] = ()

    @classmethod
    def of(
        cls, lengths: Sequence[int], partners: Partners | None = None, first: int = 0, ranks: Ranks = ALONE
    ) -> Schedule:
        """That of one of some processes, each of which runs consecutive batches of the order of a single one.

        Args:
            lengths: rows of each batch.
            partners: of all rows; None for no pairs.
            first: how many batches come first in any case, since the limits of attention sinks are of their tokens.
            ranks: the processes.
        """
        pairs = [(other, row) for row, other in enumerate(partners.rows if partners else ()) if other is not None]
        batch_of = [batch for batch, length in enumerate(lengths) for _ in range(length)]
        by_pairs = partners is not None and partners.how == "half"
        paired = [batch_of[row] for pair in pairs for row in sorted(pair)] if by_pairs else []
        order = [*dict.fromkeys([*range(first), *paired, *range(len(lengths))])]
        share = ranks.share(len(order))
        counted = frozenset(order[share.start : share.stop])
        own = [pair for pair in pairs if batch_of[pair[1]] in counted]
        needed = {*range(first), *counted, *(batch_of[one] for one, _ in own)}
        return cls([batch for batch in order if batch in needed], counted, own)


class Pairing:
    """What rows are paired with, as they come.

    Args:
        pairs: numbers of the rows whose inputs and whose updates are paired.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        self._pairs_of: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for pair in pairs:
            for row in pair:
                self._pairs_of[row].append(pair)
        # Pairs that are yet to be given, by the row of the inputs and by that of the updates.
        self._open = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
        self._seen: set[int] = set()
        self._kept: list[frozenset[int]] = [frozenset(), frozenset()]

    def take(self, rows: range) -> RowPairs | None:
        """The pairs of the rows that come next, each to be asked for once; None where there are no pairs at all."""
        if not self._pairs_of:
            return None
        self._seen |= {*rows}
        complete = {pair: None for row in rows for pair in self._pairs_of[row] if self._seen.issuperset(pair)}
        for place, counts in enumerate(self._open):
            counts.subtract(Counter(pair[place] for pair in complete))
        self._kept = [
            frozenset(row for row in {*kept, *rows} if counts[row])
            for kept, counts in zip(self._kept, self._open, strict=True)
        ]
        inputs, updates = self._kept
        return RowPairs(rows, [*complete], inputs, updates)
