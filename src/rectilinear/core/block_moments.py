"""The moments of one block: by fold, with attention sinks kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rectilinear.core.moments import Moments, MomentsAccumulator, holds_float64
from rectilinear.core.solve import conditioned_below

# Products of float32 move scores by up to this times the condition number of the correlation and
# the cancellation in |Y|^2 (benchmarks/accuracy.json) ...
FLOAT32_ERROR = 1e-9
# ... so that they are taken only below this.
FLOAT32_LIMIT = 1e3

_Folds = tuple[Moments | None, ...]

# An attention sink is told by the norms of this many tokens.
_REFERENCE_TOKENS = 256


class NonFiniteError(ArithmeticError):
    """An activation is NaN, infinite, or too large to square."""


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """Moments of the pairs ``(x, d)`` of one block.

    Attributes:
        regular: one `Moments` per fold, of the tokens that are not attention sinks; None where a fold has none.
        sinks: the same of the tokens that are.
        cosine_sum: sum over all tokens of ``cos(x, y)``, uncentred.
        eps: of the coarsest dtype that x or y were in.
    """

    regular: _Folds
    sinks: _Folds
    cosine_sum: float
    eps: float = torch.finfo(torch.float64).eps

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
        )

    def to(self, device: torch.device | str) -> BlockMoments:
        """The same moments on another device."""
        regular, sinks = (tuple(m and m.to(device) for m in folds) for folds in (self.regular, self.sinks))
        return BlockMoments(regular, sinks, self.cosine_sum, self.eps)

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
        return {"folds": torch.tensor(len(self.regular)), **numbers, **parts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BlockMoments:
        """The inverse of `to_tensors`."""

        def part(kind: str, fold: int) -> Moments | None:
            prefix = f"{kind}.{fold}."
            found = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
            return Moments.from_tensors(found) if found else None

        folds = range(int(tensors["folds"]))
        regular, sinks = (tuple(part(kind, fold) for fold in folds) for kind in ("regular", "sinks"))
        eps = float(tensors.get("eps", cls.eps))  # which earlier versions did not write
        return cls(regular, sinks, float(tensors["cosine_sum"]), eps)


class BlockAccumulator:
    """Gathers `BlockMoments` batch by batch.

    A finished fold leaves the device, so that an accelerator holds one fold at a time.

    Args:
        folds: number of folds K.
        sink_ratio: a token is an attention sink if ``|x|`` exceeds this many times the median norm of the first 256
            tokens.
        products: precision of the products; None takes float64 until 2p regular tokens of one fold have shown that
            float32 is accurate enough, and float32 from then on. Float64 activations always have float64 products.
    """

    def __init__(self, folds: int = 4, sink_ratio: float = 10.0, products: torch.dtype | None = None) -> None:
        self._sink_ratio = sink_ratio
        self._products = products or torch.float64
        self._undecided = products is None
        self._sink_norm: float | None = None
        self._waiting: list[tuple[Tensor, Tensor, int]] = []
        self._fold = 0
        self._open: dict[str, MomentsAccumulator] = {}
        self._closed: dict[str, list[Moments | None]] = {"regular": [None] * folds, "sinks": [None] * folds}
        self._cosine_sum, self._eps = 0.0, BlockMoments.eps

    def update(self, x: Tensor, y: Tensor, fold: int = 0) -> None:
        """Add the tokens of one batch.

        Args:
            x: ``[tokens, width]``, the block's input, any floating dtype.
            y: ``[tokens, width]``, its output.
            fold: which fold they belong to.

        Raises:
            NonFiniteError: a token of x or y is NaN or infinite.
            ValueError: shapes do not pair.
        """
        if x.shape != y.shape:
            raise ValueError(f"expected input and output of one shape, got {[*x.shape]} and {[*y.shape]}")
        if not len(x):
            return
        self._eps = max(self._eps, *(torch.finfo(states.dtype).eps for states in (x, y)))
        if self._sink_norm is None:
            self._waiting.append((x, y, fold))
            if sum(len(rows) for rows, _, _ in self._waiting) >= _REFERENCE_TOKENS:
                self._stop_waiting()
            else:  # what waits must not change when the model goes on
                self._waiting[-1] = (x.clone(), y.clone(), fold)
        else:
            self._gather(x, y, fold)

    def freeze(self) -> BlockMoments:
        """The moments so far."""
        if self._waiting:
            self._stop_waiting()
        self._close()
        regular, sinks = (tuple(self._closed[kind]) for kind in ("regular", "sinks"))
        return BlockMoments(regular, sinks, self._cosine_sum, self._eps)

    def _stop_waiting(self) -> None:
        reference = torch.cat([x for x, _, _ in self._waiting])[:_REFERENCE_TOKENS]
        norms = torch.linalg.vector_norm(reference.float(), dim=1)
        norms = norms[norms > 0]
        self._sink_norm = self._sink_ratio * float(norms.median()) if len(norms) else math.inf
        waiting, self._waiting = self._waiting, []
        for x, y, fold in waiting:
            self._gather(x, y, fold)

    def _gather(self, x: Tensor, y: Tensor, fold: int) -> None:
        if not holds_float64(x.device):
            self._products = torch.float32
        self._undecided &= holds_float64(x.device) and x.dtype is not torch.float64
        # Differences and norms are as fine as the activations at least, whatever the products.
        finer = torch.promote_types(x.dtype, torch.float32)
        x, y = x.to(finer), y.to(finer)
        norms = torch.linalg.vector_norm(x, dim=1)
        lengths = norms * torch.linalg.vector_norm(y, dim=1)
        if not lengths.isfinite().all():
            raise NonFiniteError("activations are NaN, infinite, or too large to square")
        cosines = torch.where(lengths > 0, torch.linalg.vecdot(x, y) / lengths, 0.0)
        self._cosine_sum += float(cosines.double().sum())
        if fold != self._fold:
            self._close()
            self._fold = fold
        d = y - x if self._products is finer or not holds_float64(x.device) else y.double() - x.double()
        sinks = norms > (self._sink_norm or 0.0)
        if sinks.any():
            self._add("sinks", x[sinks], d[sinks])
            x, d = x[~sinks], d[~sinks]
        if len(x):
            self._add_regular(x, d)

    def _add(self, kind: str, x: Tensor, d: Tensor) -> None:
        accumulator = self._open.setdefault(kind, MomentsAccumulator())
        accumulator.products = self._products
        accumulator.update(x, d)

    def _add_regular(self, x: Tensor, d: Tensor) -> None:
        enough = 2 * x.shape[1]
        if self._undecided and len(x) >= enough and "regular" not in self._open:
            # One batch is enough to decide by: float32 on trial, which stands if it suffices.
            trial = MomentsAccumulator(torch.float32)
            trial.update(x, d)
            if self._decide(trial):
                self._open["regular"] = trial
                return
        self._add("regular", x, d)
        if self._undecided and self._open["regular"].count >= enough:
            self._decide(self._open["regular"])

    def _decide(self, accumulator: MomentsAccumulator) -> bool:
        """Fix the precision of what is to come; whether float32 suffices for what was gathered."""
        moments = accumulator.freeze()
        # A sample of n tokens looks worse conditioned than what it was drawn from, by up to this
        # (Marchenko and Pastur, 1967). Whoever scores the whole learns from `Scores.error` if it was too much.
        ratio = math.sqrt(accumulator.width / accumulator.count)
        inflation = ((1 + ratio) / (1 - ratio)) ** 2
        suffices = conditioned_below(moments, FLOAT32_LIMIT * inflation / moments.cancellation)
        self._products, self._undecided = (torch.float32 if suffices else torch.float64), False
        return suffices

    def _close(self) -> None:
        for kind, accumulator in self._open.items():
            moments = accumulator.freeze().to("cpu")
            self._closed[kind][self._fold] = total([self._closed[kind][self._fold], moments])
        self._open = {}


def _totals(some: _Folds, others: _Folds) -> _Folds:
    return tuple(total(pair) for pair in zip(some, others, strict=True))


def total(parts: Sequence[Moments | None]) -> Moments | None:
    """The sum of moments, None standing for an empty sample."""
    present = [moments for moments in parts if moments is not None]
    return reduce(add, present) if present else None
