"""Measuring a model: from a name and a text to its linearity profile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rectilinear.core.block_moments import BlockMoments
from rectilinear.core.moments import holds_float64
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.beginnings import bos_warnings
from rectilinear.measurement.collect import collect_moments, find_schedule, hand_over
from rectilinear.measurement.inputs import Inputs, read_inputs
from rectilinear.measurement.kept import Kept, KeptScores
from rectilinear.measurement.needs import find_needs
from rectilinear.measurement.pairs import measure_pairs
from rectilinear.measurement.pairs_needs import find_pairs_needs
from rectilinear.measurement.partners import Schedule
from rectilinear.measurement.pieces import count_rows
from rectilinear.measurement.profile import ACCURACY, BlockRecord, Profile
from rectilinear.measurement.profile_warnings import find_warnings
from rectilinear.measurement.settings import Measurement
from rectilinear.measurement.targets import find_measured
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.capture import Span
from rectilinear.models.describe import check_positions, record_environment, record_model
from rectilinear.models.find_blocks import BlockStack, find_blocks, width_of
from rectilinear.models.layout import find_layout
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.offload import on_disk
from rectilinear.models.origin import Origin
from rectilinear.models.running import device_of
from rectilinear.models.settings import Loading
from rectilinear.models.walk import Passes, find_passes
from rectilinear.progress import Progress, reporting
from rectilinear.ranks import current, in_step
from rectilinear.results import DataRecord, settings_record
from rectilinear.settings import BatchSize, Target, takes_settings
from rectilinear.text.batches import Batch
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: What is measured: which part, of which block.
_Key = tuple[Target, int]


def _name(key: _Key) -> str:
    return f"{key[0]}-{key[1]}"


@takes_settings
@in_step
@reporting_exhausted_memory()
def measure(
    model: str | Path | nn.Module,
    text: Any,
    measurement: Measurement = Measurement(),
    *,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    batch_size: BatchSize = "auto",
    progress: bool | Progress = True,
) -> Profile:
    """Profile how linear each block of a decoder is on some text.

    Args:
        model: Hub id, path, ``"storyteller"``, or any module. A module is measured where it is,
            as it is; its mode, hooks and weights are left as they were.
        text: a text source (a path, a Hub dataset id, ``"stories"``, a list of strings; see
            `rectilinear.text.sources.open_text`), or tokens (ids ``[rows, seq_len]``, a tokenised
            dataset, a `DataLoader`, a list of batches; see `rectilinear.text.batches.as_batches`),
            where ``attention_mask`` marks padding, which never enters.
        measurement: how to measure.
        rows: how text becomes rows of tokens.
        loading: how the model is loaded.
        tokenizer: for text and a module; default: the one of the module's ``name_or_path``.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        progress: see `rectilinear.progress.reporting`.

    Raises:
        RequestError: the request cannot be met: no such model, text, column or block stack; text shorter than one row;
            rows longer than the model's context.
        JobError: activations that are not finite, a block without a tensor in or out, memory that does not suffice.
    """
    check_batch_size(batch_size)
    with reporting(progress) as report:
        origin = Origin(model, loading, measurement.blocks)
        # Before the weights, which may take long: everything that can be refused without them.
        report("reading the text", 0, 0)
        inputs = read_inputs(origin, text, rows, tokenizer)
        return profile_model(origin, inputs, measurement, batch_size, report)


def profile_model(
    origin: Origin, inputs: Inputs, measurement: Measurement, batch_size: BatchSize, progress: Progress
) -> Profile:
    """Load a model and profile it on inputs that were read for it; see `measure`."""
    progress("loading the model", 0, 0)
    module = origin.load()
    stack = find_blocks(module, measurement.blocks)
    rows, facts = inputs.data, inputs.rows
    beginnings: list[str] = []
    if isinstance(rows, Tensor):
        check_positions(module, rows)
        beginnings = bos_warnings(module, rows, facts.bos, facts.lead)
    width, must, ranks = width_of(origin.config), bool(origin.loading.stream) or on_disk(module), current()
    needs = ranks.from_first(lambda: find_needs(module, stack, inputs, measurement, origin.loading.stream))
    of_pairs = None
    if measurement.pairs:
        of_pairs = ranks.from_first(lambda: find_pairs_needs(module, stack, measurement, inputs.tokens))
    if needs:
        progress(f"measuring: {needs}{f', {of_pairs}' if of_pairs else ''}", 0, 0)
    progress("hashing the weights", 0, 0)
    described = record_model(module, origin, stack, width)
    tokens_are = {"text": inputs.fingerprint, "partners": facts.partners, "lead": facts.lead}
    kept = Kept()  # of batches more than their tensors may matter
    if isinstance(rows, Tensor):
        kept = Kept.of(module, origin, described.sha256, measurement, **tokens_are)

    def profile(batches: Sequence[Batch]) -> Profile:
        passes, reason = find_passes(module, stack, batches, stream=bool(needs and needs.states) or must)
        if needs and reason:  # so that the moments of all blocks are in memory together
            ranks.from_first(lambda: find_needs(module, stack, inputs, measurement, False))
        own = kept.changed(batch_size=max(map(count_rows, batches), default=0))
        scored = score_model(passes, stack, inputs, measurement, progress, kept=own)
        pairs = of_pairs and ranks.from_first(
            lambda: measure_pairs(passes, stack, measurement, of_pairs, progress, facts)
        )
        partners, target = facts.partners, measurement.target[0]
        found = {"blocks": stack.path, "partners": partners and partners.how, "pairs_columns": pairs and pairs.columns}
        said = [f"all blocks were measured in one pass, as without `stream`: {reason}"] if reason and must else []
        return Profile(
            model=described.model_copy(update={"width": scored.width}),
            data=scored.data,
            settings=settings_record(measurement, **found, batch_size=scored.batch_size) | {**inputs.reading},
            environment=record_environment(module),
            target=target,
            blocks=scored.scores[target],
            parts={other: blocks for other, blocks in scored.scores.items() if other != target},
            pairs=pairs,
            warnings=(*loading_warnings(module), *beginnings, *scored.warnings, *said),
        )

    if not isinstance(rows, Tensor):
        return profile(rows)
    return with_batch_size(lambda size: profile(torch.split(rows, size)), batch_size, module, rows.shape[1])


@dataclass(frozen=True)
class Scored:
    """The scores of one pass: what a profile says of the blocks that ran, and of what they ran on."""

    scores: dict[Target, tuple[BlockRecord, ...]]  # of at least one target
    width: int
    data: DataRecord
    batch_size: int  # rows of the largest batch
    warnings: tuple[str, ...]

    @property
    def first(self) -> tuple[BlockRecord, ...]:
        """Scores of the first target, which most ask for alone."""
        return next(iter(self.scores.values()))


def score_model(
    passes: Passes,
    stack: BlockStack,
    inputs: Inputs,
    measurement: Measurement,
    progress: Progress | None = None,
    *,
    kept: Kept = Kept(),
) -> Scored:
    """Score the blocks of a module, on inputs that were cut into batches.

    Args:
        passes: whole ones, for all blocks at once; or a walk, for one block after the other, each of which all rows go
            through: the moments of one are in memory then, and the hidden states of all rows.
        stack, inputs, measurement: what is measured, on what, and how.
        kept: scores that are there already; new ones are added as they are found.

    Raises:
        RequestError: no rows.
        JobError: activations that are not finite, a block without a tensor in or out, no block that ran.
    """
    lengths, module = [count_rows(batch) for batch in passes.batches], passes.model
    if not sum(lengths):
        raise RequestError("expected at least one row to measure, got none")
    measured, warnings = find_measured(module, stack, measurement.target, passes.batches[0])
    spans = {(each.target, each.block): (each.block, each.span) for each in measured}
    layout = find_layout(module, stack, passes.batches[0])
    collect = partial(collect_moments, settings=measurement, progress=progress, layout=layout, rows=inputs.rows)
    schedule = find_schedule(passes.batches, measurement, layout, inputs.rows, current())
    scored = _score(passes, spans, collect, schedule, kept, progress)
    records = {
        target: tuple(each.block for (own, _), each in scored.items() if own == target and each and each.block)
        for target in measurement.target
    }
    if measurement.products == "auto" and any(b.solve.error > ACCURACY for blocks in records.values() for b in blocks):
        # Float32 was taken on the evidence of the first tokens, and the rest proved it wrong.
        exact = measurement.model_copy(update={"products": "float64"})
        return score_model(passes.again(), stack, inputs, exact, progress, kept=kept.changed(products="float64"))
    if not any(records.values()):
        raise JobError(
            f"no block of {stack.path or 'the stack'} ran on a token; is every token masked? "
            "If not, try `blocks` with another path"
        )
    width, tokens = (max(getattr(each, name) for each in scored.values() if each) for name in ("width", "tokens"))
    data = inputs.record(tokens, sum(lengths))
    warnings = find_warnings(records, data, width, measurement.folds) + warnings
    ran = {record.index for blocks in records.values() for record in blocks}
    if idle := sorted({each.block for each in measured} - ran):
        warnings.append(f"blocks {idle} never ran on these inputs and are left out")
    return Scored(records, width, data, max(lengths), tuple(warnings))


def _score(
    passes: Passes,
    spans: Mapping[_Key, tuple[int, Span]],
    collect: Callable[..., list[BlockMoments]],
    schedule: Schedule,
    kept: Kept,
    progress: Progress | None,
) -> dict[_Key, KeptScores | None]:
    """The scores of blocks, or parts of them: those that are kept, and others from their moments."""
    ranks, device = current(), device_of(passes.model)
    solver = device if holds_float64(device) else torch.device("cpu")
    scored = ranks.from_first(lambda: {key: kept.load(_name(key), KeptScores) for key in spans})
    missing = {key: span for key, span in spans.items() if scored[key] is None}
    for key, moments in hand_over(collect, passes, missing, schedule):
        if moments is not None:
            found = scored[key] = KeptScores.of(moments.to(solver), *key)
            del moments  # before those of the next block are there
            kept.save(_name(key), found)
            if progress:  # of processes that share them, this one's share
                found_here = sum(each is not None for each in scored.values())
                progress("blocks", found_here, -(-len(spans) // ranks.count))
    for theirs in ranks.gather(scored):
        scored |= {key: each for key, each in theirs.items() if each is not None}
    return scored
