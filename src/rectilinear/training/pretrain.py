"""Pretraining a decoder from random weights, with transformers' Trainer."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import set_seed
from transformers.integrations import get_available_reporting_integrations

from rectilinear.errors import RequestError
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.card_metadata import write_card
from rectilinear.models.code_files import describe_code, drop_absent_code
from rectilinear.models.describe import record_environment, record_model
from rectilinear.models.export import writing
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.load import check_revision
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.models.series import steps_of
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress, reporting
from rectilinear.publish import stage
from rectilinear.results import DataRecord
from rectilinear.runs import claim
from rectilinear.settings import takes_settings
from rectilinear.text.fingerprint import fingerprint
from rectilinear.training.callback import LinearityCallback
from rectilinear.training.cards import decoder_card
from rectilinear.training.corpus import (
    PackedText,
    Plan,
    about_vocabulary,
    discard_rows,
    find_run,
    is_over,
    open_run,
    resume_run,
    start_run,
)
from rectilinear.training.presets import fill_preset
from rectilinear.training.regularizer import Regularizer
from rectilinear.training.results import HeldOutRecord, Training
from rectilinear.training.settings import Corpus, Monitoring, Recipe
from rectilinear.training.trainer import (
    FollowOptions,
    GuardedTrainer,
    SaveAtSignal,
    StepProgress,
    discard_partial_checkpoints,
    last_checkpoint,
    precision_of,
    training_arguments,
    trains_on_cpu,
)


@takes_settings
@reporting_exhausted_memory()
def pretrain(
    text: str | Path,
    recipe: Recipe = Recipe(),
    corpus: Corpus = Corpus(),
    *,
    out: str | Path,
    monitoring: Monitoring = Monitoring(),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Progress = True,
) -> Training:
    """Pretrain a decoder, and leave a checkpoint in a folder.

    Runs in one process or, under torchrun or ``accelerate launch``, in several (DDP, FSDP). While it runs, the folder
    has the rows, the recipe and Trainer's checkpoints. At the end it has the model, its tokenizer, ``training.json``,
    ``dynamics.json`` and a model card, and still the last checkpoints. Ctrl-C and SIGTERM leave a checkpoint of the
    step that they meet.

    Args:
        text: a text source; see `rectilinear.text.sources.open_text`.
        recipe, corpus: which decoder, and how to train it; how the text becomes rows, and what is held out.
        out: the folder.
        monitoring: what to see and keep while it runs.
        resume: go on from the last checkpoint in the folder, which must be of the same request or of one for fewer
            steps; with none there begin, and with a run that is over do nothing.
        overwrite: begin anew in a folder that is not empty.
        progress: see `rectilinear.progress.reporting`.

    Raises:
        RequestError: a request that cannot be met, a text shorter than one step, a folder of something else.
        JobError: a loss that is not finite, memory or disk that do not suffice.
        Interrupted: a signal ended it, with a checkpoint to go on from.
    """
    _check_request(str(text), recipe, corpus, monitoring)
    recipe = recipe.model_copy(update={"dtype": precision_of(recipe)})
    # The others wait while one process packs the text, and while it scores the model.
    state = PartialState(cpu=trains_on_cpu(recipe), timeout=timedelta(days=1))
    plan = Plan(str(text), recipe, corpus, fill_preset(recipe, corpus, state.num_processes))
    folder = Path(out).expanduser().absolute()
    with (
        reporting(progress if state.is_main_process else False) as report,
        claim(
            folder if state.is_main_process else None,
            overwrite=overwrite,
            resume=resume,
            kept=find_run,
            reads=[str(text), corpus.tokenizer, corpus.held_out],
        ),
    ):
        with state.main_process_first():
            if state.is_main_process and resume and find_run(folder):
                resume_run(folder, plan)
                discard_partial_checkpoints(folder)
            elif state.is_main_process:
                start_run(folder, plan)
        if not is_over(folder, plan):
            _train(folder, plan, monitoring, report)
            state.wait_for_everyone()
        return Training.load(folder)


def _check_request(text: str, recipe: Recipe, corpus: Corpus, monitoring: Monitoring) -> None:
    """Refuse what can be refused before anything is read."""
    if corpus.held_out is not None and corpus.held_out == text != "stories":
        raise RequestError(
            f"expected another text to hold out than the one to train on, got {text} twice; try without `held_out`, "
            "which holds out its last rows"
        )
    if corpus.tokenizer is not None:
        check_revision(corpus.tokenizer, corpus.revision)
    if text == "stories" and recipe.max_steps is None and corpus.max_tokens is None:
        raise RequestError("expected `max_steps` or `max_tokens` for stories, which never end")
    known = ["none", "all", *get_available_reporting_integrations()]
    if monitoring.report_to not in known:
        raise RequestError(
            f"expected `report_to` to be one of {', '.join(known)}, which are installed, got {monitoring.report_to!r}"
        )


def _train(folder: Path, plan: Plan, monitoring: Monitoring, progress: Progress) -> None:
    """Make the steps that are left, and write the result."""
    packed = open_run(folder, plan)
    trainer = _make_trainer(folder, plan, packed, monitoring)
    saving = SaveAtSignal(trainer)
    for callback in (FollowOptions(), StepProgress("pretrain", progress), saving):
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(folder)
    started = time.perf_counter()
    with saving.listening():
        trainer.train_from(checkpoint)
    new = trainer.state.global_step - (steps_of(checkpoint) if checkpoint else 0)
    _finish(folder, plan, packed, trainer, new, time.perf_counter() - started)


def _make_trainer(folder: Path, plan: Plan, packed: PackedText, monitoring: Monitoring) -> GuardedTrainer:
    """Trainer, ready to start."""
    recipe, preset, steps = plan.recipe, plan.preset, plan.steps(len(packed.train))
    tenth = max(1, steps // 10)
    probe_every = tenth if monitoring.probe_every is None else monitoring.probe_every
    arguments = training_arguments(
        folder,
        steps,
        trains_on_cpu(recipe),
        per_device_train_batch_size=preset.batch_size,
        per_device_eval_batch_size=preset.batch_size,
        gradient_accumulation_steps=preset.rows // (preset.batch_size * PartialState().num_processes),
        learning_rate=preset.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, steps // 20),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        bf16=recipe.dtype == "bfloat16",
        logging_steps=max(1, steps // 100),
        eval_strategy="steps" if probe_every else "no",
        eval_steps=probe_every or None,
        save_steps=monitoring.save_every or tenth,
        save_total_limit=monitoring.keep or None,
        report_to=monitoring.report_to,
        include_num_input_tokens_seen="all",
        ddp_find_unused_parameters=False,
        seed=plan.corpus.seed,
    )
    set_seed(plan.corpus.seed)
    model = preset.build(packed.tokenizer)
    model.name_or_path = recipe.preset  # what the dynamics call it
    trainer = GuardedTrainer(
        model,
        arguments,
        regularizer=None if recipe.regularizer == "none" else Regularizer.of(model, recipe),
        train_dataset=packed.train,
        eval_dataset=packed.held_out,
        data_collator=_collate,
        processing_class=packed.tokenizer,
    )
    trainer.remedy += " and `overwrite`"
    if probe_every:
        trainer.add_callback(LinearityCallback(trainer, packed.held_out, probe_every, source=packed.held_out_source))
    return trainer


def _finish(out: Path, plan: Plan, packed: PackedText, trainer: GuardedTrainer, new: int, seconds: float) -> None:
    """Save the model and what there is to say of it, all or nothing."""
    if trainer.is_fsdp_enabled:  # else each process would save its shard
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not trainer.is_world_process_zero():
        trainer.save_model(str(out))  # nothing but its part, where the weights are spread
        return
    with stage(out) as folder, writing():
        trainer.save_model(str(folder))
        (folder / "training_args.bin").unlink(missing_ok=True)
        drop_absent_code(folder)
        # As saved: in training the weights may be spread over processes.
        model: Any = Origin(str(folder), Loading(device=str(trainer.args.device), dtype="float32")).load(head=True)
        model.config.use_cache = True  # Trainer turned it off
        model.config.save_pretrained(folder)
        model.name_or_path = str(out)
        training = _describe(model, plan, packed, trainer, new, seconds)
        training.save(folder)
        for dynamics in filter(None, (each.dynamics for each in _probes(trainer))):
            dynamics.save(folder)  # anew: what was written while it trained may have met a full disk
        write_card(folder, decoder_card(training, describe_code(folder, str(plan.corpus.tokenizer))))
    discard_rows(out)


def _describe(
    model: Any, plan: Plan, packed: PackedText, trainer: GuardedTrainer, new: int, seconds: float
) -> Training:
    """What came of all steps, of which some are new and took some seconds."""
    preset, steps = plan.preset, trainer.state.global_step
    tokens, loss = preset.rows * preset.seq_len, _held_out_loss(model, packed, preset.batch_size)

    def record(source: str, rows: Tensor, digest: str, tokens: int) -> DataRecord:
        return DataRecord(source=source, fingerprint=digest, tokens=tokens, rows=len(rows), seq_len=preset.seq_len)

    probes = _probes(trainer)
    settings = plan.request()
    known = {"vocab_size": len(packed.tokenizer), "vocabulary": len(packed.tokenizer)}  # not what was asked for
    earlier = {"embedding": settings["penalize_embedding"], "accumulation": settings["gradient_accumulation"]}
    return Training(
        model=record_model(model, Origin(model), find_blocks(model), preset.width),
        data=record(plan.text, packed.train, packed.contents.fingerprint, steps * tokens),
        held_out=HeldOutRecord(
            data=record(packed.held_out_source, packed.held_out, fingerprint([packed.held_out]), loss.tokens),
            loss=loss.loss,
            stderr=loss.stderr,
            perplexity=loss.perplexity,
        ),
        settings=settings | known | earlier,
        environment=record_environment(trainer.model),
        processes=PartialState().num_processes,
        steps=steps,
        seconds=seconds,
        tokens_per_second=new * tokens / seconds if new else None,
        log=tuple(trainer.state.log_history),
        warnings=(
            *loading_warnings(packed.tokenizer),
            *about_vocabulary(plan, len(packed.tokenizer)),
            *(probes[0].dynamics.all_warnings() if probes and probes[0].dynamics else ()),
        ),
    )


def _probes(trainer: GuardedTrainer) -> list[LinearityCallback]:
    return [each for each in trainer.callback_handler.callbacks if isinstance(each, LinearityCallback)]


def _held_out_loss(model: Any, packed: PackedText, batch_size: int) -> Perplexity:
    """Loss on held-out rows, with errors over documents where BOS tells where these begin."""
    rows, bos = packed.held_out, packed.tokenizer.bos_token_id
    if bos is None:
        return measure_perplexity(model, rows, batch_size)
    documents = (rows == bos).flatten().cumsum(0).view_as(rows).int()
    return measure_perplexity(model, rows, batch_size, documents=documents)


def _collate(rows: list[Tensor]) -> dict[str, Tensor]:
    """Rows as inputs and labels; they are full, so that a tokenizer without padding will do."""
    ids = torch.stack(rows).long()
    return {"input_ids": ids, "labels": ids}
