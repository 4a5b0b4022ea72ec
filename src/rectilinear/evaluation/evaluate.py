"""Evaluating models: perplexity, speed and what they score on tasks, with probes and stories that there are already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.evaluation.differences import are_comparable, begin_alike, compare, were_judged_alike
from rectilinear.evaluation.extras import require
from rectilinear.evaluation.gather import Gathered, gather_results
from rectilinear.evaluation.record import Evaluation
from rectilinear.evaluation.run import Run, Work, run_model
from rectilinear.evaluation.speed import REPEATS, plan_speed
from rectilinear.evaluation.task_set import SUPERGLUE_GROUP, check_chat_template, load_tasks
from rectilinear.linearization.plan import Plan
from rectilinear.models.batches import check_batch_size
from rectilinear.models.blocks import text_config
from rectilinear.models.load import DType, resolve
from rectilinear.models.origin import Origin, short_name
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress
from rectilinear.results import ModelRecord
from rectilinear.settings import BatchSize
from rectilinear.text.rows import TokenRows
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Unpack

#: A Hub id, a path, ``"storyteller"``, or a module that takes ids and returns an object with ``logits``.
Model = str | Path | nn.Module


class Options(TypedDict, total=False):
    """What `evaluate_all` takes by name."""

    tasks: Sequence[str]
    data: str | Path | None
    limit: int | None
    num_fewshot: int | None
    apply_chat_template: bool
    system_instruction: str | None
    include: Sequence[str | Path]
    tokenizer: PreTrainedTokenizerBase | None
    against: Model | None
    max_tokens: int
    seq_len: int
    batch_size: BatchSize
    device: str
    dtype: DType
    revision: str | None
    trust_remote_code: bool
    column: str
    config: str | None
    split: str
    seed: int
    speed: bool
    progress: Progress | None


def evaluate(model: Model, text: str | Path | None = None, **options: Unpack[Options]) -> Evaluation:
    """Measure how well a causal language model predicts some text, how fast it runs, and what it scores on tasks.

    Args:
        model: Hub id, path, ``"storyteller"``, or a module that takes ids and returns an object
            with ``logits``. A module is evaluated where it is, as it is, and left so.
        text: a text source; see `rectilinear.text.sources.open_text`. None for tasks alone.
        options: what to ask and how, by the names and with the defaults of `evaluate_all`: ``tasks``, ``data``,
            ``against``, ``batch_size``, ``device``, ...

    Raises:
        RequestError, JobError: as `evaluate_all`.
    """
    [evaluation] = evaluate_all([model], text, **options)
    return evaluation


def evaluate_all(
    models: Sequence[Model],
    text: str | Path | None = None,
    *,
    tasks: Sequence[str] = (),
    data: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    include: Sequence[str | Path] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    against: Model | None = None,
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
) -> Iterator[Evaluation]:
    """Evaluate some models on the same rows of text and the same documents of tasks.

    What can be refused without weights is refused at once; models are loaded and run as the evaluations are asked for.

    Models run one after the other, so that they need not fit in memory at once. With ``against`` one more is
    evaluated first, and every other one compared with it, row by row and document by document.

    Args:
        models: Hub ids, paths, ``"storyteller"``, or modules.
        text: a text source; see `rectilinear.text.sources.open_text`. None for tasks alone.
        tasks: of lm-evaluation-harness, by name, or ``superglue``: the columns of the paper's Table 2
            and their mean.
        data: a folder with the tasks' data; see `rectilinear.evaluation.task_data.find_data`. None for the Hub.
        limit: documents of each task, at most.
        num_fewshot: examples before each question; None for each task's own number.
        apply_chat_template: put prompts of tasks into the chat template of each model's tokenizer, examples as earlier
            turns.
        system_instruction: to put before prompts of tasks; None for each task's own.
        include: folders with results of `rectilinear.probe` and `rectilinear.judge`, which become part of the
            evaluation of the model that has the same weights.
        tokenizer: for all models; default: each model's own, which must make the same rows.
        against: the model to compare with; its default revision, everything else as for the others.
        max_tokens, seq_len: text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        device, dtype, revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        column, config, split, seed: of the text source; the seed also of the choice of examples.
        speed: where there is a text, also time the reading of the first row and greedy decoding from it, one row at a
            time; see `rectilinear.evaluation.speed`.
        progress: called with (stage, done, total).

    Returns:
        The evaluations, in the order of the models.

    Raises:
        RequestError: the request cannot be met: no model, or no such model, text or column; text shorter than one
            row; rows longer than a model's context; models that make different rows of the text;
            a model without logits; neither text nor tasks nor results to include; tasks or results that are not there.
        JobError: a loss that is not finite, memory that does not suffice.
    """
    check_batch_size(batch_size)
    models = [models] if isinstance(models, str) else models
    tasks = [tasks] if isinstance(tasks, str) else tasks
    include = [include] if isinstance(include, str) else include
    if not models:
        raise RequestError("expected at least one model, got none")
    if text is None and not tasks and not include:
        raise RequestError("expected --text, --tasks, --include or several of them, got none")
    if seq_len < 2:
        raise RequestError(f"expected rows of at least 2 tokens, of which 1 is predicted, got --seq-len {seq_len}")
    if include and against is not None:
        require("scipy", "eval")
    loading = Loading(revision=revision, trust_remote_code=trust_remote_code, device=device, dtype=dtype)
    origins = [Origin(model, loading) for model in models]
    other = None if against is None else Origin(against, loading.model_copy(update={"revision": None}))
    everyone = [*origins, other] if other else origins
    how = Rows(max_tokens=max_tokens, seq_len=seq_len, column=column, config=config, split=split, seed=seed)
    reading = None if text is None else (text, how)
    rows = None if reading is None else _same_rows(everyone, reading, tokenizer)
    lengths = _prompt_lengths(everyone, seq_len) if rows and speed else None
    gathered = gather_results(include)
    asked = None
    if tasks:
        asked = load_tasks(
            tasks,
            data,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            system_instruction=system_instruction,
        )
    for origin in everyone:
        if asked:
            check_chat_template(tokenizer or origin.tokenizer(), asked)
        origin.skeleton()
    work = Work(reading, rows, lengths, asked, gathered, tokenizer, seed, batch_size)
    given: dict[str, Any] = {"task_data": None if data is None else str(data)} if asked else {}
    given |= {"include": [str(folder) for folder in include]} if include else {}
    return _run_all(origins, other, work, given, progress)


def _run_all(
    origins: Sequence[Origin], other: Origin | None, work: Work, given: dict[str, Any], progress: Progress | None
) -> Iterator[Evaluation]:
    """Evaluate models one by one, after the one that they are compared with."""
    theirs = other and run_model(other, work, _named(progress, "against"))
    done = [theirs] if theirs else []
    several = len(origins) > 1
    ran: Iterable[Run] = (
        run_model(origin, work, _named(progress, f"{place} of {len(origins)}" if several else ""))
        for place, origin in enumerate(origins, 1)
    )
    if not (work.rows or work.tasks):  # nothing takes long, and nothing may be there
        ran = [*ran]
        _check_any(work, [*done, *ran])
    for origin, ours in zip(origins, ran, strict=True):
        pair = [(origin, ours)] + ([(other, theirs)] if other and theirs else [])
        warnings = [*_warnings(pair, work, several=several or theirs is not None), *_not_alike(ours, done)]
        done.append(ours)
        if origin is origins[-1]:
            warnings += _not_included(work.gathered, done)
        yield Evaluation(
            **dict(ours.measured),
            data=work.data,
            settings=_settings(work, [run for _, run in pair]) | given,
            against=theirs and theirs.measured,
            differences=theirs and compare(ours, theirs, work.tasks),
            warnings=tuple(dict.fromkeys(warnings)),
        )


def _check_any(work: Work, ran: Sequence[Run]) -> None:
    """Refuse results to include that are all of other models."""
    if not any(run.measured.probes or run.stories for run in ran):
        theirs = ", ".join(sorted({model.id for model in work.gathered.models.values()}))
        raise RequestError(
            f"expected results of these models in --include, got those of {theirs} with other weights; try the same "
            "--dtype and --revision for all commands"
        )


def _settings(work: Work, ran: Sequence[Run]) -> dict[str, Any]:
    settings: dict[str, Any] = {"seed": work.seed}
    if work.text:
        settings |= work.text[1].model_dump(exclude={"seq_len"})
        settings["speed"] = work.lengths is not None
    if work.lengths:
        settings |= dict(zip(("prompt_tokens", "new_tokens", "repeats"), (*work.lengths, REPEATS), strict=True))
    if work.tasks:
        names = ("limit", "num_fewshot", "apply_chat_template", "system_instruction")
        settings |= {name: getattr(work.tasks, name) for name in names}
        settings["lm_eval"] = version("lm_eval")
    for prefix, run in zip(("", "against_"), ran, strict=False):
        settings |= {prefix + name: size for name, size in run.sizes.items()}
    return settings


def _warnings(ran: Sequence[tuple[Origin, Run]], work: Work, several: bool) -> Iterator[str]:
    """What a reader of an evaluation must know: of the model's run, and of the other's where there is one."""
    if work.tasks and work.tasks.missing:
        missing, there = ", ".join(work.tasks.missing), ", ".join(work.tasks.columns)
        yield f"{SUPERGLUE_GROUP}: no data of {missing}; the mean is over {there}"
    for origin, run in ran:
        whose = f"{origin.name or 'the model'}, " if several else ""
        found = (run.scores.warnings if run.scores else ()) + _warnings_included(run)
        yield from (whose + warning for warning in found)
        if origin.name and work.text and work.rows:
            yield from _fitted_on(origin.name, work.rows, work.text)
        yield from _other_names(work.gathered, run.measured.model)


def _warnings_included(run: Run) -> tuple[str, ...]:
    probes = (f"probe of {task}: {said}" for task, probe in run.measured.probes.items() for said in probe.warnings)
    stories = run.stories.report.warnings if run.stories else ()
    return (*probes, *(f"stories: {said}" for said in stories))


def _not_included(gathered: Gathered, ran: Sequence[Run]) -> Iterator[str]:
    """Results that came to no model."""
    weights = {run.measured.model.sha256 for run in ran}
    for file, model in gathered.models.items():
        if model.sha256 not in weights:
            yield (
                f"{file} is not included: it is of {model.id} with other weights than any model here has; try the same "
                "--dtype and --revision for all commands"
            )


def _other_names(gathered: Gathered, ours: ModelRecord) -> Iterator[str]:
    """Results of a model's weights under another name: the configuration may be another too."""
    for file, model in gathered.models.items():
        if model.sha256 == ours.sha256 and short_name(model.id) != short_name(ours.id):
            yield f"{file} is of {model.id}, which has the weights of {ours.id}: are they the same model?"


