"""Fine-tuning a decoder on a task, and measuring what that does to its linearity."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.inputs import Inputs, read_inputs, text_inputs
from rectilinear.measurement.measure import profile_model
from rectilinear.measurement.profile import Profile
from rectilinear.measurement.settings import Measurement
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.describe import check_context
from rectilinear.models.find_blocks import find_blocks, text_config
from rectilinear.models.load import check_classifier, load_classifier
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Access, Loading
from rectilinear.progress import Progress, reporting
from rectilinear.publish import stage
from rectilinear.ranks import processes_started, sharing
from rectilinear.runs import claim
from rectilinear.settings import takes_settings
from rectilinear.text.rows import read_rows
from rectilinear.text.settings import Rows
from rectilinear.text.tasks import Task, find_task, read_task
from rectilinear.training.classification import (
    Collator,
    Encoded,
    bradley_terry,
    check_ids,
    describe_questions,
    encode,
    predict,
    score_predictions,
    score_texts,
    training_examples,
    warn_of_cuts,
)
from rectilinear.training.regularizer import Regularizer
from rectilinear.training.results import Finetuning, SeedRun, change_of, linearities_of, summarize
from rectilinear.training.seed_files import (
    EVERYTHING,
    RESULTS,
    done_seeds,
    find_seeds,
    names_in,
    save_seed,
    settings_of,
)
from rectilinear.training.settings import Profiling, Tuning
from rectilinear.training.trainer import GuardedTrainer, StepProgress, precision_of, training_arguments, trains_on_cpu


@takes_settings
@reporting_exhausted_memory()
def finetune(
    model: str | Path,
    task: str,
    tuning: Tuning = Tuning(),
    profiling: Profiling = Profiling(),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Progress = True,
) -> Finetuning:
    """Fine-tune a decoder on a task, and measure its linearity before and after, on the same rows.

    Each seed begins with the checkpoint and a new head, which reads the last token of a text, and trains all weights
    (AdamW without weight decay). Linearity is measured as `rectilinear.measure` does it, in float32.

    Args:
        model: Hub id, path, or ``"storyteller"``.
        task: ``boolq``, ``cb``, ``copa``, ``multirc``, ``rte``, ``wic``, ``wsc`` or ``reward``.
        tuning: the task's data, and how to train. Seeds are those from the rows' on.
        profiling: what to measure linearity on, and how. Longer texts of the task than a row lose their beginning.
        out: folder for ``finetuning.json``; while the job runs, for the result of each seed that is done.
        resume: take over the seeds that are done in ``out``, which must be of the same request.
        overwrite: begin anew in a folder that is not empty.
        progress: see `rectilinear.progress.reporting`.

    Raises:
        RequestError: no such model or task, data as in `read_task`, text shorter than one row, rows longer than the
            context, no token to pad with, a folder of something else.
        JobError: a loss, logits or activations that are not finite, memory or disk that do not suffice.
    """
    _check_request(tuning, out, resume)
    with (
        sharing(cpu=trains_on_cpu(tuning)) as ranks,
        claim(out, overwrite=overwrite, resume=resume, kept=find_seeds, reads=[model, tuning.data]) as folder,
        reporting(progress) as report,
    ):
        job = _read_job(model, task, tuning, profiling)
        profile = profile_model(job.origin, job.inputs, profiling.part(Measurement), "auto", report)
        result = _describe(job, profile)
        done = ranks.from_first(lambda: done_seeds(folder, result, tuning.save_models) if folder and resume else {})
        stale = names_in(folder, EVERYTHING) if folder and not resume and find_seeds(folder) else []
        seeds = range(profiling.seed, profiling.seed + tuning.seeds)
        for seed in seeds:
            if seed not in done:
                trained, done[seed] = _run_seed(job, result, seed, report)
                if folder:
                    kept = trained if tuning.save_models else None
                    save_seed(folder, result.with_runs([done[seed]]), stale, kept, job.tokenizer)
                    stale = []
                del trained
        result = result.with_runs([done[seed] for seed in seeds])
        if folder:
            with stage(folder, names_in(folder, RESULTS)) as scratch:
                result.save(scratch)
        return result


def _check_request(tuning: Tuning, out: str | Path | None, resume: bool) -> None:
    processes = processes_started()
    if tuning.batch_size % processes:
        raise RequestError(f"expected a `batch_size` that {processes} processes can share, got {tuning.batch_size}")
    if out is None and (tuning.save_models or resume):
        raise RequestError(f"expected `out` with `{'save_models' if tuning.save_models else 'resume'}`, got none")


@dataclass(frozen=True, eq=False)
class _Job:
    """All that the training with a seed needs: the task, its questions as tokens, and rows to measure linearity on."""

    name: str
    task: Task
    source: str
    train: Encoded
    validation: Encoded
    inputs: Inputs
    origin: Origin
    tokenizer: PreTrainedTokenizerBase
    padding: int
    tuning: Tuning
    profiling: Profiling


def _read_job(model: str | Path, name: str, tuning: Tuning, profiling: Profiling) -> _Job:
    """Read, and refuse, all that can be read before there are weights."""
    origin = Origin(model, Loading(**tuning.part(Access).model_dump(), device=tuning.device, dtype="float32"))
    profiling.check_one_target("finetune")
    task, questions = find_task(name), read_task(name, tuning.data, tuning.max_examples)
    config, tokenizer = origin.config, origin.tokenizer
    find_blocks(origin.skeleton(), profiling.blocks)
    check_classifier(config, tuning)
    check_context(config, profiling.seq_len)
    padding = _find_padding(tokenizer, config)
    train, validation = (encode(part, tokenizer, profiling.seq_len) for part in (questions.train, questions.validation))
    check_ids(config, (train, validation))
    if profiling.text is None:
        texts = (text for question in questions.validation for text in question.texts)
        rows = read_rows(texts, tokenizer, profiling.part(Rows))
        reading = {"max_tokens": profiling.max_tokens, "bos": profiling.bos}
        inputs = text_inputs(rows, f"{questions.source}, validation texts of {name}", reading)
    else:
        inputs = read_inputs(origin, profiling.text, profiling.part(Rows), tokenizer)
    return _Job(name, task, questions.source, train, validation, inputs, origin, tokenizer, padding, tuning, profiling)


def _find_padding(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The id to pad with: the tokenizer's, or that of the end of a text, which then is its padding."""
    vocab_size = text_config(config).vocab_size
    for padding in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if padding is not None and padding < vocab_size:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
            tokenizer.padding_side = "right"  # as in training
            return int(padding)
    raise RequestError("expected a tokenizer with a token for padding or for the end of a text, got neither")


