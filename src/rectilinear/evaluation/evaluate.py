"""Evaluating a model: its perplexity, speed and what it scores on tasks, alone or beside another's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rectilinear.data.pack import TokenRows
from rectilinear.errors import RequestError
from rectilinear.evaluation.bootstrap import PairedDifference, paired_difference
from rectilinear.evaluation.harness import (
    SUPERGLUE,
    SUPERGLUE_GROUP,
    TaskScores,
    TaskSet,
    load_tasks,
    mean_of_columns,
    run_tasks,
)
from rectilinear.evaluation.record import (
    DifferenceRecord,
    Differences,
    Evaluation,
    Measurements,
    SpeedRecord,
    compare,
    finite,
)
from rectilinear.evaluation.speed import REPEATS, measure_speed, plan_speed
from rectilinear.linearization.plan import Plan
from rectilinear.measurement.collect import Progress
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.measurement.records import DataRecord, record_environment, record_model
from rectilinear.models.batches import BatchSize, check_batch_size, reporting_exhausted_memory, with_batch_size
from rectilinear.models.blocks import BlockStack, find_blocks, text_config
from rectilinear.models.load import DType, resolve
from rectilinear.models.origin import Origin, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that a request of a task is thought to have where the batch size is not given.
_REQUEST_TOKENS = 128


@reporting_exhausted_memory
def evaluate(
    model: str | Path | nn.Module,
    text: str | Path | None = None,
    *,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    against: str | Path | nn.Module | None = None,
    max_tokens: int = 100_000,
    seq_len: int = 256,
    batch_size: BatchSize = "auto",
    device: str = "auto",
    dtype: DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    column: str = "text",
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
    speed: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure how well a causal language model predicts some text, how fast it runs, and what it scores on tasks.

    With ``against`` another model is measured in the same way on the same rows and documents, one after
    the other, so that both need not fit in memory at once.

    Args:
        model: Hub id, path, ``"storyteller"``, or a module that takes ids and returns an object
            with ``logits``. A module is evaluated where it is, as it is, and left so.
        text: a text source; see `rectilinear.data.text.open_text`. None for tasks alone.
        tasks: of lm-evaluation-harness, by name, or ``superglue``: the columns of the paper's Table 2
            and their mean.
        data: a folder with the tasks' data; see `rectilinear.evaluation.task_data.find_data`. None for the Hub.
        limit: documents of each task, at most.
        num_fewshot: examples before each question; None for each task's own number.
        tokenizer: for both models; default: each model's own, which must make the same rows.
        against: the model to compare with; its default revision, everything else as for ``model``.
        max_tokens, seq_len: text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        device, dtype, revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        column, config, split, seed: of the text source; the seed also of the choice of examples.
        speed: where there is a text, also time the reading of the first row and greedy decoding from it, one row at a
            time; see `rectilinear.evaluation.speed`.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met: no such model, text or column; text shorter than one
            row; rows longer than a model's context; models that make different rows of the text;
            a model without logits; neither text nor tasks; tasks that are not there.
        JobError: a loss that is not finite, memory that does not suffice.
    """
    check_batch_size(batch_size)
    if text is None and not tasks:
        raise RequestError("expected --text, --tasks or both, got neither")
    if seq_len < 2:
        raise RequestError(f"expected rows of at least 2 tokens, of which 1 is predicted, got --seq-len {seq_len}")
    origins = [Origin(model, revision, trust_remote_code, device, dtype)]
    if against is not None:
        origins.append(Origin(against, None, trust_remote_code, device, dtype))
    # Before the weights, which may take long: everything that can be refused without them.
    reading = None if text is None else Text(text, max_tokens, seq_len, column, config, split, seed)
    rows = None if reading is None else _same_rows(origins, reading, tokenizer)
    lengths = _prompt_lengths(origins, seq_len) if rows and speed else None
    asked = load_tasks(tasks, data, limit=limit, num_fewshot=num_fewshot) if tasks else None
    tokenizers = [tokenizer or origin.tokenizer() for origin in origins] if asked else [None for _ in origins]

    work = _Work(rows, lengths, asked, seed, batch_size)
    reports = (progress, _of_the_other(progress))
    ran = [
        _measure(origin, work, own, report) for origin, own, report in zip(origins, tokenizers, reports, strict=False)
    ]
    warnings = []
    if asked and asked.missing:
        missing, there = ", ".join(asked.missing), ", ".join(asked.columns)
        warnings.append(f"{SUPERGLUE_GROUP}: no data of {missing}; the mean is over {there}")
    for origin, run in zip(origins, ran, strict=True):
        whose = f"{origin.name or 'the model'}, " if against is not None else ""
        warnings += [whose + warning for warning in (run.scores.warnings if run.scores else ())]
    if reading and rows:
        warnings += [warning for origin in origins if origin.name for warning in _fitted_on(origin.name, rows, reading)]
    return Evaluation(
        **dict(ran[0].measured),
        data=rows
        and DataRecord(
            source=str(text),
            fingerprint=rows.fingerprint,
            tokens=rows.ids.numel(),
            rows=len(rows.ids),
            seq_len=seq_len,
        ),
        settings=_settings(reading, work, ran, data),
        against=ran[1].measured if len(ran) > 1 else None,
        differences=_differences(*ran) if len(ran) > 1 else None,
        warnings=tuple(dict.fromkeys(warnings)),
    )


