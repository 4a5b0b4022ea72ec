"""Evaluating a model: from a name and a text to its perplexity and speed, alone or beside another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rectilinear.data.pack import TokenRows
from rectilinear.errors import RequestError
from rectilinear.evaluation.record import Evaluation, Measurements, SpeedRecord, compare, finite
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


@reporting_exhausted_memory
def evaluate(
    model: str | Path | nn.Module,
    text: str | Path,
    *,
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
    """Measure how well a causal language model predicts some text, how fast it runs and what its cache takes.

    With ``against`` another model is measured in the same way on the same rows, one after the other,
    so that both need not fit in memory at once.

    Args:
        model: Hub id, path, ``"storyteller"``, or a module that takes ids and returns an object
            with ``logits``. A module is evaluated where it is, as it is, and left so.
        text: a text source; see `rectilinear.data.text.open_text`.
        tokenizer: for both models; default: each model's own, which must make the same rows.
        against: the model to compare with; its default revision, everything else as for ``model``.
        max_tokens, seq_len: text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens.
        batch_size: rows in a forward pass; ``"auto"`` halves it when memory runs out.
        device, dtype, revision, trust_remote_code: for loading; see `rectilinear.models.load`.
        column, config, split, seed: of the text source.
        speed: also time the reading of the first row and greedy decoding from it, one row at a
            time; see `rectilinear.evaluation.speed`.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met: no such model, text or column; text shorter than one
            row; rows longer than a model's context; models that make different rows of the text;
            a model without logits.
        JobError: a loss that is not finite, memory that does not suffice.
    """
    check_batch_size(batch_size)
    if seq_len < 2:
        raise RequestError(f"expected rows of at least 2 tokens, of which 1 is predicted, got --seq-len {seq_len}")
    origins = [Origin(model, revision, trust_remote_code, device, dtype)]
    if against is not None:
        origins.append(Origin(against, None, trust_remote_code, device, dtype))
    # Before the weights, which may take long: everything that can be refused without them.
    reading = Text(text, max_tokens, seq_len, column, config, split, seed)
    rows = _same_rows(origins, reading, tokenizer)
    lengths = _prompt_lengths(origins, seq_len) if speed else None

    reports = (progress, _of_the_other(progress))
    [(ours, perplexity, size), *others] = [
        _measure(origin, rows, batch_size, lengths, report) for origin, report in zip(origins, reports, strict=False)
    ]
    settings = {key: value for key, value in asdict(reading).items() if key not in ("source", "seq_len")}
    settings |= {"batch_size": size, "speed": speed}
    if lengths:
        settings |= dict(zip(("prompt_tokens", "new_tokens", "repeats"), (*lengths, REPEATS), strict=True))
    theirs = differences = None
    for theirs, baseline, size in others:
        settings["against_batch_size"] = size
        differences = compare(ours, theirs, *perplexity.minus(baseline))
    return Evaluation(
        **dict(ours),
        data=DataRecord(
            source=str(text),
            fingerprint=rows.fingerprint,
            tokens=rows.ids.numel(),
            rows=len(rows.ids),
            seq_len=seq_len,
        ),
        settings=settings,
        against=theirs,
        differences=differences,
        warnings=tuple(
            warning for origin in origins if origin.name for warning in _fitted_on(origin.name, rows, reading)
        ),
    )


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


def _measure(
    origin: Origin,
    rows: TokenRows,
    batch_size: BatchSize,
    lengths: tuple[int, int] | None,
    progress: Progress | None,
) -> tuple[Measurements, Perplexity, int]:
    """One model's record, its losses, and the rows of a forward pass."""
    module = origin.load(head=True)

    def attempt(size: int) -> tuple[Perplexity, int]:
        return measure_perplexity(module, rows.ids, size, progress), size

    perplexity, size = with_batch_size(attempt, batch_size, module, rows.ids.shape[1])
    ran = None
    if lengths:
        prompt_tokens, new_tokens = lengths
        ran = measure_speed(module, rows.ids[:1, :prompt_tokens], new_tokens, progress=progress)
    width = getattr(text_config(getattr(module, "config", None)), "hidden_size", None)
    described = record_model(module, origin, _find_blocks(module), width)
    measurements = Measurements(
        model=described,
        environment=record_environment(module),
        perplexity=finite(perplexity.perplexity),
        loss=perplexity.loss,
        stderr=perplexity.stderr,
        tokens=perplexity.tokens,
        parameters=described.parameters,
        tokens_per_second=SpeedRecord(prefill=ran.prefill, decode=ran.decode) if ran else SpeedRecord(),
        cache_bytes=ran.cache_bytes if ran else None,
    )
    return measurements, perplexity, min(size, len(rows.ids))


def _find_blocks(module: nn.Module) -> BlockStack | None:
    """The block stack, which no number here depends on; None where it is not to be found."""
    try:
        return find_blocks(module)
    except RequestError:
        return None


def _of_the_other(progress: Progress | None) -> Progress | None:
    """Progress whose stages say that it is the other model's."""
    return progress and (lambda stage, done, total: progress(f"{stage} (against)", done, total))
