"""What does it cost to bound attentions of a decoder, and what does a summary of far tokens save?

A cell is a way to replace all attentions of a model, or half of them. Each is a file of its own in benchmarks/bounded, and one that is
there is not made again, so that a run which was stopped goes on: some minutes for stories260K, half an hour for
SmolLM2-135M on one core. All choices and fits are made on one text; each cell is scored once, on another.

    python benchmarks/bounded.py MODELS TEXTS [CELL ...]

MODELS: folder with smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct) and stories260K.
TEXTS: folder with wikitext2/fit.txt and score.txt, tinystories/train.txt and valid.txt, documents separated by
<|endoftext|>. Cells are named as their files.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import save

import rectilinear
from rectilinear import Bounded, CalibrationRows, Filter, Loading, Rows, Selection
from rectilinear.intervals import half_width, mean_over_groups
from rectilinear.linearization.kinds.base import Kind
from rectilinear.measurement.perplexity import token_losses
from rectilinear.models.describe import count_parameters
from rectilinear.models.load import load_config, load_model, load_tokenizer
from rectilinear.models.logits import next_logits, row_logits, tensors_in
from rectilinear.models.origin import Origin
from rectilinear.models.running import evaluating

CELLS = Path(__file__).parent / "bounded"
COMMAND = "python benchmarks/bounded.py MODELS TEXTS"


@dataclass(frozen=True)
class Some:
    """A kind for so many attentions, those whose replacement alone moves predictions least."""

    kind: Kind
    count: int


#: What attentions are replaced by: all of them, some of them, or none.
Way = Kind | Some | None


@dataclass(frozen=True)
class Study:
    """Ways to replace attentions of a model, by the names of their cells, and the texts that they are compared on.

    Errors are over documents; losses of late positions are those in the second half of a row.
    """

    model: str
    fit: str
    score: str
    seq_len: int
    fitted: int
    scored: int
    ways: Mapping[str, Way]
    batch: int

    def file(self, cell: str) -> Path:
        """Where a cell is."""
        return CELLS / f"{self.model}-{cell}.json"


#: SmolLM2 by state: some 16,500, 10,000 and 28,000 numbers a layer; a dense cache has 196,608 after a row.
STUDIES = [
    Study(
        "stories260K",
        "tinystories/train.txt",
        "tinystories/valid.txt",
        256,
        100_000,
        100_000,
        {
            "dense": None,
            "filter-24": Filter(rank=24),
            "streaming-8": Bounded(window=8, sinks=0, far="none", uniform=True),
            "windows-8": Bounded(window=8, sinks=0, far="none"),
            "mean-8": Bounded(window=8, sinks=0, far="mean"),
            "far-8-no-refit": Bounded(window=8, sinks=0, centroids=2, refit=False),
            "far-8": Bounded(window=8, sinks=0, centroids=2),
            "streaming-16": Bounded(window=16, sinks=0, far="none", uniform=True),
            "far-16": Bounded(window=16, sinks=0, centroids=2),
        },
        16,
    ),
    Study(
        "smollm2-135m",
        "wikitext2/fit.txt",
        "wikitext2/score.txt",
        512,
        32_000,
        10**9,
        {
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
        2,
    ),
]


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    models, texts = map(Path, sys.argv[1:3])
    CELLS.mkdir(exist_ok=True)
    for study in STUDIES:
        for cell, way in study.ways.items():
            file = study.file(cell)
            if sys.argv[3:] and file.stem not in sys.argv[3:]:
                continue
            if not file.exists():
                made = measure(study, models / study.model, texts, way)
                save(str(file), __doc__.splitlines()[0], {"cell": cell, **made}, COMMAND, show=False)
            print(file.stem, describe(study, json.loads(file.read_text())), flush=True)


def measure(study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, and what the fit was."""
    tokenizer, start = load_tokenizer(model), time.perf_counter()
    loading = Loading(device="cpu", dtype="float32")
    kind, chosen = (way.kind, {"count": way.count, "select": "divergence"}) if isinstance(way, Some) else (way, None)
    options = kind and {"kind": kind.name, **kind.model_dump(mode="json")}
    found: dict[str, Any] = {"model": study.model, "options": options, "chosen": chosen, "seq_len": study.seq_len}
    if kind is None:
        edited: Any = load_model(model, loading)
    else:
        rows = CalibrationRows(
            max_tokens=study.fitted * 10 // 9 // study.seq_len * study.seq_len, seq_len=study.seq_len
        )
        chosen = chosen or {"blocks": [*range(load_config(model).num_hidden_layers)]}
        selection = Selection(target="attention", **chosen)
        made = rectilinear.linearize(
            model,
            texts / study.fit,
            kind,
            selection,
            rows=rows,
            loading=loading,
            batch_size=study.batch,
            progress=False,
        )
        edited = made.model
        found["blocks"] = [one.blocks[0] for one in made.plan.replacements]
        found["fit"] = [one.fit.model_dump(mode="json") for one in made.plan.replacements if one.fit]
        found["fit_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    read = Origin(model, Loading()).rows(
        texts / study.score, Rows(max_tokens=study.scored, seq_len=study.seq_len), tokenizer
    )
    found["parameters"] = count_parameters([edited])
    found["floats_a_layer"] = state_of(edited, read.ids[:1])
    groups = read.documents[:, 1:].long() - int(read.documents.min())
    sums = {name: torch.zeros(int(groups.max()) + 1, dtype=torch.float64) for name in ("all", "late")}
    sizes = {name: torch.zeros(len(sums["all"]), dtype=torch.long) for name in sums}
    late = (torch.arange(1, study.seq_len) >= study.seq_len // 2).expand_as(groups)
    parts = zip(*(each.split(2 * study.batch) for each in (read.ids, groups, late)), strict=True)
    with evaluating(edited), torch.no_grad():
        for ids, group, chosen in parts:
            losses = token_losses(row_logits(edited, ids), ids)
            for name, which in (("all", torch.ones_like(chosen)), ("late", chosen)):
                sums[name].index_add_(0, group[which], losses[which].double())
                sizes[name].index_add_(0, group[which], torch.ones_like(group[which]))
    found["score_seconds"] = time.perf_counter() - start
    found["rows"] = len(read.ids)
    found["sums"] = {name: each.tolist() for name, each in sums.items()}
    found["sizes"] = {name: each.tolist() for name, each in sizes.items()}
    return found


def state_of(model: Any, ids: torch.Tensor) -> int:
    """Numbers of floating point that a replaced layer of the cache keeps after a row, on average; any, if none is."""
    _, cache = next_logits(model, ids)
    layers = cache.value.layers  # type: ignore[union-attr]
    held = [sum(each.numel() for each in tensors_in(vars(layer)) if each.is_floating_point()) for layer in layers]
    least = [count for count in held if count < max(held)] or held
    return sum(least) // len(least)


def describe(study: Study, cell: dict[str, Any]) -> str:
    """Its loss, and how much more that is than of the dense model."""
    dense = json.loads(study.file("dense").read_text())
    words = [f"{cell['floats_a_layer']:,} floats a layer"]
    for name in ("all", "late"):
        value, stderr, groups = difference(cell, dense, name)
        words.append(f"{name} {value:+.4f} +- {half_width(stderr or 0.0, groups):.4f}")
    return ", ".join(words)


def difference(cell: dict[str, Any], dense: dict[str, Any], name: str) -> tuple[float, float | None, int]:
    """How much larger the loss is than the dense model's, its standard error over documents, and how many these are."""
    pairs = zip(cell["sums"][name], dense["sums"][name], cell["sizes"][name], strict=True)
    kept = [(one - other, size) for one, other, size in pairs if size]
    sums, sizes = zip(*kept, strict=True)
    return *mean_over_groups(sums, sizes), len(kept)


if __name__ == "__main__":
    main()
