"""Which replacements to make under a budget: an integer program over what each costs alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from rectilinear.linearization.plan import CostRecord

# Coefficients of the replacements, and what their sum is at most.
_Limit = tuple[NDArray[np.float64], float]


def cheapest(
    costs: Sequence[CostRecord], limits: Mapping[str, float], num_blocks: int, by: str = "divergence"
) -> Iterator[list[CostRecord]]:
    """Choices of replacements that save enough: the one with the least sum of divergences, then others to compare.

    Errors of many replacements add up to more than their sum, so that fewer may do better: next come the cheapest
    choices of fewer and fewer, then what is cheapest of all others.

    With ``x_j`` in {0, 1} for each replacement j it minimises ``sum_j x_j divergence_j`` where ``sum_j x_j change_j``
    is at most the limit of each quantity, no part of a block is replaced twice, a block stays, and so does what comes
    before a block that is folded into it. Solved exactly, by HiGHS; for the next one, what was found is excluded.

    Args:
        costs: of replacements of blocks, runs of them, or parts of them.
        limits: the largest sum of changes by quantity, those of `rectilinear.linearization.budget.QUANTITIES`.
        num_blocks: of the model.
        by: what has the least sum.
    """
    rows, most, shrinks = _rows(costs, limits, num_blocks), float(len(costs)), True
    while True:
        chosen = _solved(costs, [*rows, (np.ones(len(costs)), most)], by)
        if chosen is not None:
            yield _taken(costs, chosen)
            rows.append((np.where(chosen, 1.0, -1.0), float(chosen.sum()) - 1))  # not the same again
            most = float(chosen.sum()) - 1 if shrinks else most
        elif shrinks:
            most, shrinks = float(len(costs)), False
        else:
            return


def exchanges(
    costs: Sequence[CostRecord], limits: Mapping[str, float], num_blocks: int, chosen: Sequence[CostRecord]
) -> list[list[CostRecord]]:
    """Choices near one: with each other replacement in it the cheapest that gives up two of those in it at most.

    The cheapest of these first; see `cheapest`.
    """
    inside = np.array([cost in chosen for cost in costs])
    rows = [*_rows(costs, limits, num_blocks), (-inside.astype(float), 2.0 - len(chosen))]
    found = []
    for number in np.flatnonzero(~inside):
        near = _solved(costs, rows, "divergence", included=int(number))
        if near is not None:
            found.append((float(_of_each(costs, "divergence")[near].sum()), int(number), _taken(costs, near)))
    return [choice for *_, choice in sorted(found, key=lambda one: one[:2])]


def least_shares(
    costs: Sequence[CostRecord], whole: Mapping[str, float], num_blocks: int, limited: Iterable[str]
) -> str:
    """The least that replacements can leave of each limited quantity by itself, as a budget has it."""
    found = []
    for name in limited:
        chosen = next(cheapest(costs, {}, num_blocks, by=name))
        left = 1 + sum(getattr(cost, name) for cost in chosen) / whole[name]
        found.append(f"{name}={100 * left:.4g}%")
    return ",".join(found)


def _of_each(costs: Sequence[CostRecord], name: str) -> NDArray[np.float64]:
    return np.array([getattr(cost, name) for cost in costs], dtype=float)


def _rows(costs: Sequence[CostRecord], limits: Mapping[str, float], num_blocks: int) -> list[_Limit]:
    rows = [*_exclusive(costs, num_blocks)]
    for name, limit in limits.items():
        scale = max(abs(limit), 1.0)
        rows.append((_of_each(costs, name) / scale, limit / scale))
    return rows


def _solved(
    costs: Sequence[CostRecord], rows: Sequence[_Limit], by: str, included: int | None = None
) -> NDArray[np.bool_] | None:
    """Which replacements have the least sum, one of them ``included``; None where no choice is within the limits."""
    least = np.zeros(len(costs))
    if included is not None:
        least[included] = 1.0
    found = milp(
        _of_each(costs, by),
        integrality=np.ones(len(costs)),
        bounds=Bounds(least, 1),
        constraints=LinearConstraint(np.stack([row for row, _ in rows]), -np.inf, [most for _, most in rows]),
        options={"mip_rel_gap": 0.0},
    )
    return None if found.x is None else np.asarray(found.x > 0.5)


def _taken(costs: Sequence[CostRecord], chosen: NDArray[np.bool_]) -> list[CostRecord]:
    return [cost for cost, taken in zip(costs, chosen, strict=True) if taken]


def _exclusive(costs: Sequence[CostRecord], num_blocks: int) -> Iterator[_Limit]:
    """What replacements can be made together."""
    parts: dict[tuple[int, str], list[int]] = {}
    for number, cost in enumerate(costs):
        for part in cost.replacement.parts:
            parts.setdefault(part, []).append(number)

    def of(numbers: Iterable[int]) -> NDArray[np.float64]:
        row = np.zeros(len(costs))
        row[[*numbers]] = 1.0
        return row

    for numbers in parts.values():
        yield of(numbers), 1.0
    yield np.array([float(len(cost.replacement.removed)) for cost in costs]), num_blocks - 1.0
    for number, cost in enumerate(costs):
        for part in cost.replacement.rests_on:
            for other in parts.get(part, ()):
                yield of([number, other]), 1.0
