"""What one model makes of what is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.evaluation.gather import Gathered, Stories
from rectilinear.evaluation.harness import TaskScores, run_tasks
from rectilinear.evaluation.record import Measurements, SpeedRecord, finite
from rectilinear.evaluation.speed import measure_speed
from rectilinear.evaluation.task_set import TaskSet
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.models.batches import reporting_exhausted_memory, with_batch_size
from rectilinear.models.blocks import BlockStack, find_blocks, text_config
from rectilinear.models.origin import Origin
from rectilinear.models.records import record_environment, record_model
from rectilinear.progress import Progress
from rectilinear.results import DataRecord
from rectilinear.settings import BatchSize
from rectilinear.text.rows import TokenRows
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that a request of a task is thought to have where the batch size is not given.
_REQUEST_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Work:
    """What is asked of every model.

    Attributes:
        text: to be predicted; None for none.
        rows: of it; None for no text.
        lengths: of the prompt and of what is decoded from it; None for no timing.
        tasks: of the harness; None for none.
        gathered: results that there are already.
        tokenizer: for tasks; None for each model's own.
        seed: of the choice of examples.
        batch_size: rows, or requests, in a forward pass.
    """

    text: tuple[str | Path, Rows] | None
    rows: TokenRows | None
    lengths: tuple[int, int] | None
    tasks: TaskSet | None
    gathered: Gathered
    tokenizer: PreTrainedTokenizerBase | None
    seed: int
    batch_size: BatchSize

    @property
    def data(self) -> DataRecord | None:
        """Which rows they are, for a result file."""
        if not (self.text and self.rows):
            return None
        return DataRecord(
            source=str(self.text[0]),
            fingerprint=self.rows.fingerprint,
            tokens=self.rows.ids.numel(),
            rows=len(self.rows.ids),
            seq_len=self.text[1].seq_len,
        )


@dataclass(frozen=True, eq=False)
class Run:
    """What came of a model.

    Attributes:
        measured: the record.
        perplexity: losses of rows; None for no text.
        scores: of tasks, with those of documents; None for no tasks.
        stories: with the marks of each; None where there are none.
        sizes: settings that say how many rows and requests were taken at once.
    """

    measured: Measurements
    perplexity: Perplexity | None
    scores: TaskScores | None
    stories: Stories | None
    sizes: Mapping[str, int]


@reporting_exhausted_memory
def run_model(origin: Origin, work: Work, progress: Progress | None = None) -> Run:
    """Load a model and do all the work with it.

    Args:
        origin: of the model.
        work: what to do.
        progress: called with (stage, done, total).
    """
    module = origin.load(head=True)
    sizes: dict[str, int] = {}
    told: dict[str, Any] = {}
    perplexity = scores = None
    if work.rows:
        ids = work.rows.ids

        def predict(size: int) -> tuple[Perplexity, int]:
            return measure_perplexity(module, ids, size, progress), size

        perplexity, size = with_batch_size(predict, work.batch_size, module, ids.shape[1])
        sizes["batch_size"] = min(size, len(ids))
        told |= {"perplexity": finite(perplexity.perplexity), "loss": perplexity.loss}
        told |= {"stderr": perplexity.stderr, "tokens": perplexity.tokens}
        if work.lengths:
            prompt_tokens, new_tokens = work.lengths
            ran = measure_speed(module, ids[:1, :prompt_tokens], new_tokens, progress=progress)
            told |= {"tokens_per_second": SpeedRecord(prefill=ran.prefill, decode=ran.decode)}
            told["cache_bytes"] = ran.cache_bytes
    if work.tasks:
        asked, own = work.tasks, work.tokenizer or origin.tokenizer()

        def answer(size: int) -> tuple[TaskScores, int]:
            return run_tasks(module, own, asked, size, seed=work.seed, progress=progress), size

        scores, sizes["tasks_batch_size"] = with_batch_size(answer, work.batch_size, module, _REQUEST_TOKENS)
        told |= {"tasks": scores.tasks, "groups": scores.groups}
    width = getattr(text_config(getattr(module, "config", None)), "hidden_size", None)
    described = record_model(module, origin, _find_blocks(module), width)
    probes, stories = work.gathered.of(described.sha256 or "")
    measured = Measurements(
        model=described,
        environment=record_environment(module),
        parameters=described.parameters,
        probes=probes,
        stories=stories and stories.report,
        **told,
    )
    return Run(measured, perplexity, scores, stories, sizes)


def _find_blocks(module: nn.Module) -> BlockStack | None:
    """The block stack, which no number here depends on; None where it is not to be found."""
    try:
        return find_blocks(module)
    except RequestError:
        return None
