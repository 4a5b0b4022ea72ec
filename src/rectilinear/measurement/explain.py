"""What the linear maps of some blocks do, and where they fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockMoments
from rectilinear.core.forms import Explained, FormScores, effective_rank, explain_map
from rectilinear.core.moments import Moments
from rectilinear.core.scores import energies_of
from rectilinear.errors import RequestError
from rectilinear.measurement.beginnings import bos_warnings
from rectilinear.measurement.collect import collect_moments
from rectilinear.measurement.explanation import (
    BlockExplanation,
    DepthRecord,
    DirectionRecord,
    Explanation,
    FormRecord,
)
from rectilinear.measurement.inputs import Inputs, read_inputs
from rectilinear.measurement.lenses import measure_depths
from rectilinear.measurement.profile import LinearityRecord
from rectilinear.measurement.profile_warnings import about_tokens
from rectilinear.measurement.residuals import FittedMap, LinearMap, Look, Looking, describe_tokens, look_at_tokens
from rectilinear.measurement.settings import Explaining, Measurement
from rectilinear.measurement.targets import find_measured
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.describe import check_positions, record_environment, record_model
from rectilinear.models.find_blocks import BlockStack, find_blocks
from rectilinear.models.layout import find_layout
from rectilinear.models.lens import Lens, find_lens
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading
from rectilinear.models.walk import Passes
from rectilinear.progress import Progress, reporting
from rectilinear.results import DataRecord, settings_record
from rectilinear.settings import BatchSize, takes_settings
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Directions that are named, by so many tokens each.
_DIRECTIONS, _NAMED = 8, 8

# The file of maps.
_MAPS = "maps.safetensors"


@dataclass(frozen=True, eq=False)
class Explanations:
    """What came of `explain`.

    Attributes:
        explanation: what is told of the maps.
        maps: the maps themselves, by block, fitted on all rows.
    """

    explanation: Explanation
    maps: dict[int, LinearMap]

    def save(self, folder: str | Path) -> None:
        """Write ``explanation.json`` and the maps, ``maps.safetensors``, into a folder; see `load_maps`."""
        self.explanation.save(folder)
        self.save_maps(folder)

    def save_maps(self, folder: str | Path) -> list[str]:
        """Write the maps alone; return the names of the files."""
        from safetensors.torch import save_file

        tensors = {f"{i}.{name}": getattr(one, name) for i, one in self.maps.items() for name in ("weight", "bias")}
        about = {"target": self.explanation.target, "model": self.explanation.model.sha256 or ""}
        save_file({name: t.contiguous() for name, t in tensors.items()}, Path(folder) / _MAPS, about)
        return [_MAPS]


def load_maps(folder: str | Path) -> dict[int, LinearMap]:
    """The maps that `explain` wrote, by block.

    Raises:
        RequestError: there are none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder) / _MAPS if Path(folder).is_dir() else Path(folder)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"expected maps at {path}, got none: {error}") from None
    names = [name for name in tensors if re.fullmatch(r"\d+\.weight", name)]
    if not names or {*tensors} != {name.replace("weight", kind) for name in names for kind in ("weight", "bias")}:
        raise RequestError(f"expected maps of rectilinear explain at {path}, got {', '.join([*tensors][:3])}")
    blocks = sorted(int(name.partition(".")[0]) for name in names)
    return {block: LinearMap(tensors[f"{block}.weight"], tensors[f"{block}.bias"]) for block in blocks}


