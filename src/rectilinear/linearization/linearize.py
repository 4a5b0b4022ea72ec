"""Linearizing a model: from a name, a text and a selection to an edited model and its plan."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn

from rectilinear.errors import RequestError
from rectilinear.linearization.card import model_card
from rectilinear.linearization.choose import Choice
from rectilinear.linearization.divergence import to_judge
from rectilinear.linearization.fit import Fitted, merge_edits
from rectilinear.linearization.heal import heal, healing_folder
from rectilinear.linearization.kept_fits import KeptFits, fits_folder
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.needs import find_needs
from rectilinear.linearization.plan import ParametersRecord, Plan, SelectionRecord, find_warnings
from rectilinear.linearization.request import Request
from rectilinear.linearization.scope import Scope
from rectilinear.linearization.settings import CalibrationRows, Fitting, Selection
from rectilinear.linearization.workbench import Workbench, check_shared, count_fitted, noting_padding
from rectilinear.measurement.beginnings import bos_warnings
from rectilinear.measurement.kept import Kept, conditions_of
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.card_metadata import write_card
from rectilinear.models.code_files import describe_code
from rectilinear.models.depth import check_removal
from rectilinear.models.describe import (
    check_positions,
    count_parameters,
    record_environment,
    record_model,
    record_rows,
)
from rectilinear.models.earlier_checkpoint import checkpoint_files
from rectilinear.models.export import check_same_logits, check_space, decodes, export
from rectilinear.models.find_blocks import find_blocks, width_of
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.logits import check_decoder, row_logits
from rectilinear.models.origin import Origin
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.running import evaluating
from rectilinear.models.settings import Loading
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import commit, swapped
from rectilinear.models.walk import check_resumes
from rectilinear.progress import Progress, reporting
from rectilinear.publish import hold, stage
from rectilinear.ranks import current, in_step
from rectilinear.results import DataRecord, ModelRecord, settings_record
from rectilinear.runs import claim
from rectilinear.settings import BatchSize, takes_settings
from rectilinear.text.rows import TokenRows

if TYPE_CHECKING:
    from typing import Unpack

    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False, repr=False)
class Linearized:
    """An edited model, what was done to it, and its tokenizer.

    Attributes:
        model: the edited model; it generates, and saves, as any other.
        plan: what was replaced by what, and how well that was fitted.
        tokenizer: of the model.
        rows: ``[rows, seq_len]``, a few rows of token ids, on which a saved checkpoint is compared with the model.
        undecodable: why that leaves decoding with a cache out, as the original does not do that right; else None.
    """

    model: PreTrainedModel
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    rows: torch.Tensor
    undecodable: str | None = None

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint: weights, configs, tokenizer, ``plan.json`` and a model card.

        A fresh process then loads it, and compares logits and cached decoding with this model's. Only
        then is it moved into the folder, where it replaces any other checkpoint.

        Raises:
            JobError: it could not be written, or does not load as it should.
        """
        with hold(Path(folder)), stage(Path(folder), stale=checkpoint_files(Path(folder), Plan.file_name)) as new:
            self.plan.save(new)
            export(self.model, self.tokenizer, new, self.rows, decoding=self.undecodable is None)
            write_card(new, model_card(self.plan, describe_code(new, self.plan.model.id)))
        return Path(folder)

    def __repr__(self) -> str:
        return repr(self.plan)

    def _repr_html_(self) -> str:
        return self.plan._repr_html_()

    def to_frame(self) -> DataFrame:
        """The plan's table as a pandas data frame."""
        return self.plan.to_frame()


class Run(TypedDict, total=False):
    """How `linearize` is run.

    Attributes:
        out: folder that the checkpoint is written into, with what `Linearized.save` writes. A run with
            ``heal_steps`` that was stopped goes on from ``OUT.heal`` when it is called again.
        overwrite: whether ``out`` may hold other files.
        tokenizer: for a model without a ``name_or_path`` to take it from.
        batch_size: rows in a forward pass; ``"auto"``, the default, halves it when memory runs out.
        progress: see `rectilinear.progress.reporting`; default True.
    """

    out: str | Path | None
    overwrite: bool
    tokenizer: PreTrainedTokenizerBase | None
    batch_size: BatchSize
    progress: bool | Progress


