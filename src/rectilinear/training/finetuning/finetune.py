"""Fine-tuning a decoder on a task, and measuring what that does to its linearity."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from transformers import PreTrainedModel, TrainingArguments, set_seed

from rectilinear.core.penalties import PenaltyKind
from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.measure import profile_model
from rectilinear.measurement.profile import Profile
from rectilinear.measurement.settings import Measurement
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.load import DType, load_classifier
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress
from rectilinear.runs import stage
from rectilinear.training.classification import (
    Collator,
    bradley_terry,
    describe_questions,
    predict,
    score_texts,
    training_examples,
    warn_of_cuts,
)
from rectilinear.training.finetuning.folder import discard_runs, kept_runs, result_files
from rectilinear.training.finetuning.record import (
    Finetuning,
    SeedRun,
    change_of,
    linearities_of,
    summarize,
)
from rectilinear.training.finetuning.tuning import Job, Tuning, prepare_job
from rectilinear.training.loop import GuardedTrainer, StepProgress, has_bfloat16, trains_on_cpu
from rectilinear.training.metrics import commonest, score_answers
from rectilinear.training.regularizer import Regularizer


@reporting_exhausted_memory
def finetune(
    model: str | Path,
    task: str,
    data: str | Path | None = None,
    *,
    seeds: int = 3,
    epochs: float = 3.0,
    max_steps: int | None = None,
    batch_size: int = 16,
    learning_rate: float = 5e-5,
    max_examples: int | None = None,
    seq_len: int = 256,
    regularizer: Literal["none"] | PenaltyKind = "none",
    strength: float = 0.5,
    embedding: bool = True,
    text: str | Path | None = None,
    max_tokens: int = 100_000,
    folds: int = 4,
    blocks: str | None = None,
    out: str | Path | None = None,
    save_models: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    dtype: DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Finetuning:
    """Fine-tune a decoder on a task, and measure its linearity before and after, on the same rows.

    Each seed begins with the checkpoint and a new head, which reads the last token of a text, and
    trains all weights (AdamW without weight decay; the learning rate rises for a twentieth of the
    steps and falls to 0 on a line). Linearity is measured as `rectilinear.measure` does it, in float32.

    Args:
        model: Hub id, path, or ``"storyteller"``.
        task: ``boolq``, ``cb``, ``copa``, ``multirc``, ``rte``, ``wic``, ``wsc`` or ``reward``.
        data: see `rectilinear.text.tasks.read_task`.
        seeds: how many: 0, 1, ..., of the head, the order of examples, and dropout.
        epochs: passes over the examples, where there is no number of steps.
        max_steps: optimizer steps.
        batch_size: examples in a step; of preferences, pairs.
        learning_rate: the highest.
        max_examples: lines of each file to read at most.
        seq_len: tokens of a text at most, its beginning is left out; and of a row to measure on.
        regularizer, strength, embedding: penalty on hidden states; see `rectilinear.Regularizer`.
        text: text source to measure linearity on; default: the validation texts of the task.
        max_tokens: of that text.
        folds: for held-out scores.
        blocks: dotted path of the block stack; default: found by structure.
        out: folder for ``finetuning.json``; while the job runs, for the result of each seed that is done.
        save_models: leave the model of each seed in ``out/seed-N``.
        resume: take over the seeds that are done in ``out``, which must be of the same request.
        overwrite: begin anew in a folder that is not empty.
        device: ``auto`` or ``cpu``; GPUs are chosen with ``CUDA_VISIBLE_DEVICES``.
        dtype: of products in training: ``float32``, ``bfloat16`` (autocast, weights are float32), or
            ``auto``: bfloat16 where the device has instructions for it.
        revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met: no such model or task, data as in `read_task`, text
            shorter than one row, rows longer than the context, no token to pad with, a folder of something else.
        JobError: a loss, logits or activations that are not finite, memory or disk that do not suffice.
    """
    settings = Measurement(folds=folds, blocks=blocks)
    tuning = Tuning(
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_examples=max_examples,
        seq_len=seq_len,
        regularizer=regularizer,
        strength=strength,
        embedding=embedding,
        dtype=dtype,
        text=None if text is None else str(text),
        max_tokens=max_tokens,
        folds=folds,
        blocks=blocks,
    )
    folder = None if out is None else Path(out).expanduser().absolute()
    _check_request(seeds, folder, save_models, resume, overwrite, device)
    loading = Loading(revision=revision, trust_remote_code=trust_remote_code, device=device, dtype="float32")
    job = prepare_job(task, data, Origin(model, loading), tuning)
    progress = progress or (lambda stage, done, total: None)
    profile = profile_model(job.origin, job.inputs, settings, "auto", progress)
    result = _describe(task, job, profile)
    kept = kept_runs(folder, result, save_models) if folder and resume else {}
    if folder and not resume:
        discard_runs(folder)
    runs = []
    for seed in range(seeds):
        if seed not in kept:
            trained, run = _run_seed(job, result, settings, seed, progress)
            kept[seed] = run
            if folder:
                with stage(folder) as scratch:
                    if save_models:
                        trained.save_pretrained(scratch / f"seed-{seed}")
                        job.tokenizer.save_pretrained(scratch / f"seed-{seed}")
                    part = _with_runs(result, [run])
                    (scratch / f"seed-{seed}.json").write_text(part.to_json(), encoding="utf-8")
            del trained
        runs.append(kept[seed])
    result = _with_runs(result, runs)
    if folder:
        with stage(folder, stale=["seed-*.json"]) as scratch:
            result.save(scratch)
    return result


def _check_request(seeds: int, out: Path | None, save_models: bool, resume: bool, overwrite: bool, device: str) -> None:
    if seeds < 1:
        raise RequestError(f"expected at least 1 seed, got {seeds}")
    if PartialState(cpu=trains_on_cpu(device)).num_processes > 1:
        raise RequestError("expected one process to fine-tune with, got several; try it without torchrun")
    if out is None:
        if save_models or resume:
            raise RequestError(f"expected --out with --{'save-models' if save_models else 'resume'}, got none")
        return
    begun = resume and any(result_files(out))
    if not (begun or overwrite) and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"--out {out} is not an empty folder; try --resume, another folder, or --overwrite")


def _describe(name: str, job: Job, profile: Profile) -> Finetuning:
    """The result, before any seed."""
    warnings = warn_of_cuts(job.train, job.validation, job.tuning.seq_len)
    if not job.task.ranks and len({question.answer for question in job.train.questions}) == 1:
        warnings.append(
            "all questions to train on have the same answer, so that none is to be learnt; try other --data"
        )
    return Finetuning(
        model=profile.model,
        task=name,
        data=describe_questions(job.source, job.train, job.validation),
        text=profile.data,
        settings={**asdict(job.tuning), "bfloat16": _in_bfloat16(job), "profile": profile.settings},
        environment=profile.environment,
        before=linearities_of(profile),
        runs=(),
        summary=summarize([]),
        warnings=tuple(warnings),
    )


def _with_runs(result: Finetuning, runs: list[SeedRun]) -> Finetuning:
    return result.model_copy(update={"runs": tuple(runs), "summary": summarize(runs)})


def _run_seed(
    job: Job, result: Finetuning, settings: Measurement, seed: int, progress: Progress
) -> tuple[PreTrainedModel, SeedRun]:
    """Train, ask and measure."""
    started = time.perf_counter()
    try:
        trained, log = _train(job, seed, progress)
        texts = [ids for question in job.validation.ids for ids in question]
        scores = score_texts(trained, texts, job.padding, job.tuning.batch_size)
    except JobError as error:
        raise JobError(f"seed {seed}: {error}") from error
    questions = job.validation.questions
    metrics = score_answers(
        job.task.metrics,
        [question.answer for question in questions],
        predict(job.task, job.validation, scores),
        [question.group for question in questions],
        constant=None if job.task.ranks else commonest([question.answer for question in job.train.questions]),
        labels=2 if job.task.choices else len(job.task.labels),
    )
    profile = profile_model(Origin(trained), job.inputs, settings, "auto", progress)
    after = linearities_of(profile)
    run = SeedRun(
        seed=seed,
        steps=int(log[-1]["step"]),
        seconds=time.perf_counter() - started,
        metrics=metrics,
        after=after,
        change=change_of(result.before, after),
        log=log,
    )
    return trained, run


def _train(job: Job, seed: int, progress: Progress | None) -> tuple[PreTrainedModel, tuple[dict[str, float], ...]]:
    """The trained model, and what Trainer logged."""
    tuning, examples = job.tuning, training_examples(job.task, job.train)
    set_seed(seed)
    model = load_classifier(
        job.origin.name,
        job.task.labels,
        job.padding,
        revision=job.origin.loading.revision,
        trust_remote_code=job.origin.loading.trust_remote_code,
    )
    use_cache = model.config.use_cache  # Trainer turns it off
    penalized = tuning.regularizer != "none"
    regularizer = Regularizer(
        model,
        "cosine" if tuning.regularizer == "none" else tuning.regularizer,
        tuning.strength if penalized else 0,
        embedding=tuning.embedding,
        blocks=tuning.blocks,
        loss=bradley_terry if job.task.ranks else None,
    )
    steps = tuning.max_steps or max(1, int(tuning.epochs * math.ceil(len(examples) / tuning.batch_size)))
    on_cpu = job.on_cpu
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a folder, and leaves it empty
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            bf16=_in_bfloat16(job),
            logging_steps=max(1, steps // 50),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=not on_cpu,
            seed=seed,
            disable_tqdm=True,
            use_cpu=on_cpu,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a GPU: no torch.nn.DataParallel
        trainer = GuardedTrainer(
            model, arguments, regularizer=regularizer, train_dataset=examples, data_collator=Collator(job.padding)
        )
        if progress:
            trainer.add_callback(StepProgress(f"seed {seed}", progress))
        trainer.train()
    regularizer.remove()
    trained: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trained.config.use_cache = use_cache
    return trained, tuple(trainer.state.log_history)


def _in_bfloat16(job: Job) -> bool:
    return job.tuning.dtype == "bfloat16" or (job.tuning.dtype == "auto" and has_bfloat16(job.on_cpu))
