"""Fitting replacements in sequence: inputs from the model as edited so far, targets from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rectilinear.core.maps import FittedMap, fit_map
from rectilinear.core.moments import Moments, MomentsAccumulator
from rectilinear.errors import JobError
from rectilinear.linearization.replacement import FitRecord, Replacement
from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.collect import merge
from rectilinear.measurement.pieces import count_rows, in_folds, mask_of
from rectilinear.models.capture import Passage, Span
from rectilinear.models.describe import count_parameters
from rectilinear.models.layout import Layout
from rectilinear.models.linear_block import Entry, LinearBlock, stand_in
from rectilinear.models.offload import in_memory
from rectilinear.models.parts import Part
from rectilinear.models.running import evaluating
from rectilinear.models.surgery import Edits, adds_straight, swapped
from rectilinear.ranks import current
from rectilinear.settings import Target
from rectilinear.text.batches import Batch

# Parts of a block in the order in which most of them run.
_WITHIN = ("block", "attention", "mlp")

#: Makes features ``[rows, seq_len, p]`` and targets ``[rows, seq_len, q]`` of what passed modules of the edited model
#: and of the original in a batch.
Pairs = Callable[[Sequence[Passage], Sequence[Passage], Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fitted:
    """A replacement with its fit, and the modules that carry it out."""

    replacement: Replacement
    edits: Edits
    prepared: Any = None  # what its kind had decided for all its replacements together


def fit_all(bench: Workbench, replacements: Sequence[Replacement], known: Sequence[Fitted] = ()) -> list[Fitted]:
    """Fit replacements from the first block to the last, each on top of those before it.

    Those that are among ``known``, earlier fits, are taken as they are.

    Raises:
        JobError: activations that are not finite, or a module that does not run.
    """
    kept = {fitted.replacement.unfitted(): fitted for fitted in known}
    wanted = [replacement.unfitted() for replacement in in_order(replacements)]
    done: list[Fitted] = []
    with evaluating(bench.model), noting_padding(bench), closing(Streams(bench.passes())) as streams:
        prepared: dict[Replacement, Any] = {}
        for kind in dict.fromkeys(one.by for one in wanted):
            prepared |= kind.prepare(bench, [one for one in wanted if one.by == kind])
        for one in wanted:
            if one in kept and kept[one].prepared != prepared.get(one):
                kept.clear()  # neither this nor what was fitted on top of it
            done.append(kept.get(one) or _fit(Site(bench, one, streams, prepared.get(one))))
            streams.edit(one.begins, done[-1].edits)
    return done


def in_order(replacements: Iterable[Replacement]) -> list[Replacement]:
    """From the first block to the last, as they are fitted."""
    return sorted(replacements, key=lambda one: (one.blocks, _WITHIN.index(one.target)))


def fit_alone(bench: Workbench, replacement: Replacement, streams: Streams) -> Fitted:
    """Fit a replacement on the original, which the streams have gone through up to it at most; they are there then."""
    streams.advance(replacement.begins)
    prepared = replacement.by.prepare(bench, [replacement])
    return _fit(Site(bench, replacement, streams, prepared.get(replacement)))


def merge_edits(fits: Sequence[Fitted]) -> Edits:
    """All modules to put in, by path."""
    return {path: module for fitted in fits for path, module in fitted.edits.items()}


def _fit(site: Site) -> Fitted:
    fit = site.replacement.by.fit(site)
    record = FitRecord(
        ridge=fit.map and fit.map.ridge,
        held_out=fit.map and fit.map.held_out,
        features=len(fit.map.factors[0]) if fit.map else 0,
        tokens=fit.tokens,
        parameters_before=count_parameters(site.modules),
        parameters_after=_count_after(site, fit.edits),
        windows=fit.windows,
    )
    return Fitted(site.replacement.model_copy(update={"fit": record}), fit.edits, site.prepared)


def _count_after(site: Site, edits: Edits) -> int:
    """Parameters of what is in the places of what is replaced."""
    with swapped(site.bench.model, edits):
        return count_parameters(site.bench.model.get_submodule(part.path) for part in site.parts)


class Fit(NamedTuple):
    """How a kind is carried out.

    Attributes:
        edits: the modules.
        map: what was fitted; None for nothing.
        tokens: that it was fitted on.
        windows: of heads.
    """

    edits: Edits
    map: FittedMap | None = None
    tokens: int = 0
    windows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Site:
    """Where a replacement goes, and what it is fitted on."""

    bench: Workbench
    replacement: Replacement
    streams: Streams
    prepared: Any = None  # what its kind decided for all its replacements together

    @property
    def target(self) -> Target:
        """What of blocks is replaced."""
        return self.replacement.target

    @property
    def blocks(self) -> tuple[int, ...]:
        """Consecutive blocks, which are replaced as one."""
        return self.replacement.blocks

    @cached_property
    def parts(self) -> list[Part]:
        """What is replaced."""
        return [self.bench.parts.part(index, self.target, bool(self.replacement.removed)) for index in self.blocks]

    @cached_property
    def spans(self) -> list[Span]:
        """The modules that take and give what is replaced."""
        return [part.span(self.bench.model) for part in self.parts]

    @cached_property
    def modules(self) -> list[nn.Module]:
        """What is replaced."""
        return [module for span in self.spans for module in dict.fromkeys(span[:2])]

    def left_out(self) -> dict[str, nn.Module]:
        """Modules that leave out all that is replaced."""
        left_out: dict[str, nn.Module] = {}
        for number in range(len(self.parts)):
            left_out |= self.placed(self.stand_in(number, width=0, kind="drop"), number)
        return left_out

    def placed(self, new: LinearBlock, number: int = 0) -> dict[str, nn.Module]:
        """A stand-in for one of what is replaced where it belongs, and where its input comes from, if elsewhere."""
        entry = {} if new.entry is None else {self.parts[number].entry: new.entry}
        return {self.parts[number].path: new, **entry}

    def stand_in(self, number: int = 0, **options: Any) -> LinearBlock:
        """A `LinearBlock` for what is replaced, or one of it, not fitted yet."""
        part = self.parts[number]
        place = {
            **{name: getattr(part, name) for name in ("width", "outputs", "listed", "passes", "adds")},
            "residual": self.target == "block",
            "cache_index": part.cache_layers,
            "role": part.role or "both",
            "entry": Entry(part.entry_width) if part.entry != part.path else None,
        }
        replaced = self.spans[number].exit
        with in_memory(replaced):  # where the stand-in is to be, too
            return stand_in(replaced, self.bench.padding, **place | options)

    def regress(
        self, new: LinearBlock, rank: int | None = None, features: Callable[[Tensor], Tensor] | None = None
    ) -> Fit:
        """Fit what a `LinearBlock` gives, in place of all that is replaced; the fit is still to be written into it.

        The target is the residual stream that the original model has after the replaced part, so that the fit also
        makes good for what the edits before it spoilt. Where an attention's or MLP's output is not added to the stream
        as it is (but after a norm, say), the target is that output. It is mapped from ``features`` of inputs
        ``[rows, seq_len, width]``, those of the block's filter when not given.
        """
        first, last = self.spans[0], self.spans[-1]

        def pairs(edited: Sequence[Passage], original: Sequence[Passage], batch: Batch) -> tuple[Tensor, Tensor]:
            x, mask, target = edited[0].x, mask_of(batch), self.aim(edited, original)
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            if features:
                return features(rows), target
            stream = new.filter.stream(rows, None if mask is None else mask.to(x.device))
            return torch.cat([part for part, _ in stream], 1), target

        context = [self.block] if self.corrects else []
        fitted, tokens = self.least_squares([first, *context], [last, *context], pairs, rank)
        return Fit({**self.left_out(), **self.placed(new)}, fitted, tokens)

    @property
    def block(self) -> nn.Module:
        """The first block of what is replaced."""
        return self.bench.stack.blocks[self.blocks[0]]

    @cached_property
    def corrects(self) -> bool:
        """Whether the output is added to the residual stream as it is, so that it can make good for edits before."""
        bench, part = self.bench, self.spans[0].exit
        is_part, through = self.target != "block" and self.parts[0].in_stream, self.target == "attention"
        with self.trying():
            straight = is_part and adds_straight(bench.model, self.block, part, bench.one_row, through=through)
        return all(current().gather(straight))

    def aim(self, edited: Sequence[Passage], original: Sequence[Passage]) -> Tensor:
        """What is to be given, ``[rows, seq_len, width]``, by what passed it and, where it corrects, its block."""
        exact = self.bench.exact
        target = exact(original[0].y)
        if self.target == "block":
            return target - exact(edited[0].x)
        if self.corrects and self.target == "attention":
            # The stream that the output is added to: before the MLP it is what the block gives without it.
            return target + (exact(original[1].x) - exact(edited[1].x))
        return exact(original[1].y) - (exact(edited[1].y) - exact(edited[0].y)) if self.corrects else target

    def trying(self) -> AbstractContextManager[None]:
        """While open, the original can be run on the workbench's one row, no further back than from where it is."""
        return self.streams.trying()

    def least_squares(
        self,
        edited: Sequence[nn.Module | Span],
        original: Sequence[nn.Module | Span],
        pairs: Pairs,
        rank: int | None = None,
        **options: Any,
    ) -> tuple[FittedMap, int]:
        """Least squares over all rows (see `fit_map`), and the number of tokens; as they were kept, if they were.

        ``pairs`` makes features and targets of what passed the modules ``edited`` in the model as edited so far, with
        some more ``edits``, and the modules ``original`` in the original. The other ``options`` are those of `fit_map`.

        Raises:
            JobError: activations that are not finite.
        """

        edits = options.pop("edits", {})

        def fit() -> dict[str, Tensor]:
            moments = self._moments(edited, original, pairs, edits)

            def solve() -> dict[str, Tensor]:
                tokens = torch.tensor(sum(part.count for part in moments))
                return fit_map(moments, rank, **options).to_tensors() | {"tokens": tokens}

            return current().from_first(solve)

        found = self.bench.kept.recall(f"{self.target}-{self.replacement.where}", fit)
        return FittedMap.from_tensors(found), int(found["tokens"])

    def _moments(
        self, edited: Sequence[nn.Module | Span], original: Sequence[nn.Module | Span], pairs: Pairs, edits: Edits
    ) -> list[Moments]:
        bench, name = self.bench, f"block {self.blocks[0]}"
        folds, schedule = min(bench.folds, sum(map(count_rows, bench.batches))), bench.schedule
        self.streams.advance(self.replacement.begins)
        accumulators, moments = [MomentsAccumulator(bench.precision) for _ in range(folds)], list[Moments]()
        ordered = in_folds(bench.batches, folds, name, bench.progress, schedule=schedule)
        for number, (batch, pieces) in zip(schedule.order, ordered, strict=True):
            ours, theirs = self.streams.passages(number, edited, original, edits)
            features, targets = pairs(_by_rows(ours, batch), _by_rows(theirs, batch), batch)
            if not (features.isfinite().all() and targets.isfinite().all()):
                raise JobError(f"{name}: activations are NaN or infinite; try `dtype=float32`")
            for piece in pieces:
                accumulators[piece.fold].update(piece.of(features), piece.of(targets))
        while accumulators:  # one by one, so that each is in memory once
            accumulator = accumulators.pop(0)
            found = merge(accumulator.freeze() if accumulator.count else None, Moments)
            moments += [found] if found else []
        return moments


def _by_rows(passages: Sequence[Passage], batch: Batch) -> list[Passage]:
    """Passages of ``[rows, seq_len, width]``, whatever modules took and gave."""
    usual, rows = Layout(), count_rows(batch)
    return [Passage(*(usual.by_rows(hidden, rows, None) for hidden in passage)) for passage in passages]
