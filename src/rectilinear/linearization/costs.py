"""What each replacement costs: how far it moves predictions, alone or among others, and what it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.linearization.decoding_time import DecodingTime
from rectilinear.linearization.divergence import Divergence, judged_rows
from rectilinear.linearization.fit import Fitted, fit_alone, merge_edits
from rectilinear.linearization.kept_fits import KeptFits
from rectilinear.linearization.plan import CostRecord
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.kept import Kept, name_of
from rectilinear.models.logits import cache_bytes_of_layers
from rectilinear.models.running import evaluating
from rectilinear.models.surgery import Edits, swapped
from rectilinear.ranks import current
from rectilinear.text.batches import tensors_of


@dataclass(frozen=True, eq=False)
class CacheBytes:
    """What the layers of the cache take, in bytes by the index of the layer.

    Attributes:
        original: of the model for ``ids``; none where it has no layers of a cache.
        at_row: the same for a row that is fitted on.
        ids: ``[1, tokens]``, a text of the length that is asked about.
        row: ``[1, seq_len]``.
    """

    original: Sequence[int]
    at_row: Sequence[int]
    ids: Tensor
    row: Tensor

    @classmethod
    def of(cls, bench: Workbench, tokens: int) -> CacheBytes:
        """Those of a model after so many tokens."""
        row = tensors_of(bench.one_row)[0]
        ids = row.repeat(1, -(-tokens // row.shape[1]))[:, :tokens]
        return cls(_bytes_of_layers(bench, {}, ids), _bytes_of_layers(bench, {}, row), ids, row)

    @property
    def total(self) -> int:
        """Of all layers."""
        return sum(self.original)

    def of_edits(self, bench: Workbench, edits: Edits) -> int:
        """Of all layers, with some edits."""
        return sum(_bytes_of_layers(bench, edits, self.ids))

    def change(self, bench: Workbench, fitted: Fitted) -> int:
        """How many more, or fewer, they are with a replacement."""
        one = fitted.replacement
        parts = [bench.parts.part(index, one.target, bool(one.removed)) for index in one.blocks]
        layers = [each for part in parts for each in part.cache_layers if each < len(self.original)]

        def of_these(found: Sequence[int]) -> int:
            return sum(found[layer] for layer in layers)

        after = 0
        if one.by.remembers and layers:
            # A state that is smaller than the original's after a row grows no more.
            shorter = min(self.row, self.ids, key=lambda ids: ids.shape[1])
            after = of_these(_bytes_of_layers(bench, fitted.edits, shorter))
            if after >= of_these(self.at_row):
                after = of_these(_bytes_of_layers(bench, fitted.edits, self.ids))
        return after - of_these(self.original)


def _bytes_of_layers(bench: Workbench, edits: Edits, ids: Tensor) -> Sequence[int]:
    with evaluating(bench.model), swapped(bench.model, edits):
        return cache_bytes_of_layers(bench.model, ids) or ()


def measure_costs(
    bench: Workbench,
    ones: Sequence[Replacement],
    measures: tuple[CacheBytes, DecodingTime | None],
    kept: Kept,
    around: Sequence[Fitted] = (),
) -> list[CostRecord]:
    """Costs of replacements in one walk: of each alone on the original, or in place of its like among fits ``around``.

    With others around it, each is fitted to the model as these have edited it so far, and its cost is how much further
    predictions move with it than with the original's part in its place. What earlier runs have measured is not
    measured again. Decoding is timed where ``measures`` has what that takes.
    """
    ranks, (sizes, time) = current(), measures
    kept = kept.changed(around=[fitted.replacement.unfitted().model_dump(mode="json") for fitted in around])
    found = ranks.from_first(lambda: {one: kept.load(_name(one), CostRecord) for one in ones})
    missing = [one for one in ones if found[one] is None]
    for done, (fitted, moved) in enumerate(tried(bench, missing, around), 1):
        cost = CostRecord(
            replacement=fitted.replacement,
            divergence=moved,
            parameters=grown(fitted),
            cache=sizes.change(bench, fitted),
            decoding=time and time.change(bench, fitted),
        )
        found[fitted.replacement.unfitted()] = cost
        if ranks.is_first:
            kept.save(_name(fitted.replacement), cost)
        if bench.progress:
            bench.progress("costs", done, len(missing))
    return [each for one in ones if (each := found[one]) is not None]


def tried(
    bench: Workbench, ones: Sequence[Replacement], around: Sequence[Fitted] = ()
) -> Iterator[tuple[Fitted, float]]:
    """Each of some replacements as it is fitted, and how much further it moves predictions: see `measure_costs`."""
    bench, divergence = replace(bench, kept=KeptFits()), Divergence(judged_rows(bench))  # fits are not gone on from
    with evaluating(bench.model), noting_padding(bench):
        for kind in dict.fromkeys(one.by for one in ones):
            kind.prepare(bench, [one for one in ones if one.by == kind])  # of all in one walk
        for some, others in _walks(ones, around):
            with closing(_Surroundings(bench, others, divergence)) as surroundings:
                yield from map(surroundings.tried, some)


def grown(fitted: Fitted) -> int:
    """How many parameters more, or fewer, a model has with a replacement."""
    record = fitted.replacement.fit
    assert record is not None
    return record.parameters_after - record.parameters_before


def _walks(
    ones: Sequence[Replacement], around: Sequence[Fitted]
) -> Iterator[tuple[list[Replacement], Sequence[Fitted]]]:
    """What to try in each walk, in order, and among what.

    A fit that edits several blocks is in a walk from the first of them on, so that what would take its place is tried
    in another one.
    """
    long = [each for each in around if each.replacement.begins < each.replacement.blocks[-1]]
    walks: dict[tuple[int, ...], list[Replacement]] = {}
    for one in sorted(ones, key=_order):
        hidden = tuple(number for number, each in enumerate(long) if each.replacement.touches & one.touches)
        walks.setdefault(hidden, []).append(one)
    for hidden, some in walks.items():
        left_out = [long[number] for number in hidden]
        yield some, [each for each in around if not any(each is other for other in left_out)]


class _Surroundings:
    """The original with some fits, in whose places others are tried, from the first block to the last."""

    def __init__(self, bench: Workbench, around: Sequence[Fitted], divergence: Divergence) -> None:
        self.streams = Streams(bench.passes(judged=True))
        self._bench, self._divergence = bench, divergence
        self._around = sorted(around, key=lambda fitted: _order(fitted.replacement))
        self._passed = 0  # how many of them are in what the streams have gone through
        self._without: dict[frozenset[Any], float] = {}  # divergences, by what is left out

    def tried(self, one: Replacement) -> tuple[Fitted, float]:
        """A replacement as it is fitted here, and how much further it moves predictions than what it replaces."""
        while self._passed < len(self._around) and self._is_before(self._around[self._passed].replacement, one):
            fitted = self._around[self._passed]
            self.streams.edit(fitted.replacement.begins, fitted.edits)
            self._passed += 1
        fitted = fit_alone(self._bench, one, self.streams)
        at_once = [each for each in self._around if not each.replacement.touches & one.touches]
        others = [each for each in self._around[self._passed :] if each in at_once]
        left_out = frozenset(each.replacement.unfitted() for each in self._around if each not in at_once)
        if left_out not in self._without:
            self._without[left_out] = self._moved(others) if self._around else 0.0
        return fitted, self._moved([*others, fitted]) - self._without[left_out]

    @staticmethod
    def _is_before(other: Replacement, one: Replacement) -> bool:
        """Whether another has edited what a replacement is fitted to."""
        attention = other.target == "attention" and other.blocks[0] == one.begins
        return other.blocks[-1] < one.begins or (attention and _is_late(one))

    def _moved(self, fits: Sequence[Fitted]) -> float:
        return self._divergence.of(self.streams, merge_edits(fits), edited=True)

    def close(self) -> None:
        """Let go what the streams have in memory."""
        self.streams.close()


def check_cache(model: nn.Module, sizes: CacheBytes) -> None:
    """Raise a `RequestError` for a model whose cache cannot be limited."""
    if not sizes.total:
        raise RequestError(
            f"expected a model with layers of a cache for a `budget` of it, got {type(model).__name__}; try "
            "`budget=parameters=80%`"
        )


def _order(one: Replacement) -> tuple[int, bool]:
    """As they are fitted."""
    return one.begins, _is_late(one)


def _is_late(one: Replacement) -> bool:
    """Whether it takes what a block has after its attention."""
    return one.target == "mlp" or one.by.needs_block_before


def _name(one: Replacement) -> str:
    """Of the file with the cost of a replacement."""
    return f"{one.target}-{one.where}-{one.kind}-{name_of(one.by.model_dump(mode='json'))}"
