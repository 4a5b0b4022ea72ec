"""Is near-linearity "exclusive to decoders", as the paper says without measuring any encoder?

An encoder and a decoder of one shape, with random weights and trained here on the same tokens: the encoder by a short masked
loop, the decoder by a short causal one. Both are measured on the same rows of text that neither was trained on.

    python benchmarks/encoders.py TOKENIZER TRAIN VALID [--steps N]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import save
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel

import rectilinear
from rectilinear.models.load import load_tokenizer
from rectilinear.text.rows import pack_rows
from rectilinear.text.settings import Rows
from rectilinear.text.sources import open_documents
from rectilinear.text.tokens import tokenize_with

SHAPE = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
LENGTH, BATCH, MASKED = 128, 32, 0.15
MEASURED = 40_960  # tokens, 320 a feature


def rows_of(text: str, tokenizer: Any, tokens: int) -> Tensor:
    """Rows ``[rows, 128]`` of a text."""
    documents = open_documents(text, Rows(max_tokens=tokens, seq_len=LENGTH))
    return pack_rows(documents, tokenize_with(tokenizer), LENGTH, tokens).ids


def build(kind: str, vocabulary: int) -> Any:
    """An encoder or a decoder, which differ in what a token may see; the last id masks."""
    torch.manual_seed(0)
    config = BertConfig(
        **SHAPE,
        vocab_size=vocabulary + 1,
        max_position_embeddings=LENGTH,
        is_decoder=kind == "decoder",
        use_cache=False,
    )
    return (BertLMHeadModel if kind == "decoder" else BertForMaskedLM)(config)


def train(kind: str, model: Any, rows: Tensor, steps: int) -> float:
    """Train on rows; the mean loss of the last tenth of the steps, in nats per predicted token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1)
    generator, losses = torch.Generator().manual_seed(1), []
    model.train()
    for _ in range(steps):
        ids = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        if kind == "decoder":
            logits, targets = model(ids).logits[:, :-1], ids[:, 1:]
        else:
            masked = torch.rand(ids.shape, generator=generator) < MASKED
            logits = model(ids.masked_fill(masked, model.config.vocab_size - 1)).logits[masked]
            targets = ids[masked]
        loss = cross_entropy(logits.flatten(0, -2), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-steps // 10 :]) / len(losses[-steps // 10 :])


def scores(model: Any, rows: Tensor) -> list[dict[str, float | None]]:
    """Linearity and update linearity of each block, held out, with the standard error of the second."""
    profile = rectilinear.measure(model.eval(), rows, progress=False)
    return [
        {
            "linearity": block.linearity.held_out,
            "update_linearity": block.update_linearity.held_out,
            "stderr": block.update_linearity.stderr,
            "identity": block.identity,
        }
        for block in profile.blocks
    ]


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tokenizer", "train", "valid"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=600)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(Path(arguments.tokenizer))
    tokens = rows_of(arguments.train, tokenizer, BATCH * LENGTH * arguments.steps)
    held_out = rows_of(arguments.valid, tokenizer, MEASURED)
    cases: dict[str, Any] = {}
    for kind in ("encoder", "decoder"):
        model = build(kind, len(tokenizer))
        cases[f"{kind}, random"] = {"blocks": scores(model, held_out)}
        start = time.perf_counter()
        loss = train(kind, model, tokens, arguments.steps)
        trained = {"loss": loss, "seconds": round(time.perf_counter() - start)}
        cases[f"{kind}, trained"] = {**trained, "blocks": scores(model, held_out)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    told = {"shape": SHAPE, "steps": arguments.steps, "tokens_a_step": BATCH * LENGTH, "measured_tokens": MEASURED}
    save(__file__, str(__doc__).split("\n", 1)[0], {**told, "parameters": parameters, "cases": cases})


if __name__ == "__main__":
    main()
