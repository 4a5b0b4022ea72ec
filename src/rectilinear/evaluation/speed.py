"""How fast a model reads a prompt and writes on from it, and what its cache takes in memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.logits import DecodingCache, cache_bytes, check_continued, next_logits
from rectilinear.models.running import device_of, evaluating, wait_for
from rectilinear.progress import Progress

#: How many tokens are decoded, and how often the prompt is read, after once to warm up.
NEW_TOKENS, REPEATS = 32, 5


@dataclass(frozen=True, eq=False)
class Speed:
    """How fast a model ran, and what its cache held at the end.

    Attributes:
        prefill: tokens of the prompt per second, from the median time to read it.
        decode: tokens per second, from the median time of a step; None for a model without a cache.
        cache_bytes: what the cache held after prompt and new tokens; None for a model without one.
        tokens: ``[rows, new_tokens]`` int64 on the CPU, the tokens that were decoded; None without a cache.
        prefill_middle, decode_middle: tokens per second at the slower and the faster end of the middle half of these
            times; None for a single one.
    """

    prefill: float
    decode: float | None
    cache_bytes: int | None
    tokens: Tensor | None
    prefill_middle: tuple[float, float] | None = None
    decode_middle: tuple[float, float] | None = None


def plan_speed(seq_len: int, context: int | None) -> tuple[int, int]:
    """Lengths of prompt and continuation, within the context where there is one.

    The continuation is `NEW_TOKENS` long, or half a context that is shorter than twice that; the prompt as long as a
    row, where that leaves room for it.

    Raises:
        RequestError: a context with room for no more than one token.
    """
    if context is None:
        return seq_len, NEW_TOKENS
    new_tokens = min(NEW_TOKENS, context // 2)
    if new_tokens < 1:
        raise RequestError(f"expected a context of at least 2 tokens to time decoding, got {context}; try --no-speed")
    return min(seq_len, context - new_tokens), new_tokens


def measure_speed(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int = NEW_TOKENS,
    repeats: int = REPEATS,
    progress: Progress | None = None,
) -> Speed:
    """Time the reading of a prompt and greedy decoding from it, step by step.

    The prompt is read once to warm up and then ``repeats`` times, each time into a new cache; the last cache is decoded
    from. Each step is given the likeliest next token, so all of the new tokens are in the cache at the end.

    Args:
        model: any module that takes ids and returns an object with ``logits``.
        prompt: ``[rows, length]`` int64.
        new_tokens: steps, at least 1; the model's context must have room for them.
        repeats: how often the reading is timed, at least 1.
        progress: called with ("speed", done, total).

    Raises:
        RequestError: the model gives no logits.
        JobError: it has a cache, but its steps would be timed without one.
    """
    device = device_of(model)
    prompt = prompt.to(device)
    done, total, report = 0, repeats + 1 + new_tokens, progress or (lambda *_: None)

    def timed(ids: Tensor, cache: DecodingCache | None = None) -> tuple[Tensor, DecodingCache | None, float]:
        nonlocal done
        wait_for(device)
        start = perf_counter()
        logits, cache = next_logits(model, ids, cache)
        wait_for(device)
        seconds = perf_counter() - start
        done += 1
        report("speed", done, total)
        return logits, cache, seconds

    with evaluating(model):
        readings = []
        for _ in range(repeats + 1):
            cache = None  # one at a time: it may be large
            logits, cache, seconds = timed(prompt)
            readings.append(seconds)
        prefill, read = _rates(prompt.numel(), readings[1:])  # the first one is to warm up
        if cache is None:
            report("speed", total, total)
            return Speed(prefill, None, None, None, read)
        steps: list[float] = []
        tokens = []
        for _ in range(new_tokens):
            token = logits.argmax(-1, keepdim=True)
            logits, cache, seconds = timed(token, cache)
            if not steps:
                check_continued(model, token, logits, cache)
            tokens.append(token.cpu())
            steps.append(seconds)
    decode, written = _rates(len(prompt), steps)
    return Speed(prefill, decode, cache_bytes(cache), torch.cat(tokens, 1), read, written)


def _rates(tokens: int, seconds: list[float]) -> tuple[float, tuple[float, float] | None]:
    """So many tokens per second of the median time, and at the ends of the middle half of times, the slower first."""
    if len(seconds) < 2:
        return tokens / seconds[0], None
    fast, _, slow = quantiles(seconds, n=4, method="inclusive")
    return tokens / median(seconds), (tokens / slow, tokens / fast)
