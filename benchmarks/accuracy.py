"""How far are scores from a float64 SVD of the stored activations?

The worst |score - oracle| over in-sample linearity and update linearity, for float32 and
bfloat16 activations, over planted condition numbers, kinds of update, massive activations,
duplicated and dead columns, and tokens below and above the width. The oracle (tests/oracle.py)
uses no moments. The target holds for correlations conditioned up to 1e8; the condition number of
each case is that of the stored activations in float64 (of the directions that vary), which
massive tokens raise far beyond the planted one.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from common import save

from rectilinear import BlockAccumulator, score_block

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import oracle

WIDTH, TOKENS = 128, (100, 200, 4_000, 20_000)
CONDITIONS = (1, 1e2, 1e3, 1e4, 1e6, 1e8)
UPDATES = ("noise", "map", "map and noise", "weak directions", "nonlinear", "shrinking output")
SPOILS = ("none", "massive coordinates", "massive tokens", "duplicated column", "dead column")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 2048
LIMIT = 1e8


def activations(tokens: int, condition: float, update: str, spoil: str, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    turn = torch.linalg.qr(noise(WIDTH, WIDTH))[0]
    scale = torch.logspace(0, -(torch.tensor(condition).log10().item() / 2), WIDTH, dtype=torch.float64)
    white = noise(tokens, WIDTH)
    x = white * scale @ turn.T + noise(WIDTH)
    weight = noise(WIDTH, WIDTH) / WIDTH**0.5
    size = x.std()
    d = {
        "noise": 0.3 * size * noise(tokens, WIDTH),
        "map": 0.3 * x @ weight,
        "map and noise": 0.3 * x @ weight + 0.1 * size * noise(tokens, WIDTH),
        # The update reads most from where the input varies least.
        "weak directions": 0.3 * size * white.flip(1) @ weight + 0.1 * size * noise(tokens, WIDTH),
        "nonlinear": 0.3 * size * torch.tanh(x / size @ weight),
        # The output is a hundredth of the input.
        "shrinking output": -x + 0.01 * size * torch.tanh(x / size @ weight),
    }[update]
    y = x + d
    if spoil == "massive coordinates":
        x[:, :2], y[:, :2] = 1e3 * x[:, :2], 1e3 * y[:, :2]
    elif spoil == "massive tokens":
        rows = torch.arange(0, tokens, 97)
        x[rows], y[rows] = x[rows] + 500 * size, y[rows] + 500 * size
    elif spoil == "duplicated column":
        x[:, 5], y[:, 5] = x[:, 9], y[:, 9]
    elif spoil == "dead column":
        x[:, 5] = 3.0
    return x.to(dtype), y.to(dtype)


def correlation_condition(x: torch.Tensor) -> float:
    x = x.double() - x.double().mean(0)
    norms = x.norm(dim=0)
    singular = torch.linalg.svdvals(x[:, norms > 0] / norms[norms > 0])
    return float((singular[0] / singular[singular > singular[0] * oracle.RELATIVE_CUTOFF][-1]) ** 2)


def errors(x: torch.Tensor, y: torch.Tensor) -> tuple[float, str]:
    accumulator = BlockAccumulator(folds=1)
    for part_x, part_y in zip(x.split(BATCH), y.split(BATCH), strict=True):
        accumulator.update(part_x, part_y)
    scores = score_block(accumulator.freeze()).all_tokens
    expected = oracle.in_sample(x.double().numpy(), y.double().numpy())
    found = (scores.linearity.in_sample, scores.update_linearity.in_sample)
    worst = max(abs(a - float(b)) for a, b in zip(found, expected, strict=True))
    return worst, str(scores.moments.products).removeprefix("torch.")


def main() -> None:
    cases = []
    for dtype, condition, update, spoil, tokens in product(DTYPES, CONDITIONS, UPDATES, SPOILS, TOKENS):
        x, y = activations(tokens, condition, update, spoil, DTYPES[dtype])
        worst, products = errors(x, y)
        cases.append(
            {
                "dtype": dtype,
                "planted_condition": condition,
                "condition": correlation_condition(x),
                "update": update,
                "spoil": spoil,
                "tokens": tokens,
                "products": products,
                "error": worst,
            }
        )

    within = [case for case in cases if case["condition"] <= LIMIT]
    beyond = [case for case in cases if case["condition"] > LIMIT]

    def worst_by(key: str) -> dict[str, float]:
        values = dict.fromkeys(case[key] for case in within)
        return {str(value): max(case["error"] for case in within if case[key] == value) for value in values}

    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "target": 1e-6,
            "width": WIDTH,
            "condition_up_to_1e8": {
                "n": len(within),
                "worst": max(within, key=lambda case: case["error"]),
                "worst_by": {
                    key: worst_by(key)
                    for key in ("dtype", "planted_condition", "update", "spoil", "tokens", "products")
                },
                "over_target": [case for case in within if case["error"] > 1e-6],
            },
            "condition_beyond_1e8": {
                "n": len(beyond),
                "worst": max(beyond, key=lambda case: case["error"]),
                "over_target": sum(case["error"] > 1e-6 for case in beyond),
            },
        },
    )


if __name__ == "__main__":
    main()
