"""Write docs/bounded.md: what bounding all attentions of a decoder costs, from the cells in benchmarks/bounded.

python benchmarks/bounded_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bounded import COMMAND, STUDIES
from page import table
from scoring import Study, about_rows, cache_of_replaced, loss_of

from rectilinear.linearization.kinds import make_kind

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "bounded.md"

BEGIN = f"""# Attention with a bounded memory

What it costs to replace all attentions of a model, or those half of them that move predictions least, by ones whose memory does not grow with the text (`--kind bounded`, [linearization.md](linearization.md#what-stands-in)), without any training.
All choices and fits are made on one text, and each row of a table is scored once on another: `{COMMAND}`. Losses are in nats a token above the dense model's; ± is half of a 95 % interval
over documents of the paired difference (Student's t); *late* is the second half of each row, where more is far. *Numbers a layer*: floating-point numbers that the cache holds for a row in a layer whose attention is replaced, whatever its
length from some 100 tokens on; the dense cache grows, and is given after one row. The same window for each head without far tokens is StreamingLLM's (arXiv 2309.17453), with positions as they are in the text. Whether the refit pays depends on model and texts: compare the rows with it and without.
"""


def page() -> str:
    """The text."""
    parts = [BEGIN, *(about(study) for study in STUDIES if study.file("dense").exists())]
    decoding = HERE / "bounded_decoding.json"
    return "\n".join([*parts, *([about_decoding(json.loads(decoding.read_text()))] if decoding.exists() else [])])


def about(study: Study) -> str:
    """The cells of a model that are there."""
    cells = study.cells()
    dense = cells["dense"]
    rows = []
    for cell in cells.values():
        options = dict(cell["options"] or {})
        way = str(make_kind(options.pop("kind"), options)) if options else "the dense model"
        way = f"{cell['chosen']['count']} of them: {way}" if cell.get("chosen") else way
        losses = [loss_of(cell, dense, name) for name in ("all", "late")]
        rows.append([way, f"{cache_of_replaced(cell, study):,}", f"{cell['parameters']:,}", *losses])
    headings = ["attentions replaced by", "numbers a layer", "parameters", "loss", "late"]
    return f"\n## {study.model}\n\n{about_rows(study)}\n\n{table(headings, rows)}\n"


def about_decoding(result: dict[str, Any]) -> str:
    """How fast steps are."""
    rows = [
        [
            model["name"],
            f"{case['length']:,}",
            f"{1000 * case['seconds']['dense']['median']:.1f} ms",
            f"{1000 * case['seconds']['bounded']['median']:.1f} ms",
            f"{case['ratio']['median']:.2f} ({case['ratio']['min']:.2f} to {case['ratio']['max']:.2f}, n = {case['ratio']['n']})",
            f"{case['ratio_by_bytes']:.2f}",
            f"{case['cache_bytes']['bounded'] / case['cache_bytes']['dense']:.2%}",
        ]
        for model in result["models"]
        for case in model["cases"]
    ]
    headings = [
        "decoder",
        "tokens before",
        "dense step",
        "bounded step",
        "ratio",
        "at most, by bytes",
        "cache, of the dense one",
    ]
    return (
        "\n## Decoding\n\n"
        f"`{result['command']}`, {result['date']}, {result['machine']['processor']}, {result['machine']['threads']} thread: a step of decoding of one row with random weights, float32, "
        "interleaved with the dense model's; 4 sinks, 4 centroids. Those of width 1,024 have windows of 32 and no refit, that of SmolLM2-135M's shape has the windows and refitted outputs of *bounded, window 33, sinks 4, far centroids 4* above. "
        "The dense model's steps cost more than its bytes: transformers' dynamic cache copies itself at each. A step of bounded attention is the same at any length: many small operations for each attention, beside the weights.\n\n"
        + table(headings, rows)
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