def _not_alike(ours: Run, others: Sequence[Run]) -> Iterator[str]:
    """What a model and one before it both have that does not belong side by side."""
    for task, probe in ours.measured.probes.items():
        other = next((run for run in others if task in run.measured.probes), None)
        if other and not are_comparable(probe, other.measured.probes[task]):
            yield (
                f"probes of {task} cannot be compared: {_names(ours, other)} were taught or asked other questions, or "
                "in another way"
            )
    other = next((run for run in others if run.stories), None)
    if ours.stories and other and other.stories and not begin_alike(ours.stories, other.stories):
        yield f"stories cannot be compared: those of {_names(ours, other)} begin or were drawn differently"
    other = next((run for run in others if run.stories and run.stories.marks), None)
    marked = ours.stories and ours.stories.marks
    if marked and ours.stories and other and other.stories and not were_judged_alike(ours.stories, other.stories):
        yield f"marks cannot be compared: stories of {_names(ours, other)} had different judges"


def _names(one: Run, other: Run) -> str:
    return f"{one.measured.model.id} and {other.measured.model.id}"


def _same_rows(
    origins: Sequence[Origin], reading: tuple[str | Path, Rows], tokenizer: PreTrainedTokenizerBase | None
) -> TokenRows:
    """The rows of text that every model takes, and makes with its own tokenizer."""
    first = origins[0].rows(*reading, tokenizer)
    for origin in origins[1:]:
        if origin.rows(*reading, tokenizer).fingerprint != first.fingerprint:
            raise RequestError(
                f"expected tokenizers that make the same rows of the text, got different rows of {origins[0].name} "
                f"and {origin.name}: perplexities over different tokens cannot be compared; "
                "try models with the same tokenizer"
            )
    return first


