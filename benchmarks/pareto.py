"""Draw docs/quality-NAME.png from benchmarks/quality-NAME.json: loss against parameters and against the cache.

python benchmarks/pareto.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any

from rectilinear.charts import Axis, Chart, Curves, Line, frontier, unbeaten
from rectilinear.report.static import save

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

LOOKS = {
    "drop": ("drop", {"color": "grey", "marker": "cross"}),
    "folded": ("folded (ReplaceMe)", {"color": "yellow", "marker": "down"}),
    "affine": ("affine (the paper, NBL)", {"color": "blue", "marker": "square"}),
    "filter": ("causal linear filter", {"color": "orange", "marker": "circle"}),
    "window": ("window, nothing fitted", {"color": "green", "marker": "triangle"}),
}


def main() -> None:
    for path in sorted(HERE.glob("quality-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        parameters = result["dense"]["parameters"]
        panels = (
            panel(result, "Against size", "parameters", lambda case, dense=parameters: case["parameters"] / dense),
            panel(result, "Against the cache", "cache after 160 tokens", lambda case: case.get("cache_ratio")),
        )
        scored = result["scored"]
        title = f"{result['model']}: every replacement tried, scored on {scored['tokens']:,} tokens of {scored['text']}"
        [name] = save(Chart(path.stem, title, panels, alike=False), DOCS, ("png",))
        print(f"wrote {DOCS / name}")


def panel(result: dict[str, Any], title: str, what: str, cost: Callable[[dict[str, Any]], float | None]) -> Curves:
    """Increase of the loss against a cost, and the frontier of what nothing beats in both."""
    points = {
        name: (x, case["loss_increase"], case["loss_increase_stderr"])
        for name, case in result["cases"].items()
        if (x := cost(case)) is not None and case["loss_increase"] > 0
    }
    best = unbeaten((x, y, name) for name, (x, y, _) in points.items())
    numbers = {name: place for place, (*_, name) in enumerate(best, 1)}
    lines = []
    for kind, (label, look) in LOOKS.items():
        own = {name: point for name, point in points.items() if name.startswith(kind)}
        if own:
            x, y, errors = zip(*own.values(), strict=True)
            names = tuple(str(numbers[name]) if name in numbers else "" for name in own)
            lines.append(Line.of(label, x, y, [2 * error for error in errors], dash="none", names=names, **look))
    lines.insert(0, frontier(best))
    named = fill("; ".join(f"{place} {name}" for name, place in numbers.items()), 52)
    axes = Axis(f"{what}, share of the dense model's\n{named}"), Axis("loss increase, nats a token", "log")
    return Curves(title, *axes, tuple(lines))


if __name__ == "__main__":
    main()