@takes_settings
@in_step
@reporting_exhausted_memory()
def linearize(
    model: str | Path | PreTrainedModel,
    text: str | Path,
    kind: Kind | str | None = None,
    selection: Selection = Selection(),
    *,
    rows: CalibrationRows = CalibrationRows(),
    loading: Loading = Loading(),
    fitting: Fitting = Fitting(),
    **run: Unpack[Run],
) -> Linearized:
    """Replace blocks of a decoder, or their attentions or MLPs, by something cheaper.

    Stand-ins are fitted by least squares on moments, from the first block to the last: inputs from the model as edited
    so far, targets from the original. The last tenth of the rows is never fitted on; losses in the plan are of these.

    Args:
        model: Hub id, path, ``"storyteller"``, or a transformers model, of which a copy is edited.
        text: a text source (see `rectilinear.text.sources.open_text`).
        kind: what stands in, such as ``Filter(rank=24)`` or ``"drop"``; a `Filter` when not given.
        selection: what is replaced.
        rows: how text becomes rows of tokens.
        loading: how the model is loaded.
        fitting: how stand-ins are fitted, and trained after that.
        **run: see `Run`.

    Raises:
        RequestError: the request cannot be met, as told before any work is done.
        JobError: activations that are not finite, no block within the tolerated loss, memory that
            does not suffice, a checkpoint that cannot be written or does not load.
    """
    if unknown := sorted(run.keys() - Run.__annotations__.keys()):
        raise TypeError(f"linearize() got an unexpected keyword argument {unknown[0]!r}")
    batch_size, overwrite = run.get("batch_size", "auto"), run.get("overwrite", False)
    check_batch_size(batch_size)
    request = Request.of(kind, selection)
    if fitting.heal_steps and current().count > 1:
        raise RequestError(f"expected one process with `heal_steps`, got {current().count}; try without torchrun")
    if fitting.heal_steps and not request.any_trainable:
        raise RequestError("expected stand-ins to train with `heal_steps`, got only such that have none")
    with ExitStack() as held:
        origin = Origin(model, loading)
        out = held.enter_context(claim(run.get("out"), overwrite=overwrite, reads=[origin.name, text]))
        progress = held.enter_context(reporting(run.get("progress", True)))
        job = _Job.prepare(origin, text, rows, request, out, run.get("tokenizer"))
        inputs = {"model": job.record.sha256, "text": job.data.fingerprint, "stack": job.scope.stack.path}
        recipe = {**inputs, **request.recipe(), **settings_record(fitting), "seed": rows.seed}
        heals = healing_folder(out, recipe, overwrite) if out and fitting.heal_steps else nullcontext()
        conditions = conditions_of(job.scope.model, origin)
        costs = Kept(conditions and {**inputs, **settings_record(rows), "folds": fitting.folds, **conditions})
        fits = fits_folder(out, {**recipe, **conditions}) if out and conditions else nullcontext()
        folders = held.enter_context(heals), held.enter_context(fits)
        made = job.carry_out(fitting, batch_size, costs, folders, progress)
        if out:
            made.save(out)
    return made


