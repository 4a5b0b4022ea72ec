"""How much longer does a training step take with the penalty on hidden states, and how much more memory?

One step is forward, backward and AdamW in float32 on one model and one batch, with and without
`rectilinear.Regularizer` in turn, in one process. Memory is the highest sum of what PyTorch has allocated in the
step, from the profiler's record of every allocation, over what there was before it. Beside it the same penalty by
`torch.nn.functional.cosine_similarity` or squares, through autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from common import save, seconds, spread
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import MistralConfig, MistralForCausalLM

from rectilinear import Regularizer
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import find_blocks

SHAPES = {
    "8 blocks of width 192, vocabulary 4,096": (8, 192, 512, 6, 2, 4096),
    "4 blocks of width 512, vocabulary 8,192": (4, 512, 1536, 8, 4, 8192),
}
ROWS, SEQ_LEN, REPEATS = 8, 256, 9

FLOOR = (
    "The floor: the cosine reads two states of width p three times and writes two gradients, 10 p flops and about 7 p "
    "numbers a token and block, beside 24 p^2 flops and more of the block's own forward pass and twice that backward: about 2 "
    "flops in 1,000 at width 192, and about 7 of 150 passes over the states. Nothing of the width is kept but what the backward "
    "pass keeps anyway, and each gradient is made when that pass comes to the block."
)


def plainly(model: nn.Module, kind: str) -> Callable[[], torch.Tensor]:
    """The penalty of the last forward pass by autograd through the formula."""
    stack, terms = find_blocks(model), []

    def note(index: int, x: torch.Tensor, y: torch.Tensor) -> None:
        terms.append((1 - cosine_similarity(x, y, -1)).mean() if kind == "cosine" else (y - x).square().sum(-1).mean())

    context = capture_blocks([*stack], note, copy=False)
    context.__enter__()

    def penalty() -> torch.Tensor:
        total = torch.stack(terms).sum()
        terms.clear()
        return total

    penalty.close = lambda: context.__exit__(None, None, None)
    return penalty


def peak_bytes(step: Callable[[], None]) -> int:
    """Highest sum of allocations over what there was at the start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def main() -> None:
    cases = {}
    for name, (blocks, width, mlp, heads, key_value_heads, vocabulary) in SHAPES.items():
        torch.manual_seed(0)
        config = MistralConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            sliding_window=None,
        )
        model = MistralForCausalLM(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        ids = torch.randint(vocabulary, (ROWS, SEQ_LEN))

        def step(penalty=None, model=model, optimizer=optimizer, ids=ids) -> None:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss + 0.5 * penalty() if penalty else loss).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        for kind in ("cosine", "mse"):
            times: dict[str, list[float]] = {"ours": [], "plain": []}
            base: list[float] = []
            for _ in range(REPEATS):
                regularizer = Regularizer(model, kind)
                with_ours = seconds(partial(step, regularizer.penalty))
                regularizer.remove()
                without = seconds(step)
                plain = plainly(model, kind)
                with_plain = seconds(partial(step, plain))
                plain.close()
                base.append(without)
                times["ours"].append(with_ours / without)
                times["plain"].append(with_plain / without)
            memory = {"none": peak_bytes(step)}
            regularizer = Regularizer(model, kind)
            memory["ours"] = peak_bytes(partial(step, regularizer.penalty))
            regularizer.remove()
            plain = plainly(model, kind)
            memory["plain"] = peak_bytes(partial(step, plain))
            plain.close()
            cases[f"{kind}, {name}"] = {
                "time_ratio": spread(times["ours"]),
                "plain_time_ratio": spread(times["plain"]),
                "memory_ratio": memory["ours"] / memory["none"],
                "plain_memory_ratio": memory["plain"] / memory["none"],
                "step_seconds": spread(base),
                "peak_bytes": memory["none"],
            }
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "target_time_ratio": 1.05,
            "target_memory_ratio": 1.02,
            "rows": ROWS,
            "seq_len": SEQ_LEN,
            "floor": FLOOR,
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
