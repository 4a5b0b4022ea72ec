"""How often do intervals cover on real text: of held-out scores, of losses, and of the difference of two losses?

A long text is cut into as many disjoint samples as there are. Each is measured and evaluated by itself. What the interval
of a sample's held-out score is to cover is what maps are expected to score that were fitted on as many tokens as its
own: the mean over all samples of the scores of their folds' maps on all the other samples. That of a loss, or of a
difference of losses, is to cover the one of all samples together. The difference is between the model and the same one
without its third block. Samples are few, so that a share of them is itself known to about twice the square root of
.95 x .05 / samples.

python benchmarks/coverage_text.py MODEL TEXT
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from common import save
from torch import Tensor

from rectilinear import CalibrationRows, Loading, Measurement, Rows, Selection, linearize
from rectilinear.core.moments import Moments
from rectilinear.core.scores import score_folds
from rectilinear.core.solve import held_out_residual, solve, without_each
from rectilinear.intervals import LEVEL
from rectilinear.linearization.kinds import make_kind
from rectilinear.measurement.collect import collect_moments
from rectilinear.measurement.perplexity import Losses, measure_perplexity
from rectilinear.measurement.profile import LinearityRecord
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.origin import Origin
from rectilinear.models.walk import Passes
from rectilinear.results import IntervalRecord

FOLDS, SEQ_LEN, BATCH = 4, 256, 32
#: Tokens of a sample, and of all of them together at most.
SIZES, TOKENS = (2_560, 10_240, 40_960), 1_500_000


def score_on(train: Moments, others: Moments) -> float:
    """Update linearity, on other tokens, of the map fitted on some."""
    residual = held_out_residual(others, train, solve(train).coefficients)
    shift = others.mean_d - train.mean_d
    return 1 - residual / (others.energy + others.count * float(shift @ shift))


def of_scores(model: Any, samples: Sequence[Tensor], index: int) -> dict[str, Any]:
    """Coverage of a block's held-out update linearity."""
    stack = find_blocks(model)
    folds = [
        collect_moments(Passes(model, rows.split(BATCH)), [stack.blocks[index]], Measurement(folds=FOLDS))[0].folds
        for rows in samples
    ]
    wholes = [reduce(add, each) for each in folds]
    truths = [
        statistics.fmean(score_on(train, others) for train in without_each(each))
        for each, others in zip(folds, without_each(wholes), strict=True)
    ]
    expected = statistics.fmean(truths)
    found = [LinearityRecord.of(score_folds(each).update_linearity) for each in folds]
    null = statistics.fmean(score_folds(each).null for each in folds)
    return {
        "expected": expected,
        "null": null,
        "adjusted": statistics.fmean(scores.adjusted for scores in found),
        "held_out": statistics.fmean(scores.held_out for scores in found),
        "deviation": statistics.stdev(scores.held_out for scores in found),
        "half_width": statistics.fmean(scores.half_width for scores in found),
        "interval": statistics.fmean(abs(scores.held_out - expected) <= scores.half_width for scores in found),
    }


def shares(found: Sequence[Losses], truth: float) -> float:
    """How many intervals of means over clusters cover."""
    covered = []
    for losses in found:
        value, stderr = losses.mean()
        interval = IntervalRecord.of(value, stderr, len(losses.sums))
        covered.append(interval.low <= truth <= interval.high)
    return statistics.fmean(covered)


def of_losses(models: Sequence[Any], samples: Sequence[Tensor], documents: Sequence[Tensor]) -> dict[str, Any]:
    """Coverage of a model's loss and of its difference from another's, over documents and over rows."""
    found = [
        [measure_perplexity(model, rows, BATCH, documents=of) for rows, of in zip(samples, documents, strict=True)]
        for model in models
    ]
    result: dict[str, Any] = {"documents_a_sample": statistics.fmean(len(each.documents.sums) for each in found[0])}
    for kind in ("documents", "rows"):
        one, other = ([getattr(each, kind) for each in losses] for losses in found)
        changes = [Losses(theirs.sums - mine.sums, mine.sizes) for mine, theirs in zip(one, other, strict=True)]
        for name, losses in (("loss", one), ("difference", changes)):
            truth = float(sum(each.sums.sum() for each in losses) / sum(each.sizes.sum() for each in losses))
            result[f"{name}_over_{kind}"] = shares(losses, truth)
    return result


def main() -> None:
    """Cut the text, and run all sizes."""
    torch.set_num_threads(1)
    name, text = sys.argv[1:]
    origin = Origin(name, Loading(device="cpu", dtype="float32"))
    packed = origin.rows(text, Rows(max_tokens=TOKENS, seq_len=SEQ_LEN))
    model = origin.load(head=True)
    rows = CalibrationRows(max_tokens=4 * SEQ_LEN, seq_len=SEQ_LEN)
    other = linearize(copy.deepcopy(model), text, make_kind("drop", {}), Selection(blocks="2"), rows=rows).model
    cases = []
    for size in SIZES:
        count = size // SEQ_LEN
        samples, documents = (
            part[: len(part) // count * count].split(count) for part in (packed.ids, packed.documents)
        )
        case = {"tokens": size, "tokens_a_feature": size / model.config.hidden_size, "samples": len(samples)}
        case["blocks"] = [of_scores(model, samples, index) for index in range(len(find_blocks(model)))]
        case |= of_losses([model, other], samples, documents)
        cases.append(case)
        print(case, flush=True)
    result = {"seq_len": SEQ_LEN, "folds": FOLDS, "level": LEVEL, "cases": cases}
    save(__file__, __doc__.splitlines()[0], result, show=False)


if __name__ == "__main__":
    main()
