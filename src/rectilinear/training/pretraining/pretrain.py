"""Pretraining a decoder from random weights, with transformers' Trainer."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments, default_data_collator, set_seed
from transformers.integrations import get_available_reporting_integrations

from rectilinear.errors import RequestError
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.blocks import find_blocks
from rectilinear.models.origin import Origin
from rectilinear.models.records import record_environment, record_model
from rectilinear.models.series import steps_of
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress
from rectilinear.results import DataRecord
from rectilinear.runs import stage
from rectilinear.text.fingerprint import fingerprint
from rectilinear.training.callback import LinearityCallback
from rectilinear.training.checkpoints import discard_checkpoints, last_checkpoint
from rectilinear.training.loop import GuardedTrainer, StepProgress, has_bfloat16, trains_on_cpu
from rectilinear.training.pretraining.card import model_card
from rectilinear.training.pretraining.presets import Preset
from rectilinear.training.pretraining.recipe import Recipe
from rectilinear.training.pretraining.record import HeldOutRecord, Training
from rectilinear.training.pretraining.run import Run, discard_rows, found_run, open_run, start_run
from rectilinear.training.regularizer import Regularizer


@dataclass(frozen=True)
class Upkeep:
    """What is seen and kept of a training while it runs; the outcome does not depend on it.

    Attributes:
        probe_every: steps between profiles of the held-out rows, and losses on them; 0 for never; None for a
            tenth of the steps.
        save_every: steps between checkpoints; None for a tenth of the steps.
        keep: checkpoints to keep; None for all.
        report_to: loggers of transformers: ``none``, ``tensorboard``, ``wandb``, ``all``.
        progress: called with (stage, done, total).
    """

    probe_every: int | None = None
    save_every: int | None = None
    keep: int | None = 2
    report_to: str = "none"
    progress: Progress | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            RequestError: a number out of range, a logger that is not installed.
        """
        for name, least in (("probe_every", 0), ("save_every", 1), ("keep", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RequestError(f"expected {name} of at least {least}, got {value}")
        known = ["none", "all", *get_available_reporting_integrations()]
        if self.report_to not in known:
            raise RequestError(f"expected --report-to {', '.join(known)}, which are installed, got {self.report_to!r}")


@reporting_exhausted_memory
def pretrain(
    recipe: Recipe,
    out: str | Path,
    upkeep: Upkeep | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
) -> Training:
    """Pretrain a decoder, and leave a checkpoint in a folder.

    Runs in one process or, under torchrun or ``accelerate launch``, in several (DDP, FSDP). While
    it runs, the folder has the rows, the recipe and Trainer's checkpoints. At the end it has the
    model, its tokenizer, ``training.json``, ``dynamics.json`` and a model card, and still the last
    checkpoints.

    Args:
        recipe: what to train, on what and how.
        out: the folder.
        upkeep: what to see and keep of it.
        resume: go on from the last checkpoint in the folder, which must be of the same recipe; with
            none there begin, and with a run that is over do nothing.
        overwrite: begin anew in a folder that is not empty.
        device: ``auto`` or ``cpu``; GPUs are chosen with ``CUDA_VISIBLE_DEVICES``.

    Raises:
        RequestError: a recipe that cannot be, a text shorter than one step, a folder of something else.
        JobError: a loss that is not finite, memory or disk that do not suffice.
    """
    recipe.check()
    on_cpu = trains_on_cpu(device)
    out = Path(out).expanduser().absolute()
    upkeep = upkeep or Upkeep()
    upkeep.check()
    if resume and overwrite:
        raise RequestError("expected resume or overwrite, got both")
    if recipe.dtype == "auto":
        recipe = replace(recipe, dtype="bfloat16" if has_bfloat16(on_cpu) else "float32")
    # The others wait while one process packs the text, and while it scores the model.
    state = PartialState(cpu=on_cpu, timeout=timedelta(days=1))
    preset = recipe.for_processes(state.num_processes)
    with state.main_process_first():
        if state.is_main_process:
            if _found(out, recipe, preset, resume, overwrite):
                discard_checkpoints(out, partial_only=True)
            else:
                start_run(out, recipe, preset)
    if (out / Training.file_name).exists():
        return Training.load(out)
    run = open_run(out, recipe, preset)
    trainer = _trainer(run, upkeep, on_cpu)
    checkpoint = last_checkpoint(out)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    _finish(run, trainer, steps_of(checkpoint) if checkpoint else 0, seconds)
    state.wait_for_everyone()
    return Training.load(out)


def _found(out: Path, recipe: Recipe, preset: Preset, resume: bool, overwrite: bool) -> bool:
    """Whether the folder has a run to go on with.

    Raises:
        RequestError: it has something else, which may not be overwritten.
    """
    if resume and found_run(out, recipe, preset):
        return True
    if out.exists() and not out.is_dir():
        raise RequestError(f"expected a folder for --out, got the file {out}")
    if not overwrite and out.exists() and any(out.iterdir()):
        instead = "holds no run to resume; try" if resume else "is not empty; try --resume,"
        raise RequestError(f"--out {out} {instead} another folder, or --overwrite")
    return False


def _trainer(run: Run, upkeep: Upkeep, on_cpu: bool) -> GuardedTrainer:
    """Trainer, ready to start."""
    recipe, preset = run.recipe, run.preset
    steps = recipe.max_steps or max(1, int(recipe.epochs * (len(run.train) // preset.rows)))
    tenth = max(1, steps // 10)
    probe_every = tenth if upkeep.probe_every is None else upkeep.probe_every
    processes = PartialState().num_processes
    arguments = TrainingArguments(
        output_dir=str(run.folder),
        max_steps=steps,
        per_device_train_batch_size=preset.batch_size,
        per_device_eval_batch_size=preset.batch_size,
        gradient_accumulation_steps=preset.rows // (preset.batch_size * processes),
        learning_rate=preset.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(200, steps // 20),
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        bf16=recipe.dtype == "bfloat16",
        logging_steps=max(1, steps // 100),
        eval_strategy="steps" if probe_every else "no",
        eval_steps=probe_every or None,
        save_steps=upkeep.save_every or tenth,
        save_total_limit=upkeep.keep,
        report_to=upkeep.report_to,
        include_num_input_tokens_seen="all",
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        seed=recipe.seed,
        disable_tqdm=True,
        use_cpu=on_cpu,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a GPU: no torch.nn.DataParallel
    set_seed(recipe.seed)
    model = preset.build(run.tokenizer)
    model.name_or_path = recipe.preset  # what the dynamics call it
    penalty = None
    if recipe.regularizer != "none":
        penalty = Regularizer(model, recipe.regularizer, recipe.strength, embedding=recipe.embedding)
    trainer = GuardedTrainer(
        model,
        arguments,
        regularizer=penalty,
        train_dataset=_Rows(run.train),
        eval_dataset=_Rows(run.held_out),
        data_collator=default_data_collator,  # rows are full: a tokenizer without padding will do
        processing_class=run.tokenizer,
    )
    trainer.remedy += " and --overwrite"
    if probe_every:
        trainer.add_callback(LinearityCallback(trainer, run.held_out, probe_every, source=run.held_out_source))
    if upkeep.progress:
        trainer.add_callback(StepProgress("pretrain", upkeep.progress))
    return trainer


def _finish(run: Run, trainer: GuardedTrainer, first_step: int, seconds: float) -> None:
    """Save the model and what is to be said of it, all or nothing."""
    if trainer.is_fsdp_enabled:  # else each process would save its shard
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if not trainer.is_world_process_zero():
        trainer.save_model(str(run.folder))  # nothing but its part, where the weights are spread
        return
    recipe, preset = run.recipe, run.preset
    with stage(run.folder) as folder:
        trainer.save_model(str(folder))
        (folder / "training_args.bin").unlink(missing_ok=True)
        # As saved: in training the weights may be spread over processes.
        model: Any = Origin(str(folder), Loading(device=str(trainer.args.device), dtype="float32")).load(head=True)
        model.config.use_cache = True  # Trainer turned it off
        model.config.save_pretrained(folder)
        loss = measure_perplexity(model, run.held_out, preset.batch_size)
        steps = trainer.state.global_step
        per_step = preset.rows * preset.seq_len
        training = Training(
            model=record_model(model, Origin(str(run.folder)), find_blocks(model), preset.width),
            data=DataRecord(
                source=recipe.text,
                fingerprint=run.contents.fingerprint,
                tokens=steps * per_step,
                rows=len(run.train),
                seq_len=preset.seq_len,
            ),
            held_out=HeldOutRecord(
                data=DataRecord(
                    source=run.held_out_source,
                    fingerprint=fingerprint([run.held_out]),
                    tokens=loss.tokens,
                    rows=len(run.held_out),
                    seq_len=preset.seq_len,
                ),
                loss=loss.loss,
                stderr=loss.stderr,
                perplexity=loss.perplexity,
            ),
            settings={**asdict(recipe), **asdict(preset)},
            environment=record_environment(trainer.model),
            processes=PartialState().num_processes,
            steps=steps,
            seconds=seconds,
            tokens_per_second=(steps - first_step) * per_step / seconds if steps > first_step else None,
            log=tuple(trainer.state.log_history),
        )
        training.save(folder)
        (folder / "README.md").write_text(model_card(training), encoding="utf-8")
    discard_rows(run.folder)


class _Rows(Dataset[dict[str, Tensor]]):
    """Rows as inputs and labels."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.rows[index].long()
        return {"input_ids": row, "labels": row}
