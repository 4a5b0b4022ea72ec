"""How much faster does a decoder write on from a long text once all its attentions are bounded?

Llamas with random weights, float32, one row: steps of decoding with the dense model's cache of a length, and with that of
bounded attention (4 sinks, 4 centroids) after as many tokens, interleaved. Every attention of the dense model reads all
keys and values at each step, so that by bytes the ratio can be at most that of the weights and the cache to the weights.
Two are of width 1,024 with a window of 32, one has the shape of SmolLM2-135M with windows by head and refitted outputs,
as benchmarks/bounded/smollm2-135m-far-33.json has them.

    python benchmarks/bounded_decoding.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import save, seconds, spread, wide_llama
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from rectilinear.models.bounded_attention import bounded_attention
from rectilinear.models.logits import DecodingCache, cache_bytes, next_logits
from rectilinear.models.stand_ins import PaddingMask, watch_padding
from rectilinear.models.surgery import swapped

BLOCKS, STEPS, CHUNK = 4, 15, 1024
LENGTHS = (4096, 16384, 65536)
ONE = torch.zeros(1, 1, dtype=torch.long)
FITTED = Path(__file__).parent / "bounded" / "smollm2-135m-far-33.json"


@dataclass(frozen=True)
class Case:
    """A decoder, and how its attentions are bounded.

    Attributes:
        name: what it is.
        windows: of each attention: of each key-value head, or one of all.
        refit: whether the output of each attention is refitted.
        lengths: tokens before the steps.
    """

    name: str
    model: LlamaForCausalLM
    windows: Sequence[Sequence[int]]
    refit: bool
    lengths: Sequence[int]


def cases() -> list[Case]:
    """All of them."""
    found = []
    for heads in (16, 4):
        wide = wide_llama(BLOCKS, LENGTHS[-1], heads)
        found.append(Case(f"width 1,024, 4 blocks, 16 heads, {heads} of keys", wide, [(32,)] * BLOCKS, False, LENGTHS))
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
    )
    windows = [fit["windows"] for fit in json.loads(FITTED.read_text())["fit"]]
    small = LlamaForCausalLM(config).eval()
    return [*found, Case("SmolLM2-135M's shape, windows by head", small, windows, True, (2048, 8192))]


def main() -> None:
    """Time both models at all lengths."""
    save(__file__, __doc__.splitlines()[0], {"steps": STEPS, "models": [compare(case) for case in cases()]})


@torch.no_grad()
def compare(case: Case) -> dict[str, Any]:
    """Times of steps of both, after texts of all lengths."""
    model, padding = case.model, PaddingMask()
    edits = bounded(case, padding)
    weights = 4 * sum(each.numel() for each in [*model.model.layers.parameters(), model.lm_head.weight])
    found = []
    with watch_padding(model, "model.layers", padding):
        for length in case.lengths:
            caches: dict[str, DecodingCache] = {}
            with swapped(model, edits):
                for ids in torch.randint(1000, (1, length)).split(CHUNK, 1):
                    caches["bounded"] = next_logits(model, ids, caches.get("bounded"))[1]
            caches["dense"] = DecodingCache(caches["bounded"].name, filled(model, length), length)
            times: dict[str, list[float]] = {"dense": [], "bounded": []}
            for _ in range(STEPS):
                times["dense"].append(seconds(partial(step, model, caches, "dense")))
                with swapped(model, edits):
                    times["bounded"].append(seconds(partial(step, model, caches, "bounded")))
            ratios = [one / other for one, other in zip(times["dense"], times["bounded"], strict=True)]
            bytes_of = {name: cache_bytes(cache) for name, cache in caches.items()}
            found.append(
                {
                    "length": length,
                    "seconds": {name: spread(each[2:]) for name, each in times.items()},
                    "ratio": spread(ratios[2:]),
                    "cache_bytes": bytes_of,
                    "ratio_by_bytes": (weights + bytes_of["dense"]) / (weights + bytes_of["bounded"]),
                }
            )
            print(case.name, found[-1], flush=True)
    return {"name": case.name, "cases": found}


def bounded(case: Case, padding: PaddingMask) -> dict[str, Any]:
    """The attentions, by the path of what they replace."""
    config = case.model.config
    heads, shared = config.num_attention_heads, config.num_attention_heads // config.num_key_value_heads
    width = config.hidden_size // heads
    frequencies = (1.0 / 10000.0 ** (torch.arange(0, width, 2) / width)).tolist()
    far = {"heads": heads, "shared": shared, "centroids": 4, "width": width, "rotary": "halves"}
    output = [(heads + config.num_key_value_heads) * width + 1, config.hidden_size] if case.refit else None
    return {
        f"model.layers.{index}.self_attn": bounded_attention(
            block.self_attn,
            padding,
            window=windows,
            sinks=4,
            cache_index=index,
            far={**far, "frequencies": frequencies},
            far_output=output,
        )
        for index, (block, windows) in enumerate(zip(case.model.model.layers, case.windows, strict=True))
    }


def step(model: LlamaForCausalLM, caches: dict[str, DecodingCache], name: str) -> None:
    """One token more."""
    caches[name] = next_logits(model, ONE, caches[name])[1]


def filled(model: LlamaForCausalLM, length: int) -> DynamicCache:
    """A cache of random keys and values."""
    cache, config = DynamicCache(config=model.config), model.config
    shape = 1, config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), index)
    return cache


if __name__ == "__main__":
    main()
