"""How often does an interval of a held-out score cover what it is of?

What it is of: the score that a map is expected to have on other text when it is fitted on as many tokens as a fold's map
is. Tokens are simulated: rows of an autoregressive process, so that tokens of a row depend on each other as those of text
do, and updates that a linear map explains in part. What is expected is the mean over fresh maps, each fitted on fresh
tokens, on many other tokens. An interval is what ``measure`` writes, or two standard errors.

python benchmarks/coverage.py
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from common import save
from torch import Tensor

from rectilinear.core.moments import MomentsAccumulator
from rectilinear.core.scores import score_folds
from rectilinear.intervals import LEVEL
from rectilinear.measurement.profile import LinearityRecord

WIDTH, SEQ_LEN = 16, 32
REPEATS, MAPS, OTHER_ROWS = 2000, 1000, 4000
#: Correlation of neighbouring tokens, rows, folds.
CASES = [(rho, rows, folds) for rho in (0.0, 0.8, 0.95) for rows in (20, 80, 320) for folds in (4, 8)]


def tokens(rows: int, rho: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and updates ``[rows, SEQ_LEN, WIDTH]`` float64: a map of x, products of pairs, and noise that lasts."""
    shape = (rows, SEQ_LEN, WIDTH)
    x, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    for states in (x, noise):
        for place in range(1, SEQ_LEN):
            states[:, place] = rho * states[:, place - 1] + math.sqrt(1 - rho**2) * states[:, place]
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[
        0
    ]
    mixed = x @ turn
    return x, torch.tanh(mixed) + 0.5 * mixed * mixed.roll(1, -1) + 0.5 * noise


def expected(rows: int, rho: float) -> float:
    """The score that a map fitted on so many rows is expected to have on others."""
    generator = torch.Generator().manual_seed(99)
    x, d = (states.flatten(0, 1) for states in tokens(OTHER_ROWS, rho, generator))
    scores = []
    for _ in range(MAPS):
        own_x, own_d = (states.flatten(0, 1) for states in tokens(rows, rho, generator))
        mean_x, mean_d = own_x.mean(0), own_d.mean(0)
        weight = torch.linalg.lstsq(own_x - mean_x, own_d - mean_d).solution
        rest = d - mean_d - (x - mean_x) @ weight
        scores.append(1 - float(rest.square().sum() / (d - mean_d).square().sum()))
    return statistics.fmean(scores)


def measured(rows: int, rho: float, folds: int, generator: torch.Generator) -> LinearityRecord:
    """What ``measure`` says of one sample."""
    x, d = tokens(rows, rho, generator)
    fold_of, moments = torch.arange(rows) * folds // rows, []
    for fold in range(folds):
        accumulator = MomentsAccumulator()
        accumulator.update(x[fold_of == fold].flatten(0, 1), d[fold_of == fold].flatten(0, 1))
        moments.append(accumulator.freeze())
    return LinearityRecord.of(score_folds(tuple(moments)).update_linearity)


def coverage(rho: float, rows: int, folds: int) -> dict[str, Any]:
    """How often each interval covers, and how wide it is."""
    truth, generator = expected(rows * (folds - 1) // folds, rho), torch.Generator().manual_seed(3)
    found = [measured(rows, rho, folds, generator) for _ in range(REPEATS)]
    means = [scores.held_out for scores in found]
    covered = [abs(scores.held_out - truth) <= scores.half_width for scores in found]
    two = [abs(scores.held_out - truth) <= 2 * scores.stderr for scores in found]
    return {
        "correlation": rho,
        "tokens_a_feature": rows * SEQ_LEN / WIDTH,
        "folds": folds,
        "expected": truth,
        "bias": statistics.fmean(means) - truth,
        "deviation": statistics.stdev(means),
        "half_width": statistics.fmean(scores.half_width for scores in found),
        "interval": statistics.fmean(covered),
        "two_standard_errors": statistics.fmean(two),
        "n": REPEATS,
    }


def main() -> None:
    """Run all cases."""
    torch.set_num_threads(1)
    cases = []
    for case in CASES:
        cases.append(coverage(*case))
        print({name: round(value, 4) for name, value in cases[-1].items()}, flush=True)
    result = {"width": WIDTH, "seq_len": SEQ_LEN, "level": LEVEL, "cases": cases}
    save(__file__, __doc__.splitlines()[0], result, show=False)


if __name__ == "__main__":
    main()