def _describe(job: _Job, profile: Profile) -> Finetuning:
    """The result, before any seed."""
    warnings = [*profile.warnings, *warn_of_cuts(job.train, job.validation, job.profiling.seq_len)]
    if not job.task.ranks and len({question.answer for question in job.train.questions}) == 1:
        warnings.append("all questions to train on have the same answer, so none is to be learnt; try other `data`")
    settings = {
        "bfloat16": precision_of(job.tuning) == "bfloat16",
        "embedding": job.tuning.penalize_embedding,
        "profile": profile.settings,
    }
    return Finetuning(
        model=profile.model,
        task=job.name,
        data=describe_questions(job.source, job.train, job.validation),
        text=profile.data,
        settings=settings_of(job.tuning, job.profiling) | settings,
        environment=profile.environment,
        before=linearities_of(profile),
        runs=(),
        summary=summarize([]),
        warnings=tuple(warnings),
    )


def _run_seed(job: _Job, result: Finetuning, seed: int, progress: Progress) -> tuple[PreTrainedModel, SeedRun]:
    """Train, ask and measure."""
    started = time.perf_counter()
    try:
        trained, log = _train(job, seed, progress)
        texts = [ids for question in job.validation.ids for ids in question]
        scores = score_texts(trained, texts, job.padding, job.tuning.batch_size)
    except JobError as error:
        raise JobError(f"seed {seed}: {error}") from error
    predictions = predict(job.task, job.validation, scores)
    profile = profile_model(Origin(trained), job.inputs, job.profiling.part(Measurement), "auto", progress)
    after = linearities_of(profile)
    return trained, SeedRun(
        seed=seed,
        steps=int(log[-1]["step"]),
        seconds=time.perf_counter() - started,
        metrics=score_predictions(job.task, job.train, job.validation, predictions),
        after=after,
        change=change_of(result.before, after),
        log=log,
    )


def _train(job: _Job, seed: int, progress: Progress) -> tuple[PreTrainedModel, tuple[dict[str, float], ...]]:
    """The trained model, and what Trainer logged."""
    tuning, examples = job.tuning, training_examples(job.task, job.train)
    set_seed(seed)
    model = load_classifier(job.origin.name, job.task.labels, job.padding, tuning)
    use_cache = model.config.use_cache  # Trainer turns it off
    regularizer = Regularizer.of(model, tuning, job.profiling.blocks, bradley_terry if job.task.ranks else None)
    steps = tuning.max_steps or max(1, int(tuning.epochs * math.ceil(len(examples) / tuning.batch_size)))
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a folder, and leaves it empty
        arguments = training_arguments(
            scratch,
            steps,
            trains_on_cpu(tuning),
            per_device_train_batch_size=tuning.batch_size // processes_started(),
            learning_rate=tuning.learning_rate,
            ddp_find_unused_parameters=False,
            lr_scheduler_type="linear",
            warmup_steps=steps // 20,
            weight_decay=0.0,
            bf16=precision_of(tuning) == "bfloat16",
            logging_steps=max(1, steps // 50),
            save_strategy="no",
            remove_unused_columns=False,
            seed=seed,
        )
        trainer = GuardedTrainer(
            model, arguments, regularizer=regularizer, train_dataset=examples, data_collator=Collator(job.padding)
        )
        trainer.add_callback(StepProgress(f"seed {seed}", progress))
        trainer.train()
    regularizer.remove()
    trained: PreTrainedModel = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trained.config.use_cache = use_cache
    return trained, tuple(trainer.state.log_history)
