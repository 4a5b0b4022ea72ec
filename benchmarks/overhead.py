"""How much longer does a full profile take than a plain forward pass of the base model?

A profile as by default: 4 folds, attention sinks told by three norms and kept apart, the shifted null; blocks alone, no
pairs. Both run in one process on one thread, in turn, on the same rows in the same batches, float32. Cases:

- GPT-2 small's shape, well conditioned: random weights and ids, products in float32, as `auto` chooses for these;
- float64 products: what `auto` chooses where float32 would not be accurate enough;
- with sinks: one row in eight begins with a token whose vector is massive, so that two sets of scores are solved for;
- SmolLM2-135M on WikiText, rows of 512: a decoder that people use, whose activations take float64 products.

    python benchmarks/overhead.py MODELS TEXTS      # as benchmarks/real.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from common import gpt2_small_shape, random_rows, save, seconds, spread
from torch import nn

import rectilinear
from rectilinear.measurement.settings import Measurement
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.models.settings import Loading
from rectilinear.text.rows import read_rows
from rectilinear.text.settings import Rows
from rectilinear.text.sources import open_documents

TOKENS, BATCH = 16_384, 8

FLOOR = (
    "The floor at GPT-2 small's shape: a block's forward pass costs about 15.0 MFLOP a token (12 p^2 weights, plus attention "
    "over rows of 256), the Gram product, the cross product and the shifted null's 3.6 (3.0 when only the triangle of the Gram "
    "matrix is computed), so that moments cannot cost less than about 0.20 of a forward pass at equal speed, and with float64 "
    "products, of half the speed, 0.40; and held-out scores cost 4 solves a block whatever the number of tokens."
)


def main() -> None:
    torch.set_num_threads(1)
    models, texts = map(Path, sys.argv[1:])
    shape, rows = gpt2_small_shape(), random_rows(TOKENS)
    result = {"well conditioned": case(shape, shape.transformer, rows, "auto", 2)}
    result["float64 products"] = case(shape, shape.transformer, rows, "float64", 1)
    rows[::8, 0] = 0
    with torch.no_grad():
        shape.transformer.wte.weight[0] *= 1000
    result["with sinks"] = case(shape, shape.transformer, rows, "auto", 1)
    del shape
    place = models / "smollm2-135m"
    reading = Rows(max_tokens=TOKENS, seq_len=512)
    text = read_rows(open_documents(texts / "wikitext2/score.txt", reading), load_tokenizer(place), reading)
    smollm = load_model(place, Loading(device="cpu", dtype="float32"))
    result["SmolLM2-135M"] = case(smollm, smollm.base_model, text.ids, "auto", 1)
    save(
        __file__,
        __doc__.splitlines()[0],
        {"target_ratio": 1.25, "tokens": TOKENS, "batch": BATCH, "floor": FLOOR, "cases": result},
    )


def case(model: nn.Module, base: nn.Module, ids: torch.Tensor, products: Any, repeats: int) -> dict[str, Any]:
    """Profiles over the mean of the forward passes right before and after each."""
    profiles, times = [], []

    def forward() -> None:
        with torch.no_grad():
            for batch in ids.split(BATCH):
                base(batch, use_cache=False)

    def full() -> None:
        measurement = Measurement(products=products)
        profiles.append(rectilinear.measure(model, ids, measurement, batch_size=BATCH, progress=False))

    with torch.no_grad():
        base(ids[:BATCH], use_cache=False)
    for _ in range(repeats):
        before, profiled, after = seconds(forward), seconds(full), seconds(forward)
        times.append((profiled, (before + after) / 2))
    profile = profiles[-1]
    return {
        "ratio": spread([full / plain for full, plain in times]),
        "forward_seconds": spread([plain for _, plain in times]),
        "profile_seconds": spread([full for full, _ in times]),
        "products": sorted({block.solve.products for block in profile.blocks}),
        "condition": max(block.solve.condition for block in profile.blocks),
        "sinks": max(block.without_sinks.sinks for block in profile.blocks),
    }


if __name__ == "__main__":
    main()