@dataclass(frozen=True, eq=False)
class _Work:
    """What is asked of each model."""

    rows: TokenRows | None
    lengths: tuple[int, int] | None
    tasks: TaskSet | None
    seed: int
    batch_size: BatchSize


@dataclass(frozen=True, eq=False)
class _Run:
    """What came of a model."""

    measured: Measurements
    perplexity: Perplexity | None
    scores: TaskScores | None
    sizes: Mapping[str, int]


def _settings(reading: Text | None, work: _Work, ran: Sequence[_Run], data: str | Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": work.seed}
    if reading:
        settings |= {key: value for key, value in asdict(reading).items() if key not in ("source", "seq_len")}
        settings["speed"] = work.lengths is not None
    if work.lengths:
        settings |= dict(zip(("prompt_tokens", "new_tokens", "repeats"), (*work.lengths, REPEATS), strict=True))
    if work.tasks:
        settings |= {"limit": work.tasks.limit, "num_fewshot": work.tasks.num_fewshot, "lm_eval": version("lm_eval")}
        settings["task_data"] = None if data is None else str(data)
    for prefix, run in zip(("", "against_"), ran, strict=False):
        settings |= {prefix + name: size for name, size in run.sizes.items()}
    return settings


def _differences(ours: _Run, theirs: _Run) -> Differences:
    """The model beside the other one, paired by rows of text and documents of tasks."""
    loss = ours.perplexity.minus(theirs.perplexity) if ours.perplexity and theirs.perplexity else (None, None)
    found = compare(ours.measured, theirs.measured, *loss)
    if not (ours.scores and theirs.scores):
        return found
    tasks = {
        name: {
            metric: DifferenceRecord(**asdict(_paired(ours.scores, theirs.scores, name, metric)))
            for metric in record.metrics
        }
        for name, record in ours.scores.tasks.items()
    }
    groups = {
        name: {"mean": _mean_difference([[tasks[task][metric] for metric in SUPERGLUE[task]] for task in record.tasks])}
        for name, record in ours.scores.groups.items()
        if name == SUPERGLUE_GROUP
    }
    return found.model_copy(update={"tasks": tasks, "groups": groups})


def _paired(ours: TaskScores, theirs: TaskScores, task: str, metric: str) -> PairedDifference:
    aggregate = ours.aggregations[task][metric]
    return paired_difference(aggregate, ours.items[task][metric], theirs.items[task][metric])


def _mean_difference(rows: list[list[DifferenceRecord]]) -> DifferenceRecord:
    """Of the mean of the group; the test is a normal approximation."""
    value, stderr = mean_of_columns(rows)
    p_value = math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else None
    return DifferenceRecord(value=value, stderr=stderr, p_value=p_value)


def _same_rows(origins: list[Origin], reading: Text, tokenizer: PreTrainedTokenizerBase | None) -> TokenRows:
    """The rows of text that every model takes, and makes with its own tokenizer."""
    first, *others = (origin.rows(reading, tokenizer) for origin in origins)
    for other in others:
        if other.fingerprint != first.fingerprint:
            raise RequestError(
                f"expected tokenizers that make the same rows of the text, got different rows of {origins[0].name} "
                f"and {origins[1].name}: perplexities over different tokens cannot be compared; "
                "try --against a model with the same tokenizer"
            )
    return first


def _fitted_on(name: str, rows: TokenRows, reading: Text) -> list[str]:
    """A warning where the plan beside a checkpoint says that these rows, or others of this text, went into it."""
    try:
        plan = Plan.load(resolve(name))
    except RequestError:  # nothing that was linearized
        return []
    if plan.data.fingerprint == rows.fingerprint:
        which = "these very rows"
    elif _text_of(plan.data.source, plan.settings) == _text_of(reading.source, vars(reading)):
        which = "this text, perhaps these rows"
    else:
        return []
    return [f"{name} was fitted on {which} ({plan.data.source}), which flatters it; evaluate it on other text"]


def _text_of(source: str | Path, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which text a source gives."""
    seed = settings.get("seed") if str(source) == "stories" else None
    return Path(source).expanduser().resolve(), seed, *(settings.get(key) for key in ("column", "config", "split"))


def _prompt_lengths(origins: list[Origin], seq_len: int) -> tuple[int, int]:
    """Lengths of prompt and continuation that fit into every model's context."""
    found = (getattr(text_config(origin.config()), "max_position_embeddings", None) for origin in origins)
    contexts = [context for context in found if isinstance(context, int) and context > 0]
    return plan_speed(seq_len, min(contexts, default=None))


def _measure(origin: Origin, work: _Work, tokenizer: PreTrainedTokenizerBase | None, progress: Progress | None) -> _Run:
    """One model's record, its losses and scores, and how many rows and requests it took at once."""
    module = origin.load(head=True)
    sizes: dict[str, int] = {}
    perplexity = ran = scores = None
    if work.rows:
        ids = work.rows.ids

        def predict(size: int) -> tuple[Perplexity, int]:
            return measure_perplexity(module, ids, size, progress), size

        perplexity, size = with_batch_size(predict, work.batch_size, module, ids.shape[1])
        sizes["batch_size"] = min(size, len(ids))
        if work.lengths:
            prompt_tokens, new_tokens = work.lengths
            ran = measure_speed(module, ids[:1, :prompt_tokens], new_tokens, progress=progress)
    if work.tasks and tokenizer:
        asked = work.tasks

        def answer(size: int) -> tuple[TaskScores, int]:
            return run_tasks(module, tokenizer, asked, size, seed=work.seed, progress=progress), size

        scores, sizes["tasks_batch_size"] = with_batch_size(answer, work.batch_size, module, _REQUEST_TOKENS)
    width = getattr(text_config(getattr(module, "config", None)), "hidden_size", None)
    described = record_model(module, origin, _find_blocks(module), width)
    told: dict[str, Any] = {}
    if perplexity:
        told |= {"perplexity": finite(perplexity.perplexity), "loss": perplexity.loss}
        told |= {"stderr": perplexity.stderr, "tokens": perplexity.tokens}
    if ran:
        told |= {"tokens_per_second": SpeedRecord(prefill=ran.prefill, decode=ran.decode)}
        told["cache_bytes"] = ran.cache_bytes
    if scores:
        told |= {"tasks": scores.tasks, "groups": scores.groups}
    measured = Measurements(
        model=described, environment=record_environment(module), parameters=described.parameters, **told
    )
    return _Run(measured, perplexity, scores, sizes)


def _find_blocks(module: nn.Module) -> BlockStack | None:
    """The block stack, which no number here depends on; None where it is not to be found."""
    try:
        return find_blocks(module)
    except RequestError:
        return None


def _of_the_other(progress: Progress | None) -> Progress | None:
    """Progress whose stages say that it is the other model's."""
    return progress and (lambda stage, done, total: progress(f"{stage} (against)", done, total))
