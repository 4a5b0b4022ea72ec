"""Evaluating models: perplexity, speed and what they score on tasks, with probes and stories that there are already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.evaluation.gather import gather_results
from rectilinear.evaluation.record import Evaluation
from rectilinear.evaluation.run import Job
from rectilinear.evaluation.settings import Evaluating
from rectilinear.evaluation.speed import plan_speed
from rectilinear.evaluation.task_set import check_chat_template, load_tasks
from rectilinear.models.find_blocks import context_of
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress
from rectilinear.settings import takes_settings
from rectilinear.text.rows import TokenRows
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A Hub id, a path, ``"storyteller"``, or a module that takes ids and returns an object with ``logits``.
Model = str | Path | nn.Module


@takes_settings
def evaluate(
    model: Model,
    text: str | Path | None = None,
    evaluating: Evaluating = Evaluating(),
    *,
    against: Model | None = None,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool | Progress = True,
) -> Evaluation:
    """Measure how well a causal language model predicts some text, how fast it runs, and what it scores on tasks.

    A module is evaluated where it is, as it is, and left so. For arguments and errors see `evaluate_all`.
    """
    job = prepare([model], text, evaluating, against=against, rows=rows, loading=loading, tokenizer=tokenizer)
    [evaluation] = job.run(progress)
    return evaluation


@takes_settings
def evaluate_all(
    models: Sequence[Model],
    text: str | Path | None = None,
    evaluating: Evaluating = Evaluating(),
    *,
    against: Model | None = None,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool | Progress = True,
) -> Iterator[Evaluation]:
    """Evaluate some models on the same rows of text and the same documents of tasks.

    What can be refused without weights is refused at once; models are loaded and run as the evaluations are asked for,
    one after the other, so that they need not fit in memory at once.

    Args:
        models: Hub ids, paths, ``"storyteller"``, or modules.
        text: a text source; see `rectilinear.text.sources.open_text`. None for tasks alone.
        evaluating: what is asked beside the text, and how.
        against: a model to compare the others with, document by document; it is evaluated too, first,
            in its default revision and everything else as for the others.
        rows: how text becomes rows of tokens; its seed is also that of the choice of examples.
        loading: how models are loaded.
        tokenizer: for all models; default: each model's own, which must make the same rows.
        progress: see `rectilinear.progress.reporting`.

    Returns:
        The evaluations, in the order of the models.

    Raises:
        RequestError: the request cannot be met: no model, or no such model, text or column; text shorter than one
            row; rows longer than a model's context; models that make different rows of the text;
            a model without logits; neither text nor tasks nor results to include; tasks or results that are not there.
        JobError: a loss that is not finite, memory that does not suffice.
    """
    job = prepare(models, text, evaluating, against=against, rows=rows, loading=loading, tokenizer=tokenizer)
    return job.run(progress)


def prepare(
    models: Sequence[Model],
    text: str | Path | None,
    evaluating: Evaluating,
    *,
    against: Model | None = None,
    rows: Rows = Rows(),
    loading: Loading = Loading(),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Job:
    """Refuse what can be refused without weights, and read texts and tasks; see `evaluate_all`."""
    models = [models] if isinstance(models, Model) else models
    if not models:
        raise RequestError("expected at least one model, got none")
    if text is None and not evaluating.tasks and not evaluating.include:
        raise RequestError("expected `text`, `tasks`, `include` or several of them, got none")
    if text is None:
        evaluating.refuse_unused("without `text`", "speed")
        rows.refuse_unused("without `text`", "max_tokens", "seq_len", "bos", "column", "config", "split")
    if rows.seq_len < 2:
        raise RequestError(f"expected rows of at least 2 tokens, of which 1 is predicted, got `seq_len={rows.seq_len}`")
    origins = [Origin(model, loading) for model in models]
    other = None if against is None else Origin(against, loading.model_copy(update={"revision": None}))
    everyone = [*origins, other] if other else origins
    packed = None if text is None else _same_rows(everyone, text, rows, tokenizer)
    lengths = None
    if packed and evaluating.speed:  # of prompt and continuation, to fit into every model's context
        contexts = [context for origin in everyone if (context := context_of(origin.config))]
        lengths = plan_speed(rows.seq_len, min(contexts, default=None))
    gathered = gather_results(evaluating.include)
    tasks = load_tasks(evaluating) if evaluating.tasks else None
    for origin in everyone:
        if tasks:
            check_chat_template(tokenizer or origin.tokenizer, tasks)
        origin.skeleton()
    return Job(tuple(origins), other, evaluating, text, rows, packed, lengths, tasks, gathered, tokenizer)


def _same_rows(
    origins: Sequence[Origin], text: str | Path, rows: Rows, tokenizer: PreTrainedTokenizerBase | None
) -> TokenRows:
    """The rows of text that every model takes, and makes with its own tokenizer."""
    first = origins[0].rows(text, rows, tokenizer)
    for origin in origins[1:]:
        if origin.rows(text, rows, tokenizer).fingerprint != first.fingerprint:
            raise RequestError(
                f"expected tokenizers that make the same rows of the text, got different rows of {origins[0].name} "
                f"and {origin.name}: perplexities over different tokens cannot be compared; "
                "try models with the same tokenizer"
            )
    return first
