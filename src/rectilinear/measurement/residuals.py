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
from rectilinear.core.sinks import REFERENCE_TOKENS, norms_of, sink_limits
from rectilinear.core.solve import solve
from rectilinear.measurement.explanation import MarkedRecord, MeanRecord, TokenRecord
from rectilinear.models.capture import Span, capture_blocks, first_value
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.layout import Layout
from rectilinear.models.running import evaluating, hooked, run
from rectilinear.progress import Progress

# Tokens of context beside a token; places that a token of the vocabulary must have to be ranked; tokens of the text
# that is shown; tokens of the vocabulary that are listed.
_CONTEXT, _PLACES, _SHOWN, _LISTED = 8, 5, 256, 12


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``d ~ x weight + bias``, ``[p, p]`` and ``[p]`` float32: what a block, or a part of it, adds to hidden states.

    ``x`` are hidden states before a block, or what a part is given, which may have passed a norm.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, moments: Moments) -> LinearMap:
        """The best map over some tokens."""
        weight = solve(moments).coefficients
        return cls(weight.float(), moments.intercept(weight).float())

    def __call__(self, x: Tensor) -> Tensor:
        """Updates ``[..., p]`` of inputs ``[..., p]``."""
        return x @ self.weight.to(x) + self.bias.to(x)


@dataclass(frozen=True, eq=False)
class FittedMap:
    """A map, the moments of what it was fitted on, and whether its updates differ by more than rounding."""

    map: LinearMap
    moments: Moments
    varies: bool = True


@dataclass(frozen=True, eq=False)
class Look:
    """The rows of the last fold, and how far each token's update is from a map's.

    Attributes:
        first: number of the first row.
        ids: ``[rows, seq_len]``.
        residuals: ``[rows, seq_len]`` float32, ``|d - map(x)|^2`` over the mean of ``|d - mean d|^2`` of the tokens
            that it was fitted on; None where these do not differ.
        sinks: ``[rows, seq_len]`` bool, which tokens are attention sinks, as they were for the fit.
    """

    first: int
    ids: Tensor
    residuals: Tensor | None
    sinks: Tensor


@dataclass(frozen=True)
class Looking:
    """Which rows are looked at, and which of their tokens are attention sinks.

    Attributes:
        rows: ``[rows, seq_len]``, all of them.
        batch_size: rows in a forward pass.
        folds: contiguous folds, of which the last one's rows are looked at.
        sink_ratio: how many times the median norm of the first 256 tokens makes a sink.
        lead: id of the token that begins each row by request, which is one too; None for none.
    """

    rows: Tensor
    batch_size: int
    folds: int
    sink_ratio: float
    lead: int | None = None

    @property
    def first(self) -> int:
        """Number of the first row that is looked at."""
        return next(row for row in range(len(self.rows)) if row * self.folds // len(self.rows) == self.folds - 1)

    @property
    def batches(self) -> list[Tensor]:
        """The rows that are looked at."""
        return [*torch.split(self.rows[self.first :], self.batch_size)]


def look_at_tokens(
    model: nn.Module,
    stack: BlockStack,
    layout: Layout,
    spans: Mapping[int, Span],
    fitted: Mapping[int, FittedMap],
    looking: Looking,
    progress: Progress | None = None,
) -> tuple[dict[int, Look], Tensor]:
    """The tokens of the last fold's rows by block, and the mean ``[p]`` of what the last block gives there.

    Without attention sinks, which are told by norms of input, output and update as those of `collect_moments` are.
    """
    blocks, batches = [*spans], looking.batches
    reference = looking.rows[: -(-REFERENCE_TOKENS // looking.rows.shape[1])]
    limits: dict[int, Tensor] = {}
    found: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    end, usual = torch.zeros(()), 0  # sum of what the last block gives, and over how many tokens

    def consume(place: int, x: Tensor, y: Tensor) -> None:
        shape = (len(batch), batch.shape[1])
        inputs, outputs = (layout.by_rows(each, *shape).float().flatten(0, 1) for each in (x, y))
        block = blocks[place]
        updates = outputs if spans[block].is_update else outputs - inputs
        norms = norms_of(inputs, outputs, updates)
        if block not in limits:
            limits[block] = sink_limits(norms[:, :REFERENCE_TOKENS], looking.sink_ratio)
            return
        residuals = (updates - fitted[block].map(inputs)).square().sum(-1)
        sinks = (norms > limits[block]).any(0)
        found[block].append((residuals.view(shape).cpu(), sinks.view(shape).cpu()))

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal end, usual
        states = layout.by_rows(first_value(output), len(batch), batch.shape[1]).float().flatten(0, 1)
        norms = norms_of(states)
        if -1 not in limits:  # no block's index
            limits[-1] = sink_limits(norms[:, :REFERENCE_TOKENS], looking.sink_ratio)
            return
        kept = states[(norms <= limits[-1])[0]]
        end, usual = end + kept.sum(0).cpu(), usual + len(kept)

    with evaluating(model), capture_blocks([*spans.values()], consume), hooked([stack.blocks[-1]], note):
        for done, batch in enumerate([reference, *batches]):
            run(model, batch)
            if progress:
                progress("rows to look at", done, len(batches))
    ids = looking.rows[looking.first :].cpu()
    looks = {}
    for block, parts in found.items():
        size = fitted[block].moments.energy / fitted[block].moments.count
        residuals, sinks = (torch.cat([part[which] for part in parts]) for which in (0, 1))
        if looking.lead is not None:
            sinks |= ids == looking.lead
        looks[block] = Look(looking.first, ids, residuals / size if fitted[block].varies else None, sinks)
    return looks, end / usual


def describe_tokens(look: Look, decode: Callable[[Sequence[int]], str], deviating: int) -> dict[str, Any]:
    """The tokens that deviate most, those of the vocabulary that do and do not, and a row of text."""
    shown = pieces(look.ids[0, :_SHOWN].tolist(), decode)
    if look.residuals is None:
        text = MarkedRecord(tokens=shown, residuals=(None,) * len(shown))
        return {"deviating": (), "least_linear": (), "most_linear": (), "text": text}
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
        start = max(0, position - _CONTEXT)
        around = pieces(ids[row, start : position + 1 + _CONTEXT].tolist(), decode)
        here = position - start
        return TokenRecord(
            row=look.first + row,
            position=position,
            before="".join(around[:here]),
            token=around[here],
            after="".join(around[here + 1 :]),
            residual=float(residuals[row, position]),
        )

    values = [
        None if sink else float(f"{value:.4g}")
        for value, sink in zip(look.residuals[0, :_SHOWN].tolist(), look.sinks[0, :_SHOWN].tolist(), strict=True)
    ]
    return {
        "deviating": tuple(map(record, worst)),
        "least_linear": tuple(ranked[: -_LISTED - 1 : -1]),
        "most_linear": tuple(ranked[:_LISTED]),
        "text": MarkedRecord(tokens=shown, residuals=tuple(values)),
    }


def pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """What each token adds to the text, so that they give it one after the other.

    A token that ends within a character adds nothing, and the one that ends this adds all of it.
    """
    found, before = [], ""
    for stop in range(1, len(ids) + 1):
        text = decode(ids[:stop])
        whole = stop == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        found.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return tuple(found)
