"""Draw docs/quality-NAME.png from benchmarks/quality-NAME.json: loss against parameters and against the cache.

python benchmarks/pareto.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

# Okabe and Ito's colours; a marker each, for readers in grey.
STYLES = {
    "drop": ("#666666", "x", "drop"),
    "folded": ("#E69F00", "v", "folded (ReplaceMe)"),
    "affine": ("#0072B2", "s", "affine (the paper, NBL)"),
    "filter": ("#D55E00", "o", "causal linear filter"),
    "window": ("#009E73", "+", "window, nothing fitted"),
}


def main() -> None:
    for path in sorted(HERE.glob("quality-*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained", sharey=True)
        parameters = result["dense"]["parameters"]
        draw(left, result, lambda case, dense=parameters: case["parameters"] / dense)
        draw(right, result, lambda case: case.get("cache_ratio"))
        left.set_xlabel("parameters, share of the dense model's")
        right.set_xlabel("cache after 160 tokens, share of the dense model's")
        left.set_ylabel("loss increase, nats per token")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
        figure.suptitle(
            f"{result['model']}: every replacement tried, scored on {result['scored']['tokens']:,} tokens of "
            f"{result['scored']['text']}; filled: healed",
            x=0.01,
            ha="left",
            fontsize=9,
        )
        figure.savefig(DOCS / path.with_suffix(".png").name, dpi=200)
        print(f"wrote {DOCS / path.with_suffix('.png').name}")


def draw(axes: Axes, result: dict[str, Any], x_of: Any) -> None:
    """One point for each case that has the number."""
    for kind, (color, marker, label) in STYLES.items():
        for healed in (False, True):
            chosen = [
                (x_of(case), case["loss_increase"])
                for name, case in result["cases"].items()
                if name.startswith(kind) and ("healed" in name) is healed and x_of(case) is not None
            ]
            if chosen:
                xs, ys = zip(*chosen, strict=True)
                hollow = {"facecolors": "none"} if marker in "osv" and not healed else {}
                edges = {"edgecolors": color} if marker in "osv" else {"color": color}
                if healed:
                    edges = {"color": color}
                axes.scatter(
                    xs, ys, marker=marker, s=26, linewidths=1.1, label=None if healed else label, **hollow, **edges
                )
    axes.set_yscale("log")
    axes.axvline(1, color="#bbbbbb", linewidth=0.8, linestyle=":")
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
