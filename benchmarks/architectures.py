"""The page of the architectures: what can be done with each, from the results of ``python -m tests.matrix``.

    python benchmarks/architectures.py

Reads ``architectures.json`` (the lock's transformers), and ``architectures-oldest.json`` where it is there, and writes
``docs/architectures.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "architectures.json"
OLDEST = ROOT / "benchmarks" / "architectures-oldest.json"
PAGE = ROOT / "docs" / "architectures.md"

#: What is tried, and what a column of the page is called.
COLUMNS = {
    "measure": "measure",
    "drop": "drop a block",
    "affine": "affine block",
    "filter": "filter block",
    "drop attention": "drop attention",
    "filter attention": "filter attention",
    "affine mlp": "affine MLP",
    "original": "decodes",
}
MARKS = {"ok": "yes", "refused": "no", "failed": "fails", "wrong": "**wrong**", "traceback": "**traceback**"}

INTRODUCTION = """\
Rectilinear has no table of architectures. Blocks are found by structure, and what can be replaced in them by running
the model on a few tokens: the part of a block that mixes tokens is its attention, whatever it is (a convolution, a
recurrence), and the part that sees each token alone is its MLP. Which fields of a configuration say how many blocks there
are is found by building the model without its weights.

This page is what came of it for every causal language model type of transformers, each as a tiny model with random
weights (`make matrix`). *Measure*: scores equal those of stored float64 activations, by a singular value
decomposition, to 1e-5. *Drop*, *affine*, *filter*: of some block, or of its attention or MLP; what is dropped
computes what the original does without it, what is replaced as an attention mixes tokens and what is replaced as an MLP
does not, and the checkpoint loads with the same logits and, where the original does so, decodes with a
cache as without one. *Decodes*: transformers itself saves, loads and decodes the original like that.

Types that are encoders by default are tried as the decoders that a field of their configuration (`is_decoder`) makes of them. As an encoder, whose
tokens see later ones, a model is measured, and neither evaluated nor linearized.

*No* is a line before any work is done, *fails* one after; the reasons are below the table. Where several blocks could be
meant, `--blocks PATH` (`--stack` to linearize) chooses."""


def answers_of(result: Mapping[str, Any], column: str) -> dict[str, Mapping[str, str]]:
    """How a column went, by type, as far as it was tried."""
    return {name: row["answers"][column] for name, row in result["types"].items() if column in row["answers"]}


def count(result: Mapping[str, Any], column: str, status: str = "ok") -> int:
    """Types of which a column has some status."""
    return sum(answer["status"] == status for answer in answers_of(result, column).values())


def page(result: Mapping[str, Any], oldest: Mapping[str, Any] | None) -> str:
    """The page; every number in it comes from the results."""
    versions, types = result["environment"], result["types"]
    lines = [
        "# Architectures",
        "",
        "<!-- Written by benchmarks/architectures.py from architectures.json beside it. Do not edit. -->",
        "",
        INTRODUCTION,
        "",
        f"Of {len(types)} types with transformers {versions['transformers']} (torch {versions['torch']}, "
        f"{result['date']}), {count(result, 'built')} can be built and {count(result, 'blocks')} have blocks that are found:",
        "",
        "| " + " | ".join(["", *COLUMNS.values()]) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        "| yes | " + " | ".join(str(count(result, column)) for column in COLUMNS) + " |",
        *(
            f"| {MARKS[s]} | " + " | ".join(str(count(result, c, s)) for c in COLUMNS) + " |"
            for s in ("refused", "failed")
        ),
        "",
        "| model type | blocks at | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
        *(_row(name, row) for name, row in types.items()),
        "",
        "## Reasons",
        "",
        *(line for name, row in types.items() for line in _reasons(name, row["answers"])),
    ]
    if oldest is not None:
        lines += ["", "## With the oldest transformers", "", *_differences(result, oldest)]
    return "\n".join(lines) + "\n"


def _row(name: str, row: Mapping[str, Any]) -> str:
    marks = [MARKS[row["answers"][column]["status"]] if column in row["answers"] else "" for column in COLUMNS]
    return f"| {name} | {'`' + row['blocks'] + '`' if 'blocks' in row else ''} | " + " | ".join(marks) + " |"


def _reasons(name: str, answers: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """A line for each reason, with what it is the reason of."""
    columns: dict[str, list[str]] = {}
    for column, answer in answers.items():
        if answer["status"] != "ok":
            reason = " ".join(answer["reason"].split()).replace("|", "\\|")
            columns.setdefault(reason, []).append(COLUMNS.get(column, column))
    for reason, of in columns.items():
        yield f"- {name}, {', '.join(of)}: {reason}"


def _differences(result: Mapping[str, Any], oldest: Mapping[str, Any]) -> Iterable[str]:
    """What went otherwise with the oldest version that is supported."""
    now, then = result["types"], oldest["types"]
    version = oldest["environment"]["transformers"]
    only = sorted(now.keys() - then.keys()), sorted(then.keys() - now.keys())
    yield f"With transformers {version}, {len(then)} types are there; {', '.join(only[0]) or 'none'} came later."
    yield ""
    for name in sorted(now.keys() & then.keys()):
        for column, title in {"built": "built", "blocks": "blocks", **COLUMNS}.items():
            pair = [types[name]["answers"].get(column, {"status": "not tried"}) for types in (then, now)]
            if pair[0]["status"] != pair[1]["status"]:
                why = next((each["reason"] for each in pair if each.get("reason")), "")
                yield f"- {name}, {title}: {pair[0]['status']}, now {pair[1]['status']} ({' '.join(why.split())})"


def main() -> None:
    """Write the page."""
    oldest = json.loads(OLDEST.read_text()) if OLDEST.exists() else None
    PAGE.write_text(page(json.loads(RESULT.read_text()), oldest), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
