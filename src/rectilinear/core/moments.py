"""Second moments of paired vectors: fixed size, exact under merging, gathered in one pass.

For rows ``x`` (``[tokens, p]``) and ``d`` (``[tokens, q]``) with means ``mx`` and ``md``:

    gram   = sum (x - mx)(x - mx)'        [p, p]
    cross  = sum (x - mx)(d - md)'        [p, q]
    energy = sum |d - md|^2

Every score, map and filter of this package is computed from these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

# Widest column strip of one product. Only the strips on and above the diagonal of the Gram
# matrix are computed, which saves up to half of its operations.
_STRIP = 192

# Most rows of one product: longer sums in float32 would round visibly.
_ROWS = 2048


_Kind = TypeVar("_Kind", bound="CrossMoments")


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """Centred cross moments of ``count`` pairs ``(x, d)``; all tensors are float64.

    Attributes:
        count: number of pairs n.
        mean_x: ``[p]``, mean of x.
        mean_d: ``[q]``, mean of d.
        cross: ``[p, q]``, ``sum (x - mean_x)(d - mean_d)'``.
        energy: ``sum |d - mean_d|^2``.
    """

    count: int
    mean_x: Tensor
    mean_d: Tensor
    cross: Tensor
    energy: float

    def __add__(self, other: Self) -> Self:
        """Moments of both samples together (Chan, Golub and LeVeque, 1979)."""
        if not self.count or not other.count:
            return self if self.count else other
        count, (shift_x, shift_d, weight) = self.count + other.count, self._apart(other)
        share = other.count / count
        return replace(
            self,
            count=count,
            mean_x=self.mean_x + share * shift_x,
            mean_d=self.mean_d + share * shift_d,
            cross=(self.cross + other.cross).addr_(shift_x, shift_d, alpha=weight),
            energy=self.energy + other.energy + weight * float(shift_d @ shift_d),
        )

    def intercept(self, weight: Tensor) -> Tensor:
        """``[q]``, what a map ``[p, q]`` needs added to give the mean of d at the mean of x."""
        return self.mean_d - self.mean_x @ weight

    def _apart(self, other: CrossMoments) -> tuple[Tensor, Tensor, float]:
        """How far the means of another sample are away, and the weight of that in the moments of both."""
        weight = self.count * other.count / (self.count + other.count)
        return other.mean_x - self.mean_x, other.mean_d - self.mean_d, weight

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> Self:
        """The same moments on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})  # type: ignore[arg-type]

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``torch.save`` or ``safetensors``."""
        energy = torch.tensor(self.energy, dtype=torch.float64)
        return {**self._tensors(), "count": torch.tensor(self.count), "energy": energy}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        numbers: dict[str, Any] = {"count": int(tensors["count"]), "energy": float(tensors["energy"])}
        return cls(**{**tensors, **numbers})


@dataclass(frozen=True, eq=False)
class Moments(CrossMoments):
    """Centred second moments of ``count`` pairs ``(x, d)``: those of `CrossMoments`, and of x alone.

    Attributes:
        gram: ``[p, p]``, ``sum (x - mean_x)(x - mean_x)'``.
        rounding: ``[p]``, the size of rounding in the diagonal of ``gram``: eps of the products times the energies of
            the columns they were formed from.
        products: coarsest precision in which products of activations were formed; sums are always float64.
    """

    gram: Tensor
    rounding: Tensor
    products: torch.dtype = torch.float64

    def __add__(self, other: Self) -> Self:
        """Moments of both samples together."""
        if not self.count or not other.count:
            return self if self.count else other
        shift_x, _, weight = self._apart(other)
        return replace(
            super().__add__(other),
            gram=(self.gram + other.gram).addr_(shift_x, shift_x, alpha=weight),
            rounding=self.rounding + other.rounding,
            products=min(self.products, other.products, key=lambda dtype: dtype.itemsize),
        )

    @property
    def output_energy(self) -> float:
        """``|Y|^2`` of ``y = x + d``, centred: ``tr(Sxx) + 2 tr(Sxd) + Sdd``, for ``p = q``."""
        return float(self.gram.trace() + 2 * self.cross.trace()) + self.energy

    @property
    def cancellation(self) -> float:
        """How much larger the parts of ``|Y|^2`` are than their sum: ``(tr(Sxx) + Sdd) / Syy``, at least 1.

        Rounding in the moments reaches scores of y magnified by this.
        """
        parts, output = float(self.gram.trace()) + self.energy, self.output_energy
        return max(1.0, parts / output) if output > 0 else math.inf

    def to_tensors(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, for ``torch.save`` or ``safetensors``."""
        return super().to_tensors() | {"products": torch.tensor(self.products.itemsize)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`."""
        others = {name: tensor for name, tensor in tensors.items() if name != "products"}
        products = {4: torch.float32, 8: torch.float64}[int(tensors["products"])]
        return replace(super().from_tensors(others), products=products)


def total(parts: Sequence[_Kind | None]) -> _Kind | None:
    """The sum of moments, None standing for an empty sample."""
    present = [moments for moments in parts if moments is not None]
    return reduce(add, present) if present else None


class CrossAccumulator:
    """Gathers `CrossMoments` batch by batch.

    Products are formed in ``products`` (float32, never TF32, or float64) around a provisional centre, the mean of the
    first batch; sums across batches are float64. ``products`` may be changed between batches.
    """

    def __init__(self, products: torch.dtype = torch.float64) -> None:
        self.products = products
        self.count = 0

    def update(self, x: Tensor, d: Tensor) -> None:
        """Add pairs.

        Args:
            x: ``[tokens, p]``, any floating dtype.
            d: ``[tokens, q]``, on the same device.

        Raises:
            ValueError: shapes do not pair, or differ from earlier batches.
        """
        if x.ndim != 2 or d.ndim != 2 or len(x) != len(d):
            raise ValueError(f"expected x [tokens, p] and d [tokens, q], got {[*x.shape]} and {[*d.shape]}")
        if not len(x):
            return
        if not self.count:
            self._start(x, d)
        elif (x.shape[1], d.shape[1]) != self._cross.shape:
            raise ValueError(f"expected widths {[*self._cross.shape]}, got {[x.shape[1], d.shape[1]]}")
        for rows in zip(torch.split(x, _ROWS), torch.split(d, _ROWS), strict=True):
            self._add(*rows)
        self.count += len(x)

    def _add(self, x: Tensor, d: Tensor) -> None:
        x = x.to(self.products) - self._centre_x.to(x.device, self.products)
        d = d.to(self.products) - self._centre_d.to(d.device, self.products)
        with exact_products(x.device.type):
            self._multiply(x, d)
        self._sum_x += self._host(x.sum(0))
        self._sum_d += self._host(d.sum(0))

    def _multiply(self, x: Tensor, d: Tensor) -> None:
        """Add products of what is centred."""
        self._cross += self._host(x.T @ d)
        self._energy += self._host(torch.linalg.vector_norm(d, dim=1)).double().square().sum()

    @property
    def width(self) -> int:
        """Width p of x (0 before the first pair)."""
        return len(self._sum_x) if self.count else 0

    def freeze(self) -> CrossMoments:
        """The moments so far.

        Raises:
            ValueError: nothing was added yet.
        """
        if not self.count:
            raise ValueError("expected at least one pair, got none")
        mean_x, mean_d = self._sum_x / self.count, self._sum_d / self.count
        return CrossMoments(
            count=self.count,
            mean_x=self._centre_x + mean_x,
            mean_d=self._centre_d + mean_d,
            cross=torch.addr(self._cross, mean_x, mean_d, alpha=-self.count),
            energy=max(float(self._energy - self.count * mean_d @ mean_d), 0.0),
        )

    def _start(self, x: Tensor, d: Tensor) -> None:
        p, q = x.shape[1], d.shape[1]
        home = x.device if holds_float64(x.device) else torch.device("cpu")
        zeros = partial(torch.zeros, dtype=torch.float64, device=home)
        # Float32 numbers, so that they are subtracted as they are recorded in either precision.
        self._centre_x, self._centre_d = (part.to(home).double().mean(0).float().double() for part in (x, d))
        self._sum_x, self._sum_d = zeros(p), zeros(q)
        self._cross, self._energy = zeros(p, q), zeros(())

    def _host(self, part: Tensor) -> Tensor:
        return part.to(self._cross.device)


class MomentsAccumulator(CrossAccumulator):
    """Gathers `Moments` batch by batch, as `CrossAccumulator` does its own."""

    def __init__(self, products: torch.dtype = torch.float64) -> None:
        super().__init__(products)
        self._coarsest = torch.float64

    def freeze(self) -> Moments:
        """The moments so far.

        Raises:
            ValueError: nothing was added yet.
        """
        cross, mean = super().freeze(), self._sum_x / self.count
        gram = self._gram.triu() + self._gram.triu(1).T
        gram.addr_(mean, mean, alpha=-self.count)
        return Moments(**vars(cross), gram=gram, rounding=self._rounding.clone(), products=self._coarsest)

    def _start(self, x: Tensor, d: Tensor) -> None:
        super()._start(x, d)
        self._gram, self._rounding = self._cross.new_zeros(x.shape[1], x.shape[1]), torch.zeros_like(self._sum_x)

    def _multiply(self, x: Tensor, d: Tensor) -> None:
        super()._multiply(x, d)
        for start in range(0, x.shape[1], _STRIP):
            stop = start + _STRIP
            strip = self._host(x[:, start:stop].T @ x[:, start:])
            self._gram[start:stop, start:] += strip
            self._rounding[start:stop] += torch.finfo(self.products).eps * strip.diagonal()
        self._coarsest = min(self._coarsest, self.products, key=lambda dtype: dtype.itemsize)


def holds_float64(device: torch.device) -> bool:
    """Whether the device computes in float64 (Apple's MPS does not)."""
    return device.type != "mps"


@contextmanager
def exact_products(device_type: str) -> Iterator[None]:
    """Matrix products in full float32 or float64: no TF32, no bfloat16 passes, no autocast."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
