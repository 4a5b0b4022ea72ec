"""How do time and memory compare with the official algorithm?

The official algorithm, written from the paper: store every block's activations; for each pair
centre both, divide by their Frobenius norms, take the thin SVD of X, solve for the map, and
form the residual; twice, once for Y and once for Y - X. Both sides see the same activations of
width 768 at 12 blocks, float32. Ours does more in that time (4 folds held out, sinks apart);
"in sample only" is ours without folds, which is what the official algorithm gives.

"Scoring" is what comes on top of the forward pass: for the official algorithm the scores of
the stored activations, for ours the moments and their scores. Memory is the peak resident size
of a process of its own that runs only one of the two, less that of one that runs neither.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import torch
from common import peak_memory_bytes, save, seconds, spread

from rectilinear import BlockAccumulator, score_block

BLOCKS, WIDTH, SEQ_LEN, BATCH, FOLDS = 12, 768, 256, 8, 4
REPEATS = {16_384: 2, 65_536: 1}


def stream(tokens: int):
    """Batches of all 13 states ``[tokens, width]``; each block adds a nonlinear update."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(BLOCKS)]
    for _ in range(tokens // (SEQ_LEN * BATCH)):
        states = [torch.randn(SEQ_LEN * BATCH, WIDTH, generator=generator)]
        for weight in maps:
            states.append(states[-1] + 0.5 * torch.tanh(states[-1] @ weight))
        yield states


def official_score(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    x, y = x / x.norm(), y / y.norm()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    a = vt.T @ ((u.T @ y) / s[:, None])
    return float(1 - (x @ a - y).square().sum())


def official(tokens: int) -> tuple[float, list[tuple[float, float]]]:
    kept = [torch.cat(layer) for layer in zip(*stream(tokens), strict=True)]
    scores = []
    time = seconds(lambda: scores.extend((official_score(x, y), official_score(x, y - x)) for x, y in pairwise(kept)))
    return time, scores


def ours(tokens: int, folds: int = FOLDS) -> tuple[float, list[tuple[float, float]]]:
    accumulators = [BlockAccumulator(folds) for _ in range(BLOCKS)]
    batches, time = tokens // (SEQ_LEN * BATCH), 0.0
    for number, states in enumerate(stream(tokens)):
        fold = number * folds // batches

        def gather(states=states, fold=fold) -> None:
            for index, accumulator in enumerate(accumulators):
                accumulator.update(states[index], states[index + 1], fold)

        time += seconds(gather)
    scores = []

    # One block at a time, its moments freed once scored.
    def score() -> None:
        while accumulators:
            found = score_block(accumulators.pop(0).freeze()).all_tokens
            scores.append((found.linearity.in_sample, found.update_linearity.in_sample))

    time += seconds(score)
    return time, scores


def in_sample_only(tokens: int) -> tuple[float, list[tuple[float, float]]]:
    return ours(tokens, folds=1)


def neither(tokens: int) -> tuple[float, list]:
    for _ in stream(tokens):
        pass
    return 0.0, []


def in_process_of_its_own(which: str, tokens: int) -> dict:
    command = [sys.executable, __file__, which, str(tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if len(sys.argv) > 1:
        time, scores = globals()[sys.argv[1]](int(sys.argv[2]))
        print(json.dumps({"seconds": time, "scores": scores, "peak": peak_memory_bytes()}))
        return
    cases = {}
    for tokens, repeats in REPEATS.items():
        floor = in_process_of_its_own("neither", tokens)["peak"]
        whats = ("official", "ours", "in_sample_only")
        runs = [tuple(in_process_of_its_own(what, tokens) for what in whats) for _ in range(repeats)]
        theirs, mine, _ = runs[0]
        difference = max(
            abs(a - b)
            for one, two in zip(theirs["scores"], mine["scores"], strict=True)
            for a, b in zip(one, two, strict=True)
        )
        cases[str(tokens)] = {
            "official_over_ours_seconds": spread([a["seconds"] / b["seconds"] for a, b, _ in runs]),
            "official_seconds": spread([a["seconds"] for a, _, _ in runs]),
            "our_seconds": spread([b["seconds"] for _, b, _ in runs]),
            "official_over_our_in_sample_seconds": spread([a["seconds"] / c["seconds"] for a, _, c in runs]),
            "official_memory_mib": round((theirs["peak"] - floor) / 2**20),
            "our_memory_mib": round((mine["peak"] - floor) / 2**20),
            "largest_score_difference": difference,
        }
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "target": "at least 10 x faster, memory independent of the number of tokens",
            "shape": [BLOCKS, WIDTH],
            "cases": cases,
        },
    )


if __name__ == "__main__":
    main()
