"""The moments of one block: by fold, with attention sinks kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from rectilinear.core.moments import Moments, MomentsAccumulator, exact_products, holds_float64
from rectilinear.core.solve import factorise

# Products of float32 cost scores up to about 2e-10 times the correlation's condition number (see
# benchmarks/accuracy.json); up to here that stays below 1e-6.
FLOAT32_CONDITION = 2e3


class NonFiniteError(ArithmeticError):
    """An activation is NaN, infinite, or too large to square."""


@dataclass(frozen=True, eq=False)
class BlockMoments:
    """Moments of the pairs ``(x, d)`` of one block.

    Attributes:
        regular: one `Moments` per fold, of the tokens that are not attention sinks; None where
            a fold has none.
        sinks: the same of the tokens that are.
        cosine_sum: sum over all tokens of ``cos(x, y)``, uncentred.
    """

    regular: tuple[Moments | None, ...]
    sinks: tuple[Moments | None, ...]
    cosine_sum: float

    @property
    def folds(self) -> tuple[Moments | None, ...]:
        """One `Moments` per fold, of all tokens."""
        return tuple(total(pair) for pair in zip(self.regular, self.sinks, strict=True))

    def __add__(self, other: BlockMoments) -> BlockMoments:
        """Both samples together, fold by fold."""
        return BlockMoments(
            tuple(total(pair) for pair in zip(self.regular, other.regular, strict=True)),
            tuple(total(pair) for pair in zip(self.sinks, other.sinks, strict=True)),
            self.cosine_sum + other.cosine_sum,
        )

    def to(self, device: torch.device | str) -> BlockMoments:
        """The same moments on another device."""
        return BlockMoments(
            tuple(m and m.to(device) for m in self.regular),
            tuple(m and m.to(device) for m in self.sinks),
            self.cosine_sum,
        )

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``torch.save`` or ``safetensors``."""
        parts = {
            f"{kind}.{fold}.{name}": tensor
            for kind, folds in (("regular", self.regular), ("sinks", self.sinks))
            for fold, moments in enumerate(folds)
            if moments
            for name, tensor in moments.to_tensors().items()
        }
        cosine_sum = torch.tensor(self.cosine_sum, dtype=torch.float64)
        return {"folds": torch.tensor(len(self.regular)), "cosine_sum": cosine_sum, **parts}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BlockMoments:
        """The inverse of `to_tensors`."""

        def part(prefix: str) -> Moments | None:
            found = {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}
            return Moments.from_tensors(found) if found else None

        folds = range(int(tensors["folds"]))
        return cls(
            tuple(part(f"regular.{fold}.") for fold in folds),
            tuple(part(f"sinks.{fold}.") for fold in folds),
            float(tensors["cosine_sum"]),
        )


class BlockAccumulator:
    """Gathers `BlockMoments` batch by batch.

    A finished fold leaves the device, so that an accelerator holds one fold at a time.

    Args:
        folds: number of folds K.
        sink_ratio: a token is an attention sink if ``|x|`` exceeds this many times the median
            norm of the first row.
        products: precision of the products; None starts in float64 and, where the activations
            are no finer than float32, goes on in float32 once 2p tokens show that the Gram
            matrix is conditioned well enough for it.
    """

    def __init__(self, folds: int = 4, sink_ratio: float = 10.0, products: torch.dtype | None = None) -> None:
        self._sink_ratio = sink_ratio
        self._products = products or torch.float64
        self._undecided = products is None
        self._sink_norm: float | None = None
        self._fold = 0
        self._open: dict[str, MomentsAccumulator] = {}
        self._closed: dict[str, list[Moments | None]] = {"regular": [None] * folds, "sinks": [None] * folds}
        self._cosine_sum = 0.0

    def update(self, x: Tensor, y: Tensor, fold: int = 0, first_row: int | None = None) -> None:
        """Add the tokens of one batch.

        Args:
            x: ``[tokens, width]``, the block's input, any floating dtype.
            y: ``[tokens, width]``, its output.
            fold: which fold they belong to.
            first_row: how many of the tokens form the first row; read at the first call only,
                where it fixes the norm above which a token is a sink. Default: all of them.

        Raises:
            NonFiniteError: a token of x or y is NaN or infinite.
            ValueError: shapes do not pair.
        """
        if x.shape != y.shape:
            raise ValueError(f"expected input and output of one shape, got {[*x.shape]} and {[*y.shape]}")
        if not len(x):
            return
        if not holds_float64(x.device):
            self._products = torch.float32
        self._undecided &= holds_float64(x.device) and x.dtype is not torch.float64
        x, y = x.to(self._products), y.to(self._products)
        norms, cosines = _norms_and_cosines(x, y)
        if self._sink_norm is None:
            self._sink_norm = self._sink_ratio * float(norms[:first_row].median())
        self._cosine_sum += float(cosines.double().sum())
        if fold != self._fold:
            self._close()
            self._fold = fold
        d = y - x
        sinks = norms > self._sink_norm
        if sinks.any():
            self._add("sinks", x[sinks], d[sinks])
            x, d = x[~sinks], d[~sinks]
        self._add("regular", x, d)
        if self._undecided:
            self._decide()

    def freeze(self) -> BlockMoments:
        """The moments so far."""
        self._close()
        return BlockMoments(tuple(self._closed["regular"]), tuple(self._closed["sinks"]), self._cosine_sum)

    def _add(self, kind: str, x: Tensor, d: Tensor) -> None:
        if len(x):
            accumulator = self._open.setdefault(kind, MomentsAccumulator())
            accumulator.products = self._products
            accumulator.update(x, d)

    def _decide(self) -> None:
        accumulator = self._open.get("regular")
        if accumulator and accumulator.count >= 2 * accumulator.width:
            factor = factorise(accumulator.freeze())
            if factor.method == "cholesky" and factor.condition <= FLOAT32_CONDITION:
                self._products = torch.float32
            self._undecided = False

    def _close(self) -> None:
        for kind, accumulator in self._open.items():
            moments = accumulator.freeze().to("cpu")
            self._closed[kind][self._fold] = total([self._closed[kind][self._fold], moments])
        self._open = {}


def total(parts: Sequence[Moments | None]) -> Moments | None:
    """The sum of moments, None standing for an empty sample."""
    present = [moments for moments in parts if moments is not None]
    return reduce(add, present) if present else None


def _norms_and_cosines(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Per token ``|x|`` and ``cos(x, y)`` (zero where a vector is), refusing what is not finite."""
    with exact_products(x.device.type):
        xx, yy, xy = (torch.linalg.vecdot(a, b) for a, b in ((x, x), (y, y), (x, y)))
    if not (xx.isfinite().all() and yy.isfinite().all()):
        raise NonFiniteError("activations are NaN, infinite, or too large to square")
    norms = xx.sqrt()
    lengths = norms * yy.sqrt()
    return norms, torch.where(lengths > 0, xy / lengths, 0.0)
