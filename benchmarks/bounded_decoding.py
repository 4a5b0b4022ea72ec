"""How much faster does a decoder write on from a long text once all its attentions are bounded?

A Llama of width 1,024 with random weights, float32, one row: steps of decoding with the dense model's cache of a length,
and with that of bounded attention (window 32, 4 sinks, 4 centroids) after as many tokens, interleaved. Every attention of
the dense model reads all keys and values at each step, so that by bytes the ratio can be at most that of the weights and
the cache to the weights.

    python benchmarks/bounded_decoding.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from common import save, seconds, spread, wide_llama
from transformers import DynamicCache, LlamaForCausalLM

from rectilinear.models.bounded_attention import bounded_attention
from rectilinear.models.logits import DecodingCache, cache_bytes, next_logits
from rectilinear.models.stand_ins import PaddingMask, watch_padding
from rectilinear.models.surgery import swapped

WIDTH, HEAD, BLOCKS, STEPS, CHUNK = 1024, 64, 4, 15, 1024
LENGTHS = (4096, 16384, 65536)
KEY_VALUE_HEADS = (16, 4)
ONE = torch.zeros(1, 1, dtype=torch.long)


def main() -> None:
    """Time both models at all lengths."""
    found = [compare(wide_llama(BLOCKS, LENGTHS[-1], heads), heads) for heads in KEY_VALUE_HEADS]
    save(__file__, __doc__.splitlines()[0], {"width": WIDTH, "blocks": BLOCKS, "steps": STEPS, "models": found})


@torch.no_grad()
def compare(model: LlamaForCausalLM, heads: int) -> dict[str, Any]:
    """Times of steps of both, after texts of all lengths."""
    padding, count = PaddingMask(), WIDTH // HEAD
    far = {"heads": count, "shared": count // heads, "centroids": 4, "width": HEAD}
    frequencies = (1.0 / 10000.0 ** (torch.arange(0, HEAD, 2) / HEAD)).tolist()
    edits = {
        f"model.layers.{index}.self_attn": bounded_attention(
            block.self_attn,
            padding,
            window=32,
            sinks=4,
            cache_index=index,
            far={**far, "rotary": "halves", "frequencies": frequencies},
        )
        for index, block in enumerate(model.model.layers)
    }
    weights = sum(parameter.numel() for parameter in model.model.layers.parameters()) * 4
    cases = []
    with watch_padding(model, "model.layers", padding):
        for length in LENGTHS:
            caches: dict[str, DecodingCache] = {}
            with swapped(model, edits):
                for ids in torch.randint(1000, (1, length)).split(CHUNK, 1):
                    caches["bounded"] = next_logits(model, ids, caches.get("bounded"))[1]
            caches["dense"] = DecodingCache(caches["bounded"].name, filled(model, heads, length), length)

            times: dict[str, list[float]] = {"dense": [], "bounded": []}
            for _ in range(STEPS):
                times["dense"].append(seconds(partial(step, model, caches, "dense")))
                with swapped(model, edits):
                    times["bounded"].append(seconds(partial(step, model, caches, "bounded")))
            ratios = [one / other for one, other in zip(times["dense"], times["bounded"], strict=True)]
            bytes_of = {name: cache_bytes(cache) for name, cache in caches.items()}
            cases.append(
                {
                    "length": length,
                    "seconds": {name: spread(each[2:]) for name, each in times.items()},
                    "ratio": spread(ratios[2:]),
                    "cache_bytes": bytes_of,
                    "ratio_by_bytes": (weights + bytes_of["dense"]) / (weights + bytes_of["bounded"]),
                }
            )
            print(heads, cases[-1], flush=True)
    return {"key_value_heads": heads, "cases": cases}


def step(model: LlamaForCausalLM, caches: dict[str, DecodingCache], name: str) -> None:
    """One token more."""
    caches[name] = next_logits(model, ONE, caches[name])[1]


def filled(model: LlamaForCausalLM, heads: int, length: int) -> DynamicCache:
    """A cache of random keys and values."""
    cache = DynamicCache(config=model.config)
    for index in range(BLOCKS):
        cache.update(torch.randn(1, heads, length, HEAD), torch.randn(1, heads, length, HEAD), index)
    return cache


if __name__ == "__main__":
    main()
