"""Fitting stand-ins in sequence: inputs from the model as edited so far, targets from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.core.maps import FittedMap, fit_map
from rectilinear.core.moments import MomentsAccumulator, holds_float64
from rectilinear.errors import JobError
from rectilinear.linearization.plan import FitRecord, Replacement
from rectilinear.measurement.collect import Batch, count_rows, mask_of, pieces_of
from rectilinear.models.blocks import BlockStack
from rectilinear.models.capture import Passage, device_of, evaluating, run_until
from rectilinear.models.describe import count_parameters
from rectilinear.models.modeling_rectilinear import LinearBlock, PaddingMask, stand_in, watch_padding
from rectilinear.models.surgery import Edits, adds_straight, find_projection, find_target, folded_projection, swapped
from rectilinear.progress import Progress

# Parts of a block in the order in which most of them run.
_WITHIN = ("block", "attention", "mlp")

_Result = tuple[FittedMap, int, Edits]


@dataclass(frozen=True)
class Workbench:
    """A model that is being edited, and the rows that stand-ins are fitted on.

    Attributes:
        model: the original, whose modules are only ever swapped out for a time.
        stack: its blocks.
        padding: where the stand-ins find the attention mask.
        batches: rows to fit on.
        folds: contiguous folds of the rows, for the ridge.
    """

    model: nn.Module
    stack: BlockStack
    padding: PaddingMask
    batches: Sequence[Batch]
    folds: int = 4
    progress: Progress | None = None
    _forms: dict[str, int] = field(default_factory=dict)

    @property
    def precision(self) -> torch.dtype:
        """Of differences and products: float64 where the device has it."""
        return torch.float64 if holds_float64(device_of(self.model)) else torch.float32

    def exact(self, tensor: Tensor) -> Tensor:
        """A tensor in that precision."""
        return tensor.to(self.precision)

    def form(self, path: str) -> int:
        """Length of the tuple that a module returns, 0 for a bare tensor."""
        if path not in self._forms:
            module = self.model.get_submodule(path)
            self._forms[path] = run_until(self.model, _one_row(self.batches[0]), [module])[0].form
        return self._forms[path]


@dataclass(frozen=True)
class Fitted:
    """A replacement with its fit, and the modules that carry it out."""

    replacement: Replacement
    edits: Edits


def fit_all(bench: Workbench, replacements: Sequence[Replacement], known: Sequence[Fitted] = ()) -> list[Fitted]:
    """Fit replacements from the first block to the last, each on top of those before it.

    Args:
        bench: the model and the rows.
        replacements: what to fit; those among ``known`` are taken as they are.
        known: earlier fits.

    Raises:
        JobError: activations that are not finite, or a module that does not run.
    """
    kept = {fitted.replacement.model_copy(update={"fit": None}): fitted for fitted in known}
    done: list[Fitted] = []
    for replacement in sorted(replacements, key=lambda one: (one.blocks, _WITHIN.index(one.target))):
        replacement = replacement.model_copy(update={"fit": None})
        done.append(kept.get(replacement) or fit_replacement(bench, replacement, merge_edits(done)))
    return done


def merge_edits(fits: Sequence[Fitted]) -> Edits:
    """All modules to put in, by path."""
    return {path: module for fitted in fits for path, module in fitted.edits.items()}


def fit_replacement(bench: Workbench, replacement: Replacement, edits: Edits) -> Fitted:
    """Fit one replacement to the model as edited so far.

    The target is the residual stream that the original model has after the replaced part, so that
    the fit also makes good for what the edits before it spoilt. Where an attention's or MLP's
    output is not added to the stream as it is (but after a norm, say), the target is that output.

    Raises:
        JobError: activations that are not finite, or a module that does not run.
    """
    model, stack = bench.model, bench.stack
    paths = [find_target(stack, index, replacement.target) for index in replacement.blocks]
    before = count_parameters(model.get_submodule(path) for path in paths)
    with evaluating(model), noting_padding(bench):
        gone = {path: _drop(bench, replacement, i, path) for i, path in zip(replacement.blocks, paths, strict=True)}
        if replacement.kind == "drop":
            record = FitRecord(ridge=None, held_out=None, tokens=0, parameters_before=before, parameters_after=0)
            return Fitted(replacement.model_copy(update={"fit": record}), gone)
        if replacement.kind == "folded":
            fit, tokens, new = _fit_folded(bench, replacement, paths, edits)
            after = 0
        else:
            fit, tokens, new = _fit_stand_in(bench, replacement, paths, edits)
            after = count_parameters(new.values())
    record = FitRecord(
        ridge=fit.ridge,
        held_out=fit.held_out,
        features=len(fit.factors[0]),
        tokens=tokens,
        parameters_before=before,
        parameters_after=after,
    )
    return Fitted(replacement.model_copy(update={"fit": record}), {**gone, **new})


@contextmanager
def noting_padding(bench: Workbench) -> Iterator[None]:
    """While open, the stand-ins are told of padding."""
    handle = watch_padding(bench.model, bench.stack.path, bench.padding)
    try:
        yield
    finally:
        handle.remove()
        bench.padding.mask = None


def stand_in_options(replacement: Replacement, width: int, index: int) -> dict[str, Any]:
    """Options of the `LinearBlock` that carries out a replacement of the block at ``index``."""
    return {
        "width": width,
        "kind": replacement.kind,
        "residual": replacement.target == "block",
        "cache_index": None if replacement.target == "mlp" else index,
        "present": replacement.kind == "filter" and replacement.target == "block",
        "taps": replacement.taps,
        "rates": replacement.rates,
        "rank": replacement.rank,
    }


def _drop(bench: Workbench, replacement: Replacement, index: int, path: str) -> LinearBlock:
    dropped = replacement.model_copy(update={"kind": "drop", "rank": None, "taps": 0, "rates": ()})
    options = stand_in_options(dropped, width=0, index=index)
    return stand_in(bench.model.get_submodule(path), bench.padding, **options, outputs=bench.form(path))


def _fit_stand_in(bench: Workbench, replacement: Replacement, paths: Sequence[str], edits: Edits) -> _Result:
    model, index = bench.model, replacement.blocks[0]
    first, last, block = model.get_submodule(paths[0]), model.get_submodule(paths[-1]), bench.stack.blocks[index]
    row = _one_row(bench.batches[0])
    width = run_until(model, row, [first])[0].x.shape[-1]
    options = stand_in_options(replacement, width, index)
    new = stand_in(first, bench.padding, **options, outputs=bench.form(paths[0]))
    # The stream that the output is added to: before the MLP it is what the block gives without it.
    through = replacement.target == "attention"
    corrects = not new.residual and adds_straight(model, block, first, row, through=through)

    def pairs(edited: Sequence[Passage], original: Sequence[Passage], batch: Batch) -> tuple[Tensor, Tensor]:
        x = edited[0].x
        mask = mask_of(batch)
        rows = x.to(torch.promote_types(x.dtype, torch.float32)).view(-1, x.shape[-2], width)
        stream = new.filter.stream(rows, None if mask is None else mask.to(x.device))
        target = bench.exact(original[0].y)
        if new.residual:
            target = target - bench.exact(x)
        elif corrects and replacement.target == "attention":
            target = target + (bench.exact(original[1].x) - bench.exact(edited[1].x))
        elif corrects:
            target = bench.exact(original[1].y) - (bench.exact(edited[1].y) - bench.exact(edited[0].y))
        return torch.cat([part for part, _ in stream], 1), target

    context = [block] if corrects else []
    fit, tokens = _regress(bench, index, edits, [first, *context], [last, *context], pairs, replacement.rank)
    layers: Any = new.map
    with torch.no_grad():
        for layer, factor in zip(layers, fit.factors, strict=True):
            layer.weight.copy_(factor.T)
        layers[-1].bias.copy_(fit.bias)
    return fit, tokens, {paths[0]: new}


def _fit_folded(bench: Workbench, replacement: Replacement, paths: Sequence[str], edits: Edits) -> _Result:
    before = replacement.blocks[0] - 1
    path = find_projection(bench.model, bench.stack, before, _one_row(bench.batches[0]))
    projection, block = bench.model.get_submodule(path), bench.stack.blocks[before]
    last = bench.model.get_submodule(paths[-1])

    def pairs(edited: Sequence[Passage], original: Sequence[Passage], batch: Batch) -> tuple[Tensor, Tensor]:
        stream = bench.exact(edited[1].y)
        folded = bench.exact(edited[0].y).view_as(stream)
        return folded, bench.exact(original[0].y) - (stream - folded)

    intercept = getattr(projection, "bias", None) is not None
    index = replacement.blocks[0]
    fit, tokens = _regress(bench, index, edits, [projection, block], [last], pairs, intercept=intercept)
    return fit, tokens, {path: folded_projection(projection, fit.weight, fit.bias)}


def _regress(
    bench: Workbench,
    index: int,
    edits: Edits,
    edited: Sequence[nn.Module],
    original: Sequence[nn.Module],
    pairs: Callable[[Sequence[Passage], Sequence[Passage], Batch], tuple[Tensor, Tensor]],
    rank: int | None = None,
    *,
    intercept: bool = True,
) -> tuple[FittedMap, int]:
    """Least squares over all rows, and the number of tokens.

    Args:
        bench: the model and the rows.
        index: of the block, for progress and errors.
        edits: what was fitted before.
        edited: modules whose passages in the model as edited so far are wanted.
        original: the same for the original model.
        pairs: makes features ``[rows, seq_len, p]`` and targets ``[rows, seq_len, q]`` of these.
        rank, intercept: see `fit_map`.
    """
    lengths = [count_rows(batch) for batch in bench.batches]
    total, done = sum(lengths), 0
    folds = min(bench.folds, total)
    accumulators = [MomentsAccumulator(bench.precision) for _ in range(folds)]
    for batch, rows in zip(bench.batches, lengths, strict=True):
        if edits:
            theirs = run_until(bench.model, batch, original)
            with swapped(bench.model, edits):
                ours = run_until(bench.model, batch, edited)
        else:
            passages = run_until(bench.model, batch, [*edited, *original])
            ours, theirs = passages[: len(edited)], passages[len(edited) :]
        features, targets = pairs(ours, theirs, batch)
        if not (features.isfinite().all() and targets.isfinite().all()):
            raise JobError(f"block {index}: activations are NaN or infinite; try --dtype float32")
        for piece in pieces_of(done, rows, total, folds, mask_of(batch)):
            accumulators[piece.fold].update(piece.of(features), piece.of(targets))
        done += rows
        if bench.progress:
            bench.progress(f"block {index}", done, total)
    moments = []
    while accumulators:  # one by one, so that each is in memory once
        accumulator = accumulators.pop(0)
        moments += [accumulator.freeze()] if accumulator.count else []
    return fit_map(moments, rank, intercept=intercept), sum(part.count for part in moments)


def _one_row(batch: Batch) -> Batch:
    if isinstance(batch, Mapping):
        return {name: value[:1] if isinstance(value, Tensor) else value for name, value in batch.items()}
    return batch[:1]