@takes_settings
@reporting_exhausted_memory()
def explain(
    model: str | Path | nn.Module,
    text: Any,
    explaining: Explaining,
    *,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | Progress = True,
) -> Explanations:
    """Fit the linear maps of some blocks, or parts of them, and say what they do and where they fail.

    The maps are those of `measure` without attention sinks. Which tokens deviate is told of the last fold's rows, by a
    map that was fitted on the other folds.

    Args:
        model, text, rows, loading, tokenizer, batch_size, progress: as for `measure`; of tokens only ids
            ``[rows, seq_len]``.
        explaining: which blocks, and what of them.

    Raises:
        RequestError: as for `measure`; blocks that are not there, fewer than two rows.
        JobError: as for `measure`.
    """
    check_batch_size(batch_size)
    with reporting(progress) as report:
        origin = Origin(model, loading, explaining.stack)
        report("reading the text", 0, 0)
        inputs = read_inputs(origin, text, rows, tokenizer)
        ids = inputs.data
        if not isinstance(ids, Tensor):
            raise RequestError("expected a text or token ids [rows, seq_len] to explain, got batches")
        if len(ids) < 2:
            raise RequestError("expected at least two rows, some to fit on and some to look at, got one")
        decode = _decoder(origin, tokenizer)
        report("loading the model", 0, 0)
        module = origin.load(head=True)
        stack = find_blocks(module, explaining.stack)
        if missing := [index for index in explaining.blocks if index >= len(stack)]:
            raise RequestError(f"expected `blocks` from 0 to {len(stack) - 1}, got {missing[0]}")
        check_positions(module, ids)
        if explaining.depths and ids.shape[1] < 2:
            raise RequestError("expected `seq_len` of at least 2 for `depths`, got 1")
        beginnings = bos_warnings(module, ids, inputs.rows.bos, inputs.rows.lead)
        lens = find_lens(module, stack, ids)

        def attempt(size: int) -> Explanations:
            folds = min(explaining.folds, len(ids))
            looking = Looking(ids, size, folds, explaining.sink_ratio, inputs.rows.lead)
            return _explain(_Job(origin, module, stack, inputs, looking, explaining, lens, decode, beginnings), report)

        return with_batch_size(attempt, batch_size, module, ids.shape[1])


@dataclass(frozen=True, eq=False)
class _Job:
    """What is explained, and with what."""

    origin: Origin
    module: nn.Module
    stack: BlockStack
    inputs: Inputs
    looking: Looking
    explaining: Explaining
    lens: Lens | None
    decode: Callable[[Sequence[int]], str]
    beginnings: list[str]


def _explain(job: _Job, report: Progress) -> Explanations:
    module, stack, looking, target = job.module, job.stack, job.looking, job.explaining.target
    batches = torch.split(looking.rows, looking.batch_size)
    measured, left_out = find_measured(module, stack, [target], batches[0])
    spans = {one.block: one.span for one in measured if one.block in job.explaining.blocks}
    if missing := [index for index in job.explaining.blocks if index not in spans]:
        raise RequestError(f"expected blocks with a part of `target={target}`, got {missing}; {'; '.join(left_out)}")
    asked = Measurement(
        target=(target,), folds=job.explaining.folds, sink_ratio=job.explaining.sink_ratio, products="float64"
    )
    layout, rows = find_layout(module, stack, batches[0]), replace(job.inputs.rows, partners=None)
    passes = Passes(module, batches)
    moments = collect_moments(passes, [*spans.values()], asked, report, layout=layout, numbers=[*spans], rows=rows)
    by_block, alone = dict(zip(spans, moments, strict=True)), target != "block"
    regular = {block: _regular(block, found, looking.folds) for block, found in by_block.items()}
    fitted = {block: _fit(regular[block][:-1], found.eps, alone) for block, found in by_block.items()}
    looks, end = look_at_tokens(module, stack, layout, spans, fitted, looking, report)
    described: list[BlockExplanation] = []
    maps = {}
    for block, found in by_block.items():
        report("blocks", len(described), len(spans))
        explained = explain_map(regular[block], found.eps, alone=alone)
        maps[block] = LinearMap(explained.weight.float(), explained.bias.float())
        described.append(_describe(job, block, explained, found, looks[block], end))
    depths: tuple[DepthRecord, ...] = ()
    accuracy = None
    if job.explaining.depths:
        depths, accuracy = measure_depths(module, stack, looking, job.lens, report)
    report("hashing the weights", 0, 0)
    return Explanations(_explanation(job, described, depths, accuracy), maps)


