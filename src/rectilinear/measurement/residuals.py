"""How far each token's update is from what a linear map makes of its input, on rows that the map was not fitted on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.core.moments import Moments
from rectilinear.measurement.explanation import MarkedRecord, MeanRecord, TokenRecord
from rectilinear.models.capture import Span, capture_blocks
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.layout import find_layout
from rectilinear.models.running import evaluating, run
from rectilinear.progress import Progress

# Tokens of context beside a token; places that a token of the vocabulary must have to be ranked; tokens of the text
# that is shown; tokens of the vocabulary that are listed.
_CONTEXT, _PLACES, _SHOWN, _LISTED = 8, 5, 256, 12


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``d ~ x weight + bias``, ``[p, p]`` and ``[p]`` float32; what a block, or a part of it, adds to hidden states."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Updates ``[..., p]`` of hidden states ``[..., p]``."""
        return x @ self.weight.to(x) + self.bias.to(x)


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map, and the moments of what it was fitted on."""

    map: LinearMap
    moments: Moments


@dataclass(frozen=True, eq=False)
class Look:
    """Rows, and their tokens' distances.

    Attributes:
        ids: ``[rows, seq_len]``.
        residuals: ``[rows, seq_len]`` float32, ``|d - map(x)|^2`` over the mean of ``|d - mean d|^2`` where it was
            fitted.
        sinks: ``[rows, seq_len]`` bool, which tokens stand out.
    """

    ids: Tensor
    residuals: Tensor
    sinks: Tensor


def look_at_tokens(
    model: nn.Module,
    stack: BlockStack,
    spans: Mapping[int, Span],
    fitted: Mapping[int, FittedMap],
    batches: Sequence[Tensor],
    folds: int,
    sink_ratio: float,
    progress: Progress | None = None,
) -> dict[int, Look]:
    """The tokens of the last fold's rows, by block."""
    layout, ids = find_layout(model, stack, batches[0]), torch.cat([*batches])
    first = next(row for row in range(len(ids)) if row * folds // len(ids) == folds - 1)
    chosen = [part for batch in [ids[first:]] for part in torch.split(batch, len(batches[0]))]
    found: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    blocks = [*spans]

    def consume(place: int, x: Tensor, y: Tensor) -> None:
        block, shape = blocks[place], (len(batch), batch.shape[1])
        inputs, outputs = (layout.by_rows(each, *shape).float() for each in (x, y))
        updates = outputs if spans[block].is_update else outputs - inputs
        one = fitted[block]
        mean = one.moments.energy / one.moments.count
        residuals = (updates - one.map(inputs)).square().sum(-1) / mean
        norms = torch.stack([each.norm(dim=-1) for each in (inputs, inputs + updates, updates)])
        found[block].append((residuals.cpu(), norms.cpu()))

    with evaluating(model), capture_blocks([*spans.values()], consume):
        for done, batch in enumerate(chosen):
            run(model, batch)
            if progress:
                progress("rows to look at", done + 1, len(chosen))
    looks = {}
    for block, parts in found.items():
        residuals, norms = torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts], 1)
        limits = sink_ratio * norms.flatten(1).median(1).values
        looks[block] = Look(ids[first:].cpu(), residuals, (norms > limits[:, None, None]).any(0))
    return looks


def describe_tokens(look: Look, decode: Callable[[Sequence[int]], str], deviating: int) -> dict[str, Any]:
    """The tokens that deviate most, those of the vocabulary that do and do not, and a row of text."""
    ids, width = look.ids, look.ids.shape[1]
    residuals = look.residuals.masked_fill(look.sinks, -1.0)
    worst = residuals.flatten().topk(min(deviating, int((~look.sinks).sum()))).indices.tolist()
    places: dict[int, list[float]] = defaultdict(list)
    for token, value in zip(ids.flatten().tolist(), residuals.flatten().tolist(), strict=True):
        if value >= 0:
            places[token].append(value)
    means = [(fmean(values), len(values), token) for token, values in places.items() if len(values) >= _PLACES]
    ranked = [MeanRecord(token=decode([token]), n=n, residual=mean) for mean, n, token in sorted(means)]

    def record(place: int) -> TokenRecord:
        row, position = divmod(place, width)
        around = ids[row].tolist()
        return TokenRecord(
            row=row,
            position=position,
            before=decode(around[max(0, position - _CONTEXT) : position]),
            token=decode([around[position]]),
            after=decode(around[position + 1 : position + 1 + _CONTEXT]),
            residual=float(residuals[row, position]),
        )

    shown = ids[0, :_SHOWN].tolist()
    values = tuple(float(f"{value:.4g}") for value in look.residuals[0, :_SHOWN].tolist())
    return {
        "deviating": tuple(map(record, worst)),
        "least_linear": tuple(ranked[: -_LISTED - 1 : -1]),
        "most_linear": tuple(ranked[:_LISTED]),
        "text": MarkedRecord(tokens=tuple(decode([token]) for token in shown), residuals=values),
    }
