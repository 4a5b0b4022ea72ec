"""What choices within several budgets keep and lose: a table, and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from rectilinear.charts import Axis, Chart, Curves, Line, frontier, unbeaten
from rectilinear.linearization.budget import percent
from rectilinear.linearization.replacement import Replacement, words_of
from rectilinear.results import IntervalRecord, Record
from rectilinear.tables import Cell, Column, Estimate, Table


class SweepRecord(Record):
    """The best choice that is known within a budget: what it replaces, what it keeps and what it loses."""

    budget: str
    quantity: str = Field(description="in which the budgets differ: parameters, cache or decoding")
    share: float = Field(description="of it that is kept at most")
    kept: float = Field(description="share of it that is kept")
    taken: bool = Field(description="whether it is what was replaced")
    replacements: tuple[Replacement, ...]
    parameters: int = Field(description="of the model with it")
    cache_bytes: int | None = Field(description="after `budget_tokens`; null where the model has no cache")
    divergence: float = Field(description="sum of what each replacement costs alone, nats a token")
    increase: float | None = Field(description="of the loss on held-out rows, nats a token; null where there are none")
    stderr: float | None = Field(description="of the increase, over rows; null for a single one")
    interval: IntervalRecord | None = Field(description="of the increase, by Student's t over rows")


def sweep_table(points: Sequence[SweepRecord], title: str, original: Sequence[int | None], caption: str) -> Table:
    """A line for each budget, from the loosest to the tightest, after one for the original.

    Args:
        points: of the budgets.
        title: what it is about.
        original: its parameters, and the bytes of its cache; None where it has none.
        caption: how the last columns are to be read.
    """
    parameters, cache = original
    columns: list[Column | str] = ["budget", "replaced", Column("parameters", ",d")]
    timed = any(point.quantity == "decoding" for point in points)
    columns += [Column("cache bytes", ",d")] * (cache is not None) + [Column("decoding", ".1%")] * timed
    columns += [Column("alone", ".4f"), Column("loss", "+.4f")]
    whole = [1.0] * timed
    rows: list[tuple[Cell, ...]] = [("the original", "nothing", *_sizes(parameters, cache), *whole, None, None)]
    for point in points:
        loss = None if point.increase is None else Estimate(point.increase, point.stderr)
        budget = f"{point.budget}{' *' * point.taken}"
        sizes = _sizes(point.parameters, point.cache_bytes)
        kept = [point.kept] * timed
        rows.append((budget, words_of(point.replacements), *sizes, *kept, point.divergence, loss))
    return Table.of(columns, rows, title=title, caption=caption)


def _sizes(parameters: int | None, cache: int | None) -> list[int | None]:
    return [parameters, *([] if cache is None else [cache])]


def sweep_chart(points: Sequence[SweepRecord], title: str, caption: str) -> Chart | None:
    """Loss against what is kept of the quantity that budgets differ in; None where no losses are known."""
    known = [point for point in points if point.increase is not None]
    if not known:
        return None
    whats = {
        "parameters": "parameters",
        "cache": "bytes of the cache",
        "decoding": "time to decode a token, by each alone,",
    }
    what = whats[known[0].quantity]
    x, y = Axis(f"{what} kept, %"), Axis("loss above the original's, nats a token")
    corners = unbeaten([(100.0, 0.0, ""), *((100 * each.kept, each.increase or 0.0, each.budget) for each in known)])
    panel = Curves("", x, y, (frontier(corners), *_lines(known)))
    return Chart("sweep", title, (panel,), f"{caption} Towards the lower left is better.")


def _lines(points: Sequence[SweepRecord]) -> Iterator[Line]:
    """The choices, and the original."""
    for label, taken, color in (("a choice", False, "blue"), ("the checkpoint", True, "green")):
        some = [point for point in points if point.taken == taken]
        halves = [point.interval.half_width if point.interval else None for point in some]
        if some:
            yield Line.of(
                label,
                [100 * point.kept for point in some],
                [point.increase for point in some],
                halves,
                dash="none",
                marker="diamond" if taken else "circle",
                color=color,
                names=tuple(percent(point.share) for point in some),
            )
    yield Line.of("the original", [100.0], [0.0], dash="none", marker="square", color="orange")
