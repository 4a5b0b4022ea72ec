"""How many forward passes does it cost to replace every attention of a model that people use?

All 30 attentions of SmolLM2-135M by affine maps, fitted in sequence on 100,000 tokens of WikiText in rows of 512, solves
and losses included, over one forward pass of the base model on the same rows in the same process; float32, one thread.

    python benchmarks/walk.py MODELS TEXTS [TOKENS]      # as benchmarks/real.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import save, seconds

import rectilinear
from rectilinear import CalibrationRows, Loading, Selection
from rectilinear.linearization.kinds import make_kind
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.text.rows import read_rows
from rectilinear.text.sources import open_documents

SEQ_LEN, BATCH = 512, 4

FLOOR = (
    "The original's rows go through every block once, and the edited model's once more but for the attentions, which "
    "are some 0.4 of a block at this width and length: 1.6 passes. A fit takes the Gram matrix of 576 features and their "
    "products with 576 targets, in float64 at half the speed: 2.7 MFLOP a token and block beside the block's 9.4, some "
    "0.3 passes. Losses of the last tenth of the rows are measured before and after, logits included: 0.3 passes."
)


def main() -> None:
    torch.set_num_threads(1)
    models, texts = map(Path, sys.argv[1:3])
    tokens = int(sys.argv[3]) if sys.argv[3:] else 100_000
    place, text = models / "smollm2-135m", texts / "wikitext2/fit.txt"
    reading = CalibrationRows(max_tokens=tokens, seq_len=SEQ_LEN)
    tokenizer = load_tokenizer(place)
    rows = read_rows(open_documents(text, reading), tokenizer, reading)
    model = load_model(place, Loading(device="cpu", dtype="float32"))

    def forward() -> None:
        with torch.no_grad():
            for batch in rows.ids.split(BATCH):
                model.base_model(batch, use_cache=False)

    began: dict[str, float] = {}
    found: dict[str, Any] = {}

    def progress(stage: str, done: int, total: int) -> None:
        began.setdefault(stage, time.perf_counter() - start)

    def replace() -> None:
        found["linearized"] = rectilinear.linearize(
            model,
            text,
            make_kind("affine", {}),
            Selection(target="attention", blocks=",".join(map(str, range(30)))),
            rows=reading,
            tokenizer=tokenizer,
            batch_size=BATCH,
            progress=progress,
        )

    forward_seconds = seconds(forward)
    start = time.perf_counter()
    replaced_seconds = seconds(replace)
    selection = found["linearized"].plan.selection
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "target_ratio": 6.0,
            "floor": FLOOR,
            "tokens": rows.ids.numel(),
            "forward_seconds": forward_seconds,
            "linearize_seconds": replaced_seconds,
            "ratio": replaced_seconds / forward_seconds,
            "stages_began": {stage: round(when, 1) for stage, when in began.items()},
            "loss": {"before": selection.loss_before, "after": selection.loss_after, "tokens": selection.tokens},
        },
    )


if __name__ == "__main__":
    main()
