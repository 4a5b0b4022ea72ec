"""What choices within several budgets keep and lose: a table, and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from rectilinear.charts import Axis, Chart, Curves, Line, frontier, unbeaten
from rectilinear.linearization.replacement import Replacement
from rectilinear.results import IntervalRecord, Record
from rectilinear.tables import Column, Estimate, Table


class SweepRecord(Record):
    """The choice that was found within a budget: what it replaces, what it keeps and what it loses."""

    budget: str
    replacements: tuple[Replacement, ...]
    parameters: int = Field(description="of the model with it")
    cache_bytes: int | None = Field(description="after `budget_tokens`; null where the model has no cache")
    divergence: float = Field(description="sum of what each replacement costs alone, nats a token")
    increase: float | None = Field(description="of the loss on held-out rows, nats a token; null where there are none")
    interval: IntervalRecord | None = Field(description="of the increase, over rows; null for a single one")

    @property
    def replaced(self) -> str:
        """What is replaced by what, in words."""
        found: dict[str, list[str]] = {}
        for one in self.replacements:
            found.setdefault(f"{one.target} {one.by}", []).append(one.where)
        return "; ".join(f"{what}: {', '.join(blocks)}" for what, blocks in found.items())

    @property
    def kept(self) -> dict[str, int | None]:
        """How much of each quantity that a budget can be of."""
        return {"parameters": self.parameters, "cache": self.cache_bytes}


def sweep_table(points: Sequence[SweepRecord], title: str, budget_tokens: int | None, tokens: int) -> Table:
    """A line for each budget, from the loosest to the tightest."""
    cached = any(point.cache_bytes is not None for point in points)
    columns: list[Column | str] = ["budget", "replaced", Column("parameters", ",d")]
    columns += [Column("cache bytes", ",d")] * cached + [Column("alone", ".4f"), Column("loss", "+.4f")]
    rows = [
        (point.budget, point.replaced, point.parameters, *[point.cache_bytes] * cached, point.divergence, loss)
        for point, loss in zip(points, _losses(points), strict=True)
    ]
    caption = [f"cache bytes: after {budget_tokens:,} tokens"] * cached
    caption.append("alone: sum of the divergences of each replacement by itself, the least within the budget")
    if any(point.increase is not None for point in points):
        about = "± half of its 95 % interval over rows; *: a tighter budget loses less"
        caption.append(f"loss: increase on {tokens:,} tokens that nothing was fitted on, nats a token {about}")
    return Table.of(columns, rows, title=title, caption="\n".join(caption))


def _losses(points: Sequence[SweepRecord]) -> Iterator[Estimate | None]:
    """Of each, marked where one that comes later has less."""
    for number, point in enumerate(points):
        later = [other.increase for other in points[number:] if other.increase is not None]
        value = point.increase
        yield None if value is None else Estimate(value, _half(point), mark="*" * (min(later) < value))


def sweep_chart(points: Sequence[SweepRecord], title: str, before: dict[str, int | None], tokens: int) -> Chart | None:
    """Loss against what budgets limit; None where no losses are known.

    Args:
        points: of each budget.
        title: what it is about.
        before: what the original has of each quantity that a budget can be of.
        tokens: that losses are of.
    """
    panels = tuple(_panels([point for point in points if point.increase is not None], before))
    caption = (
        f"Choices found within some budgets; losses on {tokens:,} tokens that nothing was fitted on, with 95 % "
        "intervals over rows of the difference. Towards the lower left is better; no choice is below the frontier."
    )
    return Chart("sweep", title, panels, caption, alike=False) if panels else None


def _panels(points: Sequence[SweepRecord], before: dict[str, int | None]) -> Iterator[Curves]:
    for title, name, label in (
        ("Against size", "parameters", "parameters"),
        ("Against the cache", "cache", "bytes of cache"),
    ):
        if (whole := before[name]) is None or not any(name in point.budget for point in points):
            continue
        kept = [point.kept[name] or 0 for point in points]
        losses, halves = [point.increase or 0.0 for point in points], [*map(_half, points)]
        names = tuple(point.budget for point in points)
        found = Line.of("a choice", kept, losses, halves, dash="none", marker="circle", names=names)
        original = Line.of("the original", [whole], [0.0], dash="none", marker="square", color="orange")
        corners = unbeaten([(whole, 0.0, ""), *zip(kept, losses, names, strict=True)])
        y = Axis("loss above the original's, nats a token")
        yield Curves(title, Axis(label), y, (frontier(corners), found, original))


def _half(point: SweepRecord) -> float | None:
    return point.interval.half_width if point.interval else None
