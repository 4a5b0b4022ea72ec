"""Linearizing a model: from a name, a text and a wish to an edited model and its plan."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rectilinear.errors import RequestError
from rectilinear.linearization.card import model_card
from rectilinear.linearization.checkpoints import Checkpoints
from rectilinear.linearization.choose import Budget, Select
from rectilinear.linearization.defaults import RATES, TAPS
from rectilinear.linearization.fit import Fitted, Workbench, merge_edits
from rectilinear.linearization.plan import (
    Healing,
    Kind,
    ParametersRecord,
    Plan,
    SelectionRecord,
    check_trainable,
    find_warnings,
)
from rectilinear.linearization.wish import Wish
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.blocks import find_blocks, text_config
from rectilinear.models.describe import count_parameters
from rectilinear.models.export import CHECKPOINT_FILES, check_space, export, has_own_code
from rectilinear.models.load import DType
from rectilinear.models.modeling_rectilinear import PaddingMask
from rectilinear.models.origin import Origin
from rectilinear.models.records import record_environment, record_model
from rectilinear.models.settings import Loading
from rectilinear.models.surgery import Target, check_removal, commit
from rectilinear.progress import Progress
from rectilinear.results import DataRecord
from rectilinear.runs import stage
from rectilinear.settings import BatchSize
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# This share of the rows, the last ones, is never fitted on: losses are measured on it.
_HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Linearized:
    """An edited model, what was done to it, and its tokenizer.

    Attributes:
        model: the edited model; it generates, and saves, as any other.
        plan: what was replaced by what, and how well that was fitted.
        tokenizer: of the model.
        rows: ``[rows, seq_len]``, a few rows of token ids, on which a saved checkpoint is compared with the model.
    """

    model: PreTrainedModel
    plan: Plan
    tokenizer: PreTrainedTokenizerBase
    rows: torch.Tensor

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint: weights, configs, tokenizer, ``plan.json`` and a model card.

        A fresh process then loads it, and compares logits and cached decoding with this model's. Only
        then is it moved into the folder, where it replaces any other checkpoint.

        Raises:
            JobError: it could not be written, or does not load as it should.
        """
        with stage(Path(folder), stale=CHECKPOINT_FILES) as new:
            self.plan.save(new)
            (new / "README.md").write_text(model_card(self.plan, has_own_code(self.model)), encoding="utf-8")
            export(self.model, self.tokenizer, new, self.rows)
        return Path(folder)