def _explanation(
    job: _Job, blocks: Sequence[BlockExplanation], depths: tuple[DepthRecord, ...], accuracy: float | None
) -> Explanation:
    inputs, width, looking = job.inputs, len(blocks[0].singular_values), job.looking
    data = DataRecord(
        source=inputs.source,
        fingerprint=inputs.fingerprint,
        tokens=blocks[0].tokens + blocks[0].sinks,
        rows=len(looking.rows),
        seq_len=inputs.seq_len,
        documents=inputs.rows.documents,
    )
    warnings = [*loading_warnings(job.module), *job.beginnings, *about_tokens((), data, width, looking.folds)]
    if job.lens is None:
        warnings.append("what the model does after its last block was not found, so that no tokens are named")
    return Explanation(
        model=record_model(job.module, job.origin, job.stack, width),
        data=data,
        settings=settings_record(job.explaining, batch_size=looking.batch_size) | {**inputs.reading},
        environment=record_environment(job.module),
        target=job.explaining.target,
        blocks=tuple(blocks),
        depths=depths,
        accuracy=accuracy,
        warnings=tuple(warnings),
    )


def _regular(block: int, found: BlockMoments, folds: int) -> list[Moments]:
    """By fold, of tokens that are not attention sinks."""
    regular = [moments for moments in found.regular if moments is not None]
    if len(regular) < folds:
        raise RequestError(
            f"expected tokens that are no attention sinks in each of {folds} folds, got none in some of "
            f"block {block}; try fewer `folds`, or a larger `sink_ratio`"
        )
    return regular


def _fit(folds: Sequence[Moments], eps: float, alone: bool) -> FittedMap:
    """The best map over some folds."""
    whole = reduce(add, folds)
    _, update = energies_of(whole, whole, eps, alone=alone)
    return FittedMap(LinearMap.of(whole), whole, update > 0)


def _describe(
    job: _Job, block: int, explained: Explained, found: BlockMoments, look: Look, end: Tensor
) -> BlockExplanation:
    count = sum(moments.count for moments in found.regular if moments)
    return BlockExplanation(
        index=block,
        tokens=count,
        sinks=found.count - count,
        forms={name: _form(scores) for name, scores in explained.forms.items()},
        ranks={rank: _form(scores) for rank, scores in explained.ranks.items()},
        singular_values=tuple(float(f"{value:.6g}") for value in explained.singular_values.tolist()),
        effective_rank=effective_rank(explained.shares),
        directions=tuple(_directions(job, explained, end)),
        **describe_tokens(look, job.decode, job.explaining.deviating),
    )


def _form(scores: FormScores) -> FormRecord:
    return FormRecord(output=LinearityRecord.of(scores.output), update=LinearityRecord.of(scores.update))


def _directions(job: _Job, explained: Explained, end: Tensor) -> Iterator[DirectionRecord]:
    leading = explained.directions.T[:_DIRECTIONS]
    logits = job.lens.written(leading, end) if job.lens else None
    for place, share in enumerate(explained.shares[:_DIRECTIONS].tolist()):
        if logits is None:
            yield DirectionRecord(share=share)
            continue
        ends = (logits[place].topk(_NAMED, largest=largest).indices.tolist() for largest in (True, False))
        raises, lowers = (tuple(job.decode([one]) for one in end) for end in ends)
        yield DirectionRecord(share=share, raises=raises, lowers=lowers)


def _decoder(origin: Origin, tokenizer: PreTrainedTokenizerBase | None) -> Callable[[Sequence[int]], str]:
    """Token ids as text; numbers where there is no tokenizer."""
    try:
        found = tokenizer or origin.tokenizer
    except RequestError:
        return lambda ids: "".join(f"[{one}]" for one in ids)
    return lambda ids: str(found.decode([*ids]))
