"""How well a model answers: metrics of a confusion matrix, their standard errors, and what a constant answer gets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from rectilinear.results import Record
from rectilinear.text.tasks import MetricName


class MetricRecord(Record):
    """A metric on the validation part."""

    value: float
    stderr: float | None = Field(description="over groups of questions that depend on one another; null for one group")
    baseline: float = Field(description="of the commonest answer of the training part; of preferences, a half")


def accuracy(counts: Tensor) -> Tensor:
    """``[...]``: share of right answers, of confusion matrices ``[..., answers, predictions]``."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def macro_f1(counts: Tensor) -> Tensor:
    """``[...]``: mean over labels of ``2 TP / (2 TP + FP + FN)``, which is 0 where nothing was right."""
    return _f1(counts).mean(-1)


def f1a(counts: Tensor) -> Tensor:
    """``[...]``: F1 of the second label."""
    return _f1(counts)[..., 1]


_METRICS: Mapping[str, Callable[[Tensor], Tensor]] = {"accuracy": accuracy, "macro_f1": macro_f1, "f1a": f1a}


def score_answers(
    names: Sequence[MetricName],
    answers: Sequence[int],
    predictions: Sequence[int],
    groups: Sequence[int],
    constant: int | None,
    labels: int,
) -> dict[str, MetricRecord]:
    """Metrics of predictions, ``[questions]`` each with its answer out of ``labels`` possible ones, and its group.

    The standard error is a jackknife that leaves out one group at a time; where each question is its own group, that
    of the accuracy is the usual ``sqrt(p (1 - p) / (n - 1))``. The baseline always answers ``constant``; None for one
    that is right half of the time.
    """
    counts = _confusions(answers, predictions, groups, labels)
    always = None if constant is None else _confusions(answers, [constant] * len(answers), groups, labels).sum(0)
    return {
        name: MetricRecord(
            value=float(_METRICS[name](counts.sum(0))),
            stderr=_jackknife(_METRICS[name], counts),
            baseline=0.5 if always is None else float(_METRICS[name](always)),
        )
        for name in names
    }


def commonest(answers: Sequence[int]) -> int:
    """The answer that is there most often; of several the first."""
    return statistics.mode(sorted(answers))


def _confusions(answers: Sequence[int], predictions: Sequence[int], groups: Sequence[int], labels: int) -> Tensor:
    """``[groups, answers, predictions]``: how often each of the groups has each."""
    distinct, places = torch.unique(torch.tensor(groups), return_inverse=True)
    counts = torch.zeros(len(distinct), labels, labels, dtype=torch.float64)
    at = (places, torch.tensor(answers), torch.tensor(predictions))
    return counts.index_put_(at, torch.ones(len(answers), dtype=torch.float64), accumulate=True)


def _jackknife(metric: Callable[[Tensor], Tensor], counts: Tensor) -> float | None:
    if len(counts) < 2:
        return None
    without = metric(counts.sum(0) - counts)
    return float(((len(counts) - 1) * (without - without.mean()).square().mean()).sqrt())


def _f1(counts: Tensor) -> Tensor:
    right = counts.diagonal(dim1=-2, dim2=-1)
    return 2 * right / (counts.sum(-1) + counts.sum(-2)).clamp_min(1)
