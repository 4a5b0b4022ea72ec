"""How much faster does a decoder run, and how much smaller is its cache, with half of its attentions replaced?

Llama of 12 blocks of width 1024 (16 heads of 64, MLP 2816), random weights, float32, one sequence,
prompts of 4,096 and 16,384 tokens. Every other attention is replaced by a filter of rank 256 (random
too: speed does not depend on the weights). Both models run in one process, in turn.

The floor: a decoding step reads every weight and the cache once. What a filter reads does not grow
with the tokens, so that the cache is at least half as large and a step saves at most the time for
half the keys and values, besides what the weights differ by.
"""

from __future__ import annotations

import sys

import torch
from common import save, spread, wide_llama
from torch import nn
from transformers import LlamaForCausalLM

import rectilinear
from rectilinear.evaluation.speed import measure_speed
from rectilinear.models.describe import count_parameters
from rectilinear.models.linear_block import stand_in
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import commit

WIDTH, BLOCKS, NEW_TOKENS, ROUNDS = 1024, 12, 24, 1
FILTER = rectilinear.Filter(rank=256)
CONTEXTS = (4_096, 16_384)


def replace_half(model: LlamaForCausalLM) -> nn.Module:
    """Every other attention by a filter of random weights."""
    stack, padding, edits = rectilinear.find_blocks(model), PaddingMask(), {}
    for index in range(1, BLOCKS, 2):
        path = f"{stack.path_of(index)}.self_attn"
        place = {"width": WIDTH, "residual": False, "cache_index": index, "outputs": 2}
        edits[path] = stand_in(model.get_submodule(path), padding, **place, **FILTER.module_options("attention"))
    commit(model, stack, edits, ())
    return model


def main() -> None:
    cases = {}
    dense, halved = wide_llama(BLOCKS, CONTEXTS[-1]), replace_half(wide_llama(BLOCKS, CONTEXTS[-1]))
    for context in CONTEXTS:
        prompt = torch.randint(4_096, (1, context), generator=torch.Generator().manual_seed(0))
        rounds = []
        for _ in range(ROUNDS):
            rounds.append([measure_speed(model, prompt, NEW_TOKENS, repeats=1) for model in (dense, halved)])
        cases[f"{context:,} tokens"] = {
            "prefill_ratio": spread([ours.prefill / theirs.prefill for theirs, ours in rounds]),
            "decode_ratio": spread([ours.decode / theirs.decode for theirs, ours in rounds]),
            "dense_prefill": spread([theirs.prefill for theirs, _ in rounds]),
            "dense_decode": spread([theirs.decode for theirs, _ in rounds]),
            "dense_cache_bytes": rounds[0][0].cache_bytes,
            "cache_bytes": rounds[0][1].cache_bytes,
            "cache_ratio": rounds[0][1].cache_bytes / rounds[0][0].cache_bytes,
            "dense_parameters": count_parameters([dense]),
            "parameters": count_parameters([halved]),
        }
        print(cases, file=sys.stderr, flush=True)
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "shape": [BLOCKS, WIDTH],
            **FILTER.model_dump(mode="json"),
            "new_tokens": NEW_TOKENS,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