@reporting_exhausted_memory
def linearize(
    model: str | Path | PreTrainedModel,
    text: str | Path,
    *,
    kind: Kind = "filter",
    target: Target = "block",
    blocks: Sequence[int] | None = None,
    count: int | None = None,
    budget: float | None = None,
    max_loss_increase: float | None = None,
    select: Select = "score",
    rank: int | None = None,
    taps: int = TAPS,
    rates: Sequence[float] = RATES,
    merge: bool = False,
    plan: Plan | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stack: str | None = None,
    max_tokens: int = 300_000,
    seq_len: int = 256,
    folds: int = 4,
    heal_steps: int = 0,
    heal_learning_rate: float = 1e-3,
    heal_logits: float = 0.0,
    heal_batch_size: int = 8,
    heal_folder: str | Path | None = None,
    heal_overwrite: bool = False,
    batch_size: BatchSize = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    column: str = "text",
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Linearized:
    """Replace blocks of a decoder, or their attentions or MLPs, by something linear.

    Stand-ins are fitted by least squares on moments, from the first block to the last: inputs from
    the model as edited so far, targets from the original. The last tenth of the rows is never
    fitted on; losses in the plan are of these.

    Args:
        model: Hub id, path, ``"storyteller"``, or a transformers model, of which a copy is edited.
        text: a text source (see `rectilinear.text.sources.open_text`).
        kind: ``drop``, ``folded``, ``affine`` or ``filter``; see docs/linearization.md.
        target: ``block``, ``attention`` or ``mlp``.
        blocks: indices of the blocks to replace; else one of
        count: how many, or
        budget: the share of the model's parameters to save at least, or
        max_loss_increase: nats per token by which the loss may rise at most, or
        plan: an earlier plan of this very model, whose replacements are fitted anew.
        select: the order in which ``count``, ``budget`` and ``max_loss_increase`` take blocks.
        rank: of the maps; None for full rank.
        taps, rates: earlier tokens and decaying means that a filter sees.
        merge: whether consecutive replaced blocks share one stand-in.
        tokenizer: default: the model's own.
        stack: dotted path of the block stack; default: found by structure.
        max_tokens, seq_len: text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens.
        folds: contiguous folds of the fitted rows, by which ridges are chosen.
        heal_steps: of training the stand-ins towards the original's hidden states, after the fit;
            see `rectilinear.linearization.heal.heal` for the loss and for
        heal_learning_rate, heal_batch_size: at the first step, and rows of a step, and
        heal_logits: weight of the divergence from the original's predictions.
        heal_folder: where healing keeps its last checkpoint; the same call goes on from there when
            it was stopped. The folder stays.
        heal_overwrite: whether checkpoints of another call that are there may be removed.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        device, dtype, revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        column, config, split: of the text source.
        seed: of generated text, and of the order of rows in healing.
        out: where it is to be saved, so that a disk without room is found out at once.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met, as told before any work is done.
        JobError: activations that are not finite, no block within the tolerated loss, memory that
            does not suffice.
    """
    check_batch_size(batch_size)
    if seq_len < 4:
        raise RequestError(f"expected rows of at least 4 tokens, got --seq-len {seq_len}")
    healing = Healing(heal_steps, heal_learning_rate, heal_batch_size, heal_logits, seed)
    if folds < 1:
        raise RequestError(f"expected at least 1 fold, got {folds}")
    given = Plan.load(plan) if isinstance(plan, (str, Path)) else plan
    limit = Budget(count, budget, max_loss_increase)
    wish = Wish(kind, target, blocks, limit, select, rank, taps, rates, merge, given)
    origin = Origin(model, Loading(revision=revision, trust_remote_code=trust_remote_code, device=device, dtype=dtype))
    source = Rows(max_tokens=max_tokens, seq_len=seq_len, column=column, config=config, split=split, seed=seed)
    # Before the text and the weights, which may take long: everything that can be refused without them.
    skeleton = origin.skeleton()
    width = getattr(text_config(getattr(skeleton, "config", None)), "hidden_size", None)
    if width is None:
        raise RequestError(f"expected a transformers model with a hidden_size, got {type(skeleton).__name__}")
    path = stack or (given.settings.get("stack") if given else None)
    wish.check(skeleton, find_blocks(skeleton, path), width)
    if healing.steps:
        check_trainable([wish.template] if wish.named is None else wish.named)
    tokenizer = tokenizer or origin.tokenizer()
    rows = origin.rows(text, source, tokenizer)
    total = len(rows.ids)
    if total < 2 and (limit.loss is not None or (select == "loss" and wish.named is None)):
        raise RequestError("expected at least two rows to choose by loss, one of them to measure it on; try more text")
    loaded: Any = origin.load(head=True)
    if isinstance(model, nn.Module):
        loaded = copy.deepcopy(loaded)
    if out is not None:
        check_space(loaded, Path(out))
    found = find_blocks(loaded, path)
    record = record_model(loaded, origin, found, width)
    wish.check_weights(loaded, found, record.sha256 or "")
    fitted_rows = total - max(1, round(_HELD_OUT * total)) if total > 1 else total
    data = DataRecord(
        source=str(text), fingerprint=rows.fingerprint, tokens=rows.ids.numel(), rows=total, seq_len=seq_len
    )

    reading = source.model_dump(exclude={"seq_len"})
    checkpoints = None
    if healing.steps and heal_folder is not None:
        recipe = {"model": record.sha256, "text": rows.fingerprint, "stack": found.path, "folds": folds}
        checkpoints = Checkpoints(Path(heal_folder), {**recipe, **wish.recipe(), **asdict(healing)})
        checkpoints.check(heal_overwrite)

    def attempt(size: int) -> tuple[Workbench, list[Fitted], SelectionRecord]:
        padding = PaddingMask()
        bench = Workbench(loaded, found, padding, torch.split(rows.ids[:fitted_rows], size), folds, progress)
        return bench, *wish.carry_out(bench, rows.ids[fitted_rows:], width)

    bench, fits, selection = with_batch_size(attempt, batch_size, loaded, seq_len)
    replacements = tuple(fitted.replacement for fitted in fits)
    made = Plan(
        model=record,
        data=data,
        settings={**reading, **wish.settings(), "folds": folds, "stack": found.path, "fitted_rows": fitted_rows},
        environment=record_environment(loaded),
        selection=selection,
        replacements=replacements,
        warnings=tuple(find_warnings(replacements, min(folds, fitted_rows), width)),
    )
    check_removal(loaded, found, [index for index in range(len(found)) if index not in made.removed])
    healed = None
    if healing.steps:
        from rectilinear.linearization.heal import heal  # Trainer takes seconds to import

        healed = heal(bench, fits, rows.ids[fitted_rows:], healing, checkpoints)
    commit(loaded, found, merge_edits(fits), made.removed)
    parameters = ParametersRecord(before=record.parameters, after=count_parameters([loaded]))
    made = made.model_copy(update={"parameters": parameters, "heal": healed})
    return Linearized(loaded, made, tokenizer, rows.ids[-4:, :64])