@dataclass(frozen=True, eq=False)
class _Job:
    """A request that was checked, with a model (a copy of one that was in memory), and rows of the text."""

    scope: Scope
    record: ModelRecord
    tokenizer: PreTrainedTokenizerBase
    reading: CalibrationRows
    data: DataRecord
    packed: TokenRows

    @classmethod
    def prepare(
        cls,
        origin: Origin,
        text: str | Path,
        reading: CalibrationRows,
        request: Request,
        out: Path | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> _Job:
        """Check a request, and load what it takes."""
        selection = request.selection
        if out is not None:
            checkpoint_files(out, Plan.file_name)
        # Before the text and the weights, which may take long: everything that can be refused without them.
        skeleton = origin.skeleton()
        width = width_of(getattr(skeleton, "config", None))
        if width is None:
            raise RequestError(f"expected a transformers model with a hidden_size, got {type(skeleton).__name__}")
        path = selection.stack or (selection.plan.settings.get("stack") if selection.plan else None)
        Scope(request, skeleton, find_blocks(skeleton, path), width).check()
        tokenizer = tokenizer or origin.tokenizer
        rows = origin.rows(text, reading, tokenizer)
        check_shared(rows.ids)
        if len(rows.ids) < 2 and request.named is None and selection.by_loss:
            raise RequestError(
                "expected at least two rows to choose by loss, one of them to measure it on; try more text"
            )
        model: Any = origin.load(head=True)
        if isinstance(origin.model, nn.Module):
            model = copy.deepcopy(model)
        check_positions(model, rows.ids)
        check_decoder(model, rows.ids, origin.name)
        if out is not None:
            check_space(model, out)
        stack = find_blocks(model, path)
        scope = Scope(request, model, stack, width, probe_parts(model, stack, rows.ids))
        record = record_model(model, origin, scope.stack, width)
        scope.check_weights(record.sha256)
        return cls(scope, record, tokenizer, reading, record_rows(text, rows), rows)

    def carry_out(
        self, fitting: Fitting, batch_size: BatchSize, costs: Kept, folders: Sequence[Path | None], progress: Progress
    ) -> Linearized:
        """Choose, fit, heal, and put in what was fitted; what can be gone on from is kept in two folders."""
        heals, fits = folders
        packed, scope, model, stack = self.packed, self.scope, self.scope.model, self.scope.stack
        ids = packed.ids
        parts = scope.parts or probe_parts(model, stack, ids)
        fitted_rows = count_fitted(ids)
        held_out = ids[fitted_rows:]
        whole = check_resumes(model, stack, ids[:1, :64])
        tokens = ids[:fitted_rows].numel()
        needs = current().from_first(lambda: find_needs(model, scope, tokens, fitting.folds, walks=whole is None))
        progress(f"linearizing: {needs}", 0, 0)

        def attempt(size: int) -> tuple[Workbench, list[Fitted], SelectionRecord]:
            size = min(size, fitted_rows // current().count)  # for each process that shares them a batch at least
            batches = torch.split(ids[:fitted_rows], size)
            given = (fitting.folds, progress, packed.lead, whole is None, KeptFits(fits, f"{size}-"), self.reading.seed)
            bench = Workbench(model, stack, parts, PaddingMask(), batches, *given, judged=to_judge(held_out, size))
            return bench, *Choice(scope, bench, held_out, costs.changed(batch_size=size)).make()

        bench, done, selection = with_batch_size(attempt, batch_size, model, ids.shape[1])
        replacements = tuple(fitted.replacement for fitted in done)
        sample = ids[-4:, :64]
        undecodable = decodes(model, sample)
        warnings = [*loading_warnings(model), *bos_warnings(model, ids, packed.bos, packed.lead)]
        if undecodable:
            warnings.append(f"{undecodable}, so that decoding with the result was not tried")
        warnings += find_warnings(replacements, min(fitting.folds, fitted_rows), scope.width)
        if whole:
            warnings.append(f"the model was run from its beginning for each replacement: {whole}")
        warnings += selection.warnings(replacements)
        if scope.too_large:
            why = "their replacements would be larger than they are"
            warnings.append(f"blocks {scope.too_large} were not considered: {why}")
        placed = {"folds": fitting.folds, "stack": stack.path, "fitted_rows": fitted_rows}
        plan = Plan(
            model=self.record,
            data=self.data,
            settings={**self.reading.model_dump(exclude={"seq_len"}), **scope.request.settings(), **placed},
            environment=record_environment(model),
            selection=selection,
            replacements=replacements,
            warnings=tuple(warnings),
        )
        check_removal(model, stack, [index for index in range(len(stack)) if index not in plan.removed])
        healed = heal(bench, done, held_out, fitting, self.reading.seed, heals) if fitting.heal_steps else None
        with evaluating(model), swapped(model, merge_edits(done)), noting_padding(bench):
            wanted = row_logits(model, sample)
        commit(model, stack, merge_edits(done), plan.removed)
        with evaluating(model):
            check_same_logits(wanted, row_logits(model, sample))
        parameters = ParametersRecord(before=self.record.parameters, after=count_parameters([model]))
        plan = plan.model_copy(update={"parameters": parameters, "heal": healed})
        return Linearized(model, plan, self.tokenizer, sample, undecodable)