def _fitted_on(name: str, rows: TokenRows, reading: tuple[str | Path, Rows]) -> list[str]:
    """A warning where the plan beside a checkpoint says that these rows, or others of this text, went into it."""
    try:
        plan = Plan.load(resolve(name))
    except RequestError:  # nothing that was linearized
        return []
    if plan.data.fingerprint == rows.fingerprint:
        which = "these very rows"
    elif _text_of(plan.data.source, plan.settings) == _text_of(reading[0], reading[1].model_dump()):
        which = "this text, perhaps these rows"
    else:
        return []
    return [f"{name} was fitted on {which} ({plan.data.source}), which flatters it; evaluate it on other text"]


def _text_of(source: str | Path, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which text a source gives."""
    seed = settings.get("seed") if str(source) == "stories" else None
    return Path(source).expanduser().resolve(), seed, *(settings.get(key) for key in ("column", "config", "split"))


def _prompt_lengths(origins: Sequence[Origin], seq_len: int) -> tuple[int, int]:
    """Lengths of prompt and continuation that fit into every model's context."""
    found = (getattr(text_config(origin.config()), "max_position_embeddings", None) for origin in origins)
    contexts = [context for context in found if isinstance(context, int) and context > 0]
    return plan_speed(seq_len, min(contexts, default=None))


def _named(progress: Progress | None, which: str) -> Progress | None:
    """Progress whose stages say which model they are of."""
    if not (progress and which):
        return progress
    return lambda stage, done, total: progress(f"{stage} ({which})", done, total)
