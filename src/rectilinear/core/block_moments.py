"""The moments of one block: by fold, with attention sinks kept apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rectilinear.core.moments import Moments, MomentsAccumulator, holds_float64, total
from rectilinear.core.shifted import RowPairs, Shifted, ShiftedAccumulator
from rectilinear.core.sinks import REFERENCE_TOKENS, SinkCounts, norms_of, sink_limits
from rectilinear.core.solve import conditioned_below

# Products of float32 move scores by up to this times the condition number of the correlation and
# the cancellation in |Y|^2 (benchmarks/accuracy.json) ...
FLOAT32_ERROR = 1e-9
# ... so that they are taken only below this.
FLOAT32_LIMIT = 1e3

# Tokens of a fold for each feature that this is decided by.
_ENOUGH = 4

_Folds = tuple[Moments | None, ...]

# What `BlockAccumulator.update` takes.
_Batch = tuple[Tensor, Tensor, int, Tensor | None, RowPairs | None, bool]


class NonFiniteError(ArithmeticError):
    """An activation is NaN, infinite, or too large to square."""

    def __init__(self) -> None:
        super().__init__("activations are NaN, infinite, or too large to square")


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """Moments of the pairs ``(x, d)`` of one block.

    Attributes:
        regular: one `Moments` per fold, of the tokens that are not attention sinks; None where a fold has none.
        sinks: the same of the tokens that are.
        cosine_sum: sum over all tokens of ``cos(x, y)``, uncentred.
        eps: of the coarsest dtype that x or y were in.
        counts: of the sinks, by what told them and where they are.
        shifted: moments of inputs and updates of different rows.
    """

    regular: _Folds
    sinks: _Folds
    cosine_sum: float
    eps: float = torch.finfo(torch.float64).eps
    counts: SinkCounts = SinkCounts()
    shifted: Shifted = Shifted()

    @property
    def count(self) -> int:
        """Number of tokens."""
        return sum(moments.count for moments in (*self.regular, *self.sinks) if moments)

    @property
    def folds(self) -> _Folds:
        """One `Moments` per fold, of all tokens."""
        return _totals(self.regular, self.sinks)

    def __add__(self, other: BlockMoments) -> BlockMoments:
        """Both samples together, fold by fold."""
        return BlockMoments(
            _totals(self.regular, other.regular),
            _totals(self.sinks, other.sinks),
            self.cosine_sum + other.cosine_sum,
            max(self.eps, other.eps),
            self.counts + other.counts,
            self.shifted + other.shifted,
        )

    def to(self, device: torch.device | str) -> BlockMoments:
        """The same moments on another device."""
        regular, sinks = (tuple(m and m.to(device) for m in folds) for folds in (self.regular, self.sinks))
        return replace(self, regular=regular, sinks=sinks, shifted=self.shifted.to(device))

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``torch.save`` or ``safetensors``."""
        parts = {
            f"{kind}.{fold}.{name}": tensor
            for kind, folds in (("regular", self.regular), ("sinks", self.sinks))
            for fold, moments in enumerate(folds)
            if moments
            for name, tensor in moments.to_tensors().items()
        }
        numbers = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("cosine_sum", "eps")}
        others = {
            f"{kind}.{name}": tensor
            for kind, each in (("counts", self.counts), ("shifted", self.shifted))
            for name, tensor in each.to_tensors().items()
        }
        return {"folds": torch.tensor(len(self.regular)), **numbers, **others, **parts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BlockMoments:
        """The inverse of `to_tensors`."""

        def below(prefix: str) -> dict[str, Tensor]:
            return {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}

        def part(kind: str, fold: int) -> Moments | None:
            found = below(f"{kind}.{fold}.")
            return Moments.from_tensors(found) if found else None

        folds = range(int(tensors["folds"]))
        regular, sinks = (tuple(part(kind, fold) for fold in folds) for kind in ("regular", "sinks"))
        eps = float(tensors.get("eps", cls.eps))  # which earlier versions did not write
        others = SinkCounts.from_tensors(below("counts.")), Shifted.from_tensors(below("shifted."))
        return cls(regular, sinks, float(tensors["cosine_sum"]), eps, *others)


def bytes_of_moments(width: int, folds: int) -> int:
    """Bytes that the moments of one block take at most: of regular tokens and of sinks, and those of shifted pairs.

    Two float64 matrices ``[width, width]`` for each fold and kind of token, and one more for each kind.
    """
    return 8 * width**2 * (2 * folds + 1) * 2


class BlockAccumulator:
    """Gathers `BlockMoments` batch by batch.

    An accelerator holds two folds at a time at most, which rows may belong to in turns; others leave it.

    Args:
        folds: number of folds K.
        sink_ratio: a token is an attention sink if ``|x|``, ``|y|`` or ``|d|`` exceeds this many times its median
            over the first 256 tokens.
        products: precision of the products; None takes float64 until 4p regular tokens of one fold have shown that
            float32 is accurate enough, and float32 from then on. Float64 activations always have float64 products.
        bos: id of a token that is an attention sink whatever its norms are; None for none.
        updates: whether what is given as output is the update itself.
    """

    def __init__(
        self,
        folds: int = 4,
        sink_ratio: float = 10.0,
        products: torch.dtype | None = None,
        bos: int | None = None,
        updates: bool = False,
    ) -> None:
        self._sink_ratio, self._bos, self._updates = sink_ratio, bos, updates
        self._products = products or torch.float64
        self._undecided = products is None
        self._limits: Tensor | None = None  # of |x|, |y| and |d|, beyond which a token is a sink
        self._waiting: list[_Batch] = []
        self._fold = 0
        self._open: dict[tuple[str, int], MomentsAccumulator] = {}  # by kind and fold
        self._closed: dict[str, list[Moments | None]] = {"regular": [None] * folds, "sinks": [None] * folds}
        self._cosine_sum, self._eps, self._counts = 0.0, BlockMoments.eps, SinkCounts()
        self._shifted = ShiftedAccumulator()

    def update(
        self,
        x: Tensor,
        y: Tensor,
        fold: int = 0,
        places: Tensor | None = None,
        pairs: RowPairs | None = None,
        counted: bool = True,
    ) -> None:
        """Add the tokens of one batch.

        Args:
            x: ``[tokens, width]``, the block's input, any floating dtype.
            y: ``[tokens, width]``, its output, or update.
            fold: which fold they belong to.
            places: ``[tokens, 2]`` int64 on the CPU, position in the row and token id, -1 for none.
            pairs: which rows they are of, and what these are paired with; None for no pairs, in the end of any tokens.
            counted: whether moments are of them; else they say what a sink is, and others are paired with them.

        Raises:
            NonFiniteError: a token of x or y is NaN or infinite.
            ValueError: shapes do not pair.
        """
        if x.shape != y.shape:
            raise ValueError(f"expected input and output of one shape, got {[*x.shape]} and {[*y.shape]}")
        if not len(x):
            return
        self._eps = max(self._eps, *(torch.finfo(states.dtype).eps for states in (x, y)))
        if self._limits is None:
            self._waiting.append((x, y, fold, places, pairs, counted))
            if sum(len(rows) for rows, *_ in self._waiting) >= REFERENCE_TOKENS:
                self._stop_waiting()
            else:  # what waits must not change when the model goes on
                self._waiting[-1] = (x.clone(), y.clone(), fold, places, pairs, counted)
        else:
            self._gather(x, y, fold, places, pairs, counted)

    def freeze(self) -> BlockMoments:
        """The moments so far."""
        if self._waiting:
            self._stop_waiting()
        self._close()
        regular, sinks = (tuple(self._closed[kind]) for kind in ("regular", "sinks"))
        return BlockMoments(regular, sinks, self._cosine_sum, self._eps, self._counts, self._shifted.freeze())

    def _stop_waiting(self) -> None:
        x = torch.cat([x for x, *_ in self._waiting])[:REFERENCE_TOKENS].float()
        y = torch.cat([y for _, y, *_ in self._waiting])[:REFERENCE_TOKENS].float()
        self._limits = sink_limits(norms_of(x, y, y if self._updates else y - x), self._sink_ratio)
        waiting, self._waiting = self._waiting, []
        for part in waiting:
            self._gather(*part)

    def _gather(
        self, x: Tensor, y: Tensor, fold: int, places: Tensor | None, pairs: RowPairs | None, counted: bool
    ) -> None:
        if not holds_float64(x.device):
            self._products = torch.float32
        self._undecided &= holds_float64(x.device) and x.dtype is not torch.float64
        # Differences and norms are as fine as the activations at least, whatever the products.
        given, finer = x.dtype, torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(finer), y.to(finer)
        if self._updates:
            d = y
        else:
            d = y - x if self._products is finer or not holds_float64(x.device) else y.double() - x.double()
        norms = norms_of(x, y, d)
        lengths = norms[0] * norms[1]
        if not lengths.isfinite().all():
            raise NonFiniteError
        if fold != self._fold and x.device.type != "cpu":
            self._close({self._fold, fold})
        self._fold = fold
        marks = norms > self._limits  # type: ignore[operator]  # which `update` has seen to
        begin = None if self._bos is None or places is None else (places[:, 1] == self._bos).to(marks.device)
        sinks = marks.any(0) if begin is None else marks.any(0) | begin
        if pairs:
            self._shifted.update(x, d, sinks, pairs, self._products, given)
        else:
            self._shifted.drop()
        if not counted:
            return
        cosines = torch.where(lengths > 0, torch.linalg.vecdot(x, y) / lengths, 0.0)
        self._cosine_sum += float(cosines.double().sum())
        if sinks.any():
            self._add("sinks", x[sinks], d[sinks])
            self._counts += SinkCounts.of(marks, begin, None if places is None else places[sinks.cpu()])
            x, d = x[~sinks], d[~sinks]
        if len(x):
            self._add_regular(x, d)

    def _add(self, kind: str, x: Tensor, d: Tensor) -> None:
        accumulator = self._open.setdefault((kind, self._fold), MomentsAccumulator())
        accumulator.products = self._products
        accumulator.update(x, d)

    def _add_regular(self, x: Tensor, d: Tensor) -> None:
        enough, own = _ENOUGH * x.shape[1], ("regular", self._fold)
        if self._undecided and len(x) >= enough and own not in self._open:
            # One batch is enough to decide by: float32 on trial, which stands if it suffices.
            trial = MomentsAccumulator(torch.float32)
            trial.update(x, d)
            if self._decide(trial):
                self._open[own] = trial
                return
        self._add("regular", x, d)
        if self._undecided and self._open[own].count >= enough:
            self._decide(self._open[own])

    def _decide(self, accumulator: MomentsAccumulator) -> bool:
        """Fix the precision of what is to come; whether float32 suffices for what was gathered."""
        moments = accumulator.freeze()
        # A sample looks worse conditioned than what it was drawn from, so that this errs on the side of float64. The
        # other way costs a second pass over everything: whoever scores the whole learns from `Scores.error` if float32
        # was too much.
        cancellation = 1.0 if self._updates else moments.cancellation  # updates are no differences of states
        suffices = conditioned_below(moments, FLOAT32_LIMIT / cancellation)
        self._products, self._undecided = (torch.float32 if suffices else torch.float64), False
        return suffices

    def _close(self, but: Collection[int] = ()) -> None:
        for kind, fold in [key for key in self._open if key[1] not in but]:
            accumulator = self._open.pop((kind, fold))  # one by one, so that each is in memory once
            self._closed[kind][fold] = total([self._closed[kind][fold], accumulator.freeze().to("cpu")])


def _totals(some: _Folds, others: _Folds) -> _Folds:
    return tuple(total(pair) for pair in zip(some, others, strict=True))
