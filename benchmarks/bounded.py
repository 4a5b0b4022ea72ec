"""What does it cost to bound all attentions of a decoder that people use, and what does a summary of far tokens save?

A cell is a way to bound them. Each is a file of its own in benchmarks/bounded, and one that is there is not made again,
so that a run which was stopped goes on: a quarter of an hour for the fit and as much for the score, on one core. All
choices and fits are made on wikitext2/fit.txt; each cell is scored once, on all of wikitext2/score.txt, in rows of 512.

    python benchmarks/bounded.py MODELS TEXTS [CELL ...]

MODELS: folder with smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct).
TEXTS: folder with wikitext2/fit.txt and wikitext2/score.txt, documents separated by <|endoftext|>.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import save

import rectilinear
from rectilinear import Bounded, CalibrationRows, Loading, Rows, Selection
from rectilinear.intervals import half_width, mean_over_groups
from rectilinear.measurement.perplexity import token_losses
from rectilinear.models.describe import count_parameters
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.models.logits import next_logits, row_logits
from rectilinear.models.origin import Origin
from rectilinear.models.running import evaluating

CELLS = Path(__file__).parent / "bounded"
COMMAND = "python benchmarks/bounded.py MODELS TEXTS"
MODEL, SEQ_LEN, FITTED, LATE, BATCH = "smollm2-135m", 512, 32_000, 256, 4

#: Ways to bound all 30 attentions, by state: some 16,500, 10,000 and 28,000 numbers a layer.
WAYS: dict[str, Bounded | None] = {
    "dense": None,
    "far-33": Bounded(window=33),
    "streaming-39": Bounded(window=39, far="none", uniform=True),
    "far-16": Bounded(window=16),
    "windows-39": Bounded(window=39, far="none"),
    "far-63": Bounded(window=63),
    "streaming-23": Bounded(window=23, far="none", uniform=True),
    "streaming-69": Bounded(window=69, far="none", uniform=True),
}


def main() -> None:
    models, texts = map(Path, sys.argv[1:3])
    CELLS.mkdir(exist_ok=True)
    for name in sys.argv[3:] or WAYS:
        file = CELLS / f"{MODEL}-{name}.json"
        if not file.exists():
            made = measure(models / MODEL, texts / "wikitext2", WAYS[name])
            save(str(file), __doc__.splitlines()[0], {"cell": name, **made}, COMMAND, show=False)
        print(name, describe(json.loads(file.read_text())), flush=True)


def measure(model: Path, texts: Path, way: Bounded | None) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, and what the fit was."""
    tokenizer, start = load_tokenizer(model), time.perf_counter()
    found: dict[str, Any] = {"options": way and way.model_dump(mode="json")}
    if way is None:
        edited: Any = load_model(model, Loading(device="cpu", dtype="float32"))
    else:
        rows = CalibrationRows(max_tokens=FITTED * 10 // 9 // SEQ_LEN * SEQ_LEN, seq_len=SEQ_LEN)
        selection = Selection(target="attention", blocks=[*range(30)])
        loading = Loading(device="cpu", dtype="float32")
        made = rectilinear.linearize(
            model, texts / "fit.txt", way, selection, rows=rows, loading=loading, batch_size=2, progress=False
        )
        edited = made.model
        found["fit"] = [one.fit.model_dump(mode="json") for one in made.plan.replacements if one.fit]
        found["windows"] = [block["window"] for block in edited.config.rectilinear["blocks"]]
        found["fit_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    read = Origin(model, Loading()).rows(texts / "score.txt", Rows(max_tokens=10**9, seq_len=SEQ_LEN), tokenizer)
    found["parameters"] = count_parameters([edited])
    found["floats_a_layer"] = state_of(edited, read.ids[:1])
    groups = read.documents[:, 1:].long() - int(read.documents.min())
    sums = {name: torch.zeros(int(groups.max()) + 1, dtype=torch.float64) for name in ("all", "late")}
    sizes = {name: torch.zeros(len(sums["all"]), dtype=torch.long) for name in sums}
    late = (torch.arange(1, SEQ_LEN) >= LATE).expand_as(groups)
    with evaluating(edited), torch.no_grad():
        for ids, group, chosen in zip(*(each.split(BATCH) for each in (read.ids, groups, late)), strict=True):
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
    """Numbers of floating point that a layer of the cache keeps after a row, on average."""
    _, cache = next_logits(model, ids)
    layers = cache.value.layers  # type: ignore[union-attr]
    held = [[*floats_in(vars(layer))] for layer in layers]
    return sum(sum(tensor.numel() for tensor in each) for each in held) // len(layers)


def floats_in(held: Any) -> Any:
    """Tensors of floating point in what a layer keeps."""
    if isinstance(held, torch.Tensor):
        if held.is_floating_point():
            yield held
    elif isinstance(held, (dict, list, tuple)):
        for each in held.values() if isinstance(held, dict) else held:
            yield from floats_in(each)
    elif hasattr(held, "__dict__") and not callable(held):
        yield from floats_in(vars(held))


def describe(cell: dict[str, Any]) -> str:
    """Its loss, and how much more that is than of the dense model."""
    file = CELLS / f"{MODEL}-dense.json"
    dense = json.loads(file.read_text())
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
