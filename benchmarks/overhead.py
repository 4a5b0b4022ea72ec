"""How much longer does a full profile take than a plain forward pass of the base model?

A profile has 4 folds and keeps attention sinks apart. Both run in one process, in turn, on the
same rows in the same batches: GPT-2 small's shape, float32. Cases:

- well conditioned: products in float32, as `auto` chooses for these activations;
- float64 products: what `auto` chooses where float32 would not be accurate enough;
- with sinks: one row in eight begins with a token whose vector is massive, so that two sets of
  scores are solved for;
- 65,536 tokens: the first case on four times the tokens, of which the solves do not depend.
"""

from __future__ import annotations

import torch
from common import gpt2_small_shape, random_rows, save, seconds, spread

import rectilinear
from rectilinear.measurement.settings import Measurement

TOKENS, BATCH = 16_384, 8

FLOOR = (
    "The floor: a block's forward pass costs about 15.0 MFLOP a token (12 p^2 weights, plus attention over rows of 256), the "
    "two Gram products 2.4 (1.8 when only the triangle is computed), so that moments cannot cost less than about 0.12 of a "
    "forward pass at equal speed; and held-out scores cost 4 solves a block whatever the number of tokens."
)


def main() -> None:
    model, rows = gpt2_small_shape(), random_rows(TOKENS)
    with_sinks = rows.clone()
    with_sinks[::8, 0] = 0
    ordinary = model.transformer.wte.weight[0].clone()

    def make_sink(on: bool) -> None:
        with torch.no_grad():
            model.transformer.wte.weight[0] = ordinary * 1000 if on else ordinary

    def forward(ids: torch.Tensor) -> None:
        with torch.no_grad():
            for batch in ids.split(BATCH):
                model.transformer(batch, use_cache=False)

    cases = {
        "well conditioned": (rows, "auto", False, 5),
        "float64 products": (rows, "float64", False, 2),
        "with sinks": (with_sinks, "auto", True, 2),
        "65,536 tokens": (random_rows(4 * TOKENS), "auto", False, 1),
    }
    result = {}
    for name, (ids, products, sink, repeats) in cases.items():
        make_sink(sink)
        forward(ids[:BATCH])
        times = []
        profiles = []

        def full(ids=ids, products=products, profiles=profiles) -> None:
            profiles.append(rectilinear.measure(model, ids.split(BATCH), measurement=Measurement(products=products)))

        for _ in range(repeats):
            before, profiled, after = (
                seconds(lambda ids=ids: forward(ids)),
                seconds(full),
                seconds(lambda ids=ids: forward(ids)),
            )
            times.append((profiled, (before + after) / 2))
        profile = profiles[-1]
        result[name] = {
            "ratio": spread([full / plain for full, plain in times]),
            "forward_seconds": spread([plain for _, plain in times]),
            "profile_seconds": spread([full for full, _ in times]),
            "products": sorted({block.solve.products for block in profile.blocks}),
            "condition": max(block.solve.condition for block in profile.blocks),
            "sinks": max(block.without_sinks.sinks for block in profile.blocks),
        }
    save(
        __file__,
        __doc__.splitlines()[0],
        {"target_ratio": 1.25, "tokens": TOKENS, "batch": BATCH, "floor": FLOOR, "cases": result},
    )


if __name__ == "__main__":
    main()
