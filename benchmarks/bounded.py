"""What does it cost to bound all attentions of a decoder, and what does a summary of far tokens save?

A cell is a way to replace all attentions of a model, or half of them. Each is a file of its own in benchmarks/bounded,
and one that is there is not made again, so that a run which was stopped goes on: some minutes for stories260K, half an
hour for SmolLM2-135M on one core. All choices and fits are made on one text; each cell is scored once, on another.

    python benchmarks/bounded.py MODELS TEXTS [CELL ...]

MODELS: folder with smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct), gemma3-270m (google/gemma-3-270m) and
stories260K.
TEXTS: folder with wikitext2/fit.txt and score.txt, tinystories/train.txt and valid.txt, documents separated by
<|endoftext|>. Cells are named as their files.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scoring import GEMMA3, LOADING, SMOLLM2, STORIES, Study, linearized, make_cells, score

from rectilinear import Bounded, Filter, Plan, Selection
from rectilinear.linearization.kinds.base import Kind
from rectilinear.models.load import load_model

COMMAND = "python benchmarks/bounded.py MODELS TEXTS"


@dataclass(frozen=True)
class Some:
    """A kind for so many attentions, those whose replacement alone moves predictions least."""

    kind: Kind
    count: int


#: What attentions are replaced by: all of them, some of them, or none.
Way = Kind | Some | None


#: SmolLM2 by state: some 16,500, 10,000 and 28,000 numbers a layer; a dense cache has 196,608 after a row. Gemma 3: some
#: 23,000 of 262,144.
STUDIES = [
    replace(
        STORIES,
        ways={
            "dense": None,
            "filter-24": Filter(rank=24),
            "streaming-8": Bounded(window=8, sinks=0, far="none", uniform=True),
            "windows-8": Bounded(window=8, sinks=0, far="none"),
            "mean-8": Bounded(window=8, sinks=0, far="mean"),
            "far-8-no-refit": Bounded(window=8, sinks=0, centroids=2, refit=False),
            "far-8": Bounded(window=8, sinks=0, centroids=2),
            "streaming-16": Bounded(window=16, sinks=0, far="none", uniform=True),
            "far-16": Bounded(window=16, sinks=0, centroids=2),
            "two-8": Some(Bounded(window=8, sinks=0, centroids=2), 2),
            "two-streaming-8": Some(Bounded(window=8, sinks=0, far="none", uniform=True), 2),
        },
    ),
    replace(
        SMOLLM2,
        ways={
            "dense": None,
            "far-33": Bounded(window=33),
            "far-33-no-refit": Bounded(window=33, refit=False),
            "streaming-39": Bounded(window=39, far="none", uniform=True),
            "far-16": Bounded(window=16),
            "streaming-23": Bounded(window=23, far="none", uniform=True),
            "far-63": Bounded(window=63),
            "streaming-69": Bounded(window=69, far="none", uniform=True),
            "windows-39": Bounded(window=39, far="none"),
            "half-33": Some(Bounded(window=33), 15),
            "half-8": Some(Bounded(window=8), 15),
            "half-streaming-39": Some(Bounded(window=39, far="none", uniform=True), 15),
            "half-streaming-15": Some(Bounded(window=15, far="none", uniform=True), 15),
        },
    ),
    replace(
        GEMMA3,
        ways={
            "dense": None,
            "far-33": Bounded(window=33),
            "streaming-41": Bounded(window=41, far="none", uniform=True),
        },
    ),
]


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    make_cells(STUDIES, measure, __doc__.splitlines()[0], COMMAND)


def measure(study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, and what the fit was."""
    start = time.perf_counter()
    kind, chosen = parts_of(way)
    options = kind and {"kind": kind.name, **kind.model_dump(mode="json")}
    found: dict[str, Any] = {"model": study.model, "options": options, "chosen": chosen, "seq_len": study.seq_len}
    edited, plan = bounded(study, model, texts, way)
    if plan is not None:
        found["blocks"] = [one.blocks[0] for one in plan.replacements]
        found["fit"] = [one.fit.model_dump(mode="json") for one in plan.replacements if one.fit]
        found["fit_seconds"] = time.perf_counter() - start
    return {**found, **score(study, model, texts, edited)}


def parts_of(way: Way) -> tuple[Kind | None, dict[str, Any] | None]:
    """The kind, and what attentions are chosen by; None for the dense model, and where all are replaced."""
    return (way.kind, {"count": way.count, "select": "divergence"}) if isinstance(way, Some) else (way, None)


def bounded(
    study: Study, model: Path, texts: Path, way: Way, blocks: Sequence[int] | None = None
) -> tuple[Any, Plan | None]:
    """A model with its attentions replaced, of some blocks where they are known, and what by; the dense one without."""
    kind, chosen = parts_of(way)
    if kind is None:
        return load_model(model, LOADING), None
    if chosen is None or blocks is not None:
        chosen = {"blocks": [*(range(study.depth) if blocks is None else blocks)]}
    selection = Selection(target="attention", **chosen)
    made = linearized(study, model, texts, kind, selection)
    return made.model, made.plan


if __name__ == "__main__":
    main()
