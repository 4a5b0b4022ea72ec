"""What one model makes of what is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.evaluation.differences import find_differences, find_unlike
from rectilinear.evaluation.gather import Gathered
from rectilinear.evaluation.harness import TaskScores, run_tasks
from rectilinear.evaluation.record import Evaluation, Items, SpeedRecord, finite
from rectilinear.evaluation.settings import Evaluating
from rectilinear.evaluation.speed import REPEATS, measure_speed
from rectilinear.evaluation.task_set import TaskSet
from rectilinear.evaluation.warnings import find_warnings, not_included
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.models.batches import reporting_exhausted_memory, with_batch_size
from rectilinear.models.describe import record_environment, record_model, record_rows, weights_sha256
from rectilinear.models.find_blocks import BlockStack, find_blocks, width_of
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.progress import Progress, reporting
from rectilinear.results import DataRecord
from rectilinear.runs import check_same
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
        evaluating: the request.
        text: to be predicted; None for none.
        rows: how it is read.
        packed: its rows; None for no text.
        lengths: of the prompt and of what is decoded from it; None for no timing.
        tasks: of the harness; None for none.
        gathered: results that there are already.
        tokenizer: for all models; None for each model's own.
    """

    evaluating: Evaluating
    text: str | Path | None
    rows: Rows
    packed: TokenRows | None
    lengths: tuple[int, int] | None
    tasks: TaskSet | None
    gathered: Gathered
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def data(self) -> DataRecord | None:
        """Which rows they are, for a result file."""
        return None if self.packed is None else record_rows(self.text, self.packed)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked and how, for a result file."""
        options = self.evaluating.model_dump(mode="json")
        settings: dict[str, Any] = {"seed": self.rows.seed}
        if self.packed:
            settings |= self.rows.model_dump(exclude={"seq_len"}) | {"speed": self.lengths is not None}
        if self.lengths:
            settings |= dict(zip(("prompt_tokens", "new_tokens", "repeats"), (*self.lengths, REPEATS), strict=True))
        if self.tasks:
            names = ("limit", "num_fewshot", "apply_chat_template", "system_instruction")
            settings |= {name: options[name] for name in names}
            settings |= {"lm_eval": version("lm_eval"), "task_data": options["data"]}
        return settings | ({"include": options["include"]} if options["include"] else {})


@dataclass(frozen=True, eq=False)
class Job:
    """Models to evaluate.

    Attributes:
        origins: of the models.
        against: the model that they are compared with; None for none.
        work: what is asked of each.
    """

    origins: tuple[Origin, ...]
    against: Origin | None
    work: Work

    def run(self, progress: bool | Progress = True, done: Mapping[int, Path] | None = None) -> Iterator[Evaluation]:
        """Evaluate the models one by one, after the one that they are compared with.

        Args:
            progress: see `rectilinear.progress.reporting`.
            done: folders of earlier evaluations, by the place of the model; their models are not run again.

        Raises:
            RequestError: an earlier evaluation is of other weights or another request.
        """
        done = done or {}
        with reporting(progress) as report:
            several = len(self.origins) > 1
            theirs: Evaluation | None = None
            if self.against and len(done) < len(self.origins):
                theirs = run_model(self.against, self.work, _named(report, "against"))
            ran = (
                self._earlier(place, done[place])
                if place in done
                else run_model(origin, self.work, _named(report, f"{place + 1} of {len(self.origins)}" * several))
                for place, origin in enumerate(self.origins)
            )
            before = [theirs] if theirs else []
            if not (self.work.packed or self.work.tasks):  # nothing takes long, and nothing may be there
                found = [*ran]
                self._check_any([*before, *found])
                ran = (each for each in found)
            for place, ours in enumerate(ran):
                evaluation = ours if place in done else self._compared(place, ours, theirs, before)
                before.append(evaluation)
                yield evaluation

    def _compared(
        self, place: int, ours: Evaluation, theirs: Evaluation | None, before: Sequence[Evaluation]
    ) -> Evaluation:
        """An evaluation with what it takes to read it: the other model, the differences, the warnings."""
        pair = [(self.origins[place], ours)] + ([(self.against, theirs)] if self.against and theirs else [])
        several = len(self.origins) > 1 or theirs is not None
        warnings = [*find_warnings(pair, self.work, several=several), *find_unlike(ours, before)]
        if place == len(self.origins) - 1:
            warnings += not_included(self.work.gathered, [*before, ours])
        changes: dict[str, Any] = {"warnings": tuple(dict.fromkeys(warnings))}
        if theirs:
            sizes = {f"against_{name}": size for name, size in _sizes_of(theirs.settings).items()}
            changes |= {"against": theirs.measurements(), "differences": find_differences(ours, theirs)}
            changes |= {"settings": ours.settings | sizes}
        return ours.model_copy(update=changes)

    def _check_any(self, ran: Sequence[Evaluation]) -> None:
        """Refuse results to include that are all of other models."""
        if not any(found.probes or found.stories for found in ran):
            theirs = ", ".join(sorted({model.id for model in self.work.gathered.models.values()}))
            raise RequestError(
                f"expected results of these models in `include`, got those of {theirs} with other weights; try the "
                "same `dtype` and `revision` for all commands"
            )

    def _earlier(self, place: int, folder: Path) -> Evaluation:
        """An evaluation that is there already, if it is what would come of this one."""
        origin, found = self.origins[place], Evaluation.load(folder)

        def request(model: str, data: Any, against: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in settings.items() if not name.endswith("batch_size")}
            return {
                "model": model,
                "text": data and data.fingerprint,
                "against": against,
                **json.loads(json.dumps(kept)),
            }

        check_same(
            folder,
            request(found.model.id, found.data, found.against.model.id if found.against else None, found.settings),
            request(origin.name, self.work.data, self.against.name if self.against else None, self.work.settings),
        )
        if weights_sha256(origin.load(head=True)) != found.model.sha256:
            raise RequestError(
                f"{folder} is of other weights than {origin.name} has now; try another `out`, or `overwrite`"
            )
        return found


@reporting_exhausted_memory()
def run_model(origin: Origin, work: Work, progress: Progress) -> Evaluation:
    """Load a model and do all the work with it; the warnings are those of loading it and of its tasks."""
    module, size = origin.load(head=True), work.evaluating.batch_size
    sizes: dict[str, int] = {}
    found: dict[str, Any] = {}
    rows: Tensor | None = None
    scores: TaskScores | None = None
    if work.packed:
        rows, sizes["batch_size"], found = _read_text(module, work, work.packed.ids, progress)
    if work.tasks:
        tasks, tokenizer = work.tasks, work.tokenizer or origin.tokenizer

        def answer(size: int) -> tuple[TaskScores, int]:
            return run_tasks(module, tokenizer, tasks, size, seed=work.rows.seed, progress=progress), size

        scores, sizes["tasks_batch_size"] = with_batch_size(answer, size, module, _REQUEST_TOKENS)
        found |= {"tasks": scores.tasks, "groups": scores.groups}
    found["warnings"] = (*loading_warnings(module), *(scores.warnings if scores else ()))
    described = record_model(module, origin, _find_blocks(module), width_of(getattr(module, "config", None)))
    probes, stories = work.gathered.of(described.sha256)
    return Evaluation(
        model=described,
        data=work.data,
        settings=work.settings | sizes,
        environment=record_environment(module),
        parameters=described.parameters,
        probes=probes,
        stories=stories and stories.report,
        items=Items(
            rows=() if rows is None else rows.tolist(),
            tasks=scores.items if scores else {},
            marks=stories.marks if stories else {},
        ),
        **found,
    )


def _read_text(module: nn.Module, work: Work, ids: Tensor, progress: Progress) -> tuple[Tensor, int, dict[str, Any]]:
    """``[rows]`` losses, how many rows at once, and what was measured on the text."""

    def predict(size: int) -> tuple[Perplexity, int]:
        return measure_perplexity(module, ids, size, progress), size

    perplexity, size = with_batch_size(predict, work.evaluating.batch_size, module, ids.shape[1])
    found: dict[str, Any] = {"perplexity": finite(perplexity.perplexity), "loss": perplexity.loss}
    found |= {"stderr": perplexity.stderr, "tokens": perplexity.tokens}
    if work.lengths:
        prompt_tokens, new_tokens = work.lengths
        ran = measure_speed(module, ids[:1, :prompt_tokens], new_tokens, progress=progress)
        found |= {"tokens_per_second": SpeedRecord(prefill=ran.prefill, decode=ran.decode)}
        found |= {"cache_bytes": ran.cache_bytes}
    return perplexity.row_losses, min(size, len(ids)), found


def _sizes_of(settings: Mapping[str, Any]) -> dict[str, int]:
    """Those settings of an evaluation that say how many rows and requests were taken at once."""
    return {name: size for name, size in settings.items() if name in ("batch_size", "tasks_batch_size")}


def _find_blocks(module: nn.Module) -> BlockStack | None:
    """The block stack, which no number here depends on; None where it is not to be found."""
    try:
        return find_blocks(module)
    except RequestError:
        return None


def _named(progress: Progress, which: str) -> Progress:
    """Progress whose stages say which model they are of."""
    if not which:
        return progress
    return lambda stage, done, total: progress(f"{stage} ({which})", done, total)
