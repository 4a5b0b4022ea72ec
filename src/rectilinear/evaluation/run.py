"""Models to evaluate, and what each makes of what is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.evaluation.differences import find_differences, find_unlike
from rectilinear.evaluation.gather import Gathered
from rectilinear.evaluation.harness import TaskScores, run_tasks
from rectilinear.evaluation.record import Evaluation, Items, TimedRecord, finite
from rectilinear.evaluation.settings import Evaluating
from rectilinear.evaluation.speed import REPEATS, measure_speed
from rectilinear.evaluation.task_set import SUPERGLUE_GROUP, TaskSet
from rectilinear.linearization.plan import Plan
from rectilinear.measurement.beginnings import bos_warnings
from rectilinear.measurement.needs import find_passes_needs
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.models.batches import reporting_exhausted_memory, with_batch_size
from rectilinear.models.describe import check_positions, record_environment, record_model, record_rows, weights_sha256
from rectilinear.models.find_blocks import BlockStack, find_blocks, width_of
from rectilinear.models.load import resolve
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.logits import check_decoder
from rectilinear.models.origin import Origin
from rectilinear.progress import Progress, reporting
from rectilinear.ranks import current, in_step
from rectilinear.results import DataRecord, IntervalRecord
from rectilinear.runs import check_same
from rectilinear.text.rows import TokenRows
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens that a request of a task is thought to have where the batch size is not given.
_REQUEST_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Job:
    """Models to evaluate, and what is asked of each.

    Attributes:
        origins: of the models.
        against: the model that they are compared with; None for none.
        evaluating: the request.
        text: to be predicted; None for none.
        rows: how it is read.
        packed: its rows; None for no text.
        lengths: of the prompt and of what is decoded from it; None for no timing.
        tasks: of the harness; None for none.
        gathered: results that there are already.
        tokenizer: for all models; None for each model's own.
    """

    origins: tuple[Origin, ...]
    against: Origin | None
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
            settings |= {"prompt_tokens": self.lengths[0], "new_tokens": self.lengths[1], "repeats": REPEATS}
        if self.tasks:
            names = ("limit", "num_fewshot", "apply_chat_template", "system_instruction")
            settings |= {name: options[name] for name in names}
            settings |= {"lm_eval": version("lm_eval"), "task_data": options["data"]}
        return settings | ({"include": options["include"]} if options["include"] else {})

    def run(self, progress: bool | Progress = True, done: Mapping[int, Path] | None = None) -> Iterator[Evaluation]:
        """Evaluate the models one by one, after the one that they are compared with.

        Args:
            progress: see `rectilinear.progress.reporting`.
            done: folders of earlier evaluations, by the place of the model; their models are not run again.

        Raises:
            RequestError: an earlier evaluation is of other weights or another request.
        """
        earlier, count = done or {}, len(self.origins)
        with reporting(progress) as report:
            theirs: Evaluation | None = None
            if self.against and len(earlier) < count:
                theirs = self.run_model(self.against, _named(report, "against"))
            ran: Iterator[Evaluation] = (
                self._earlier(origin, earlier[place])
                if place in earlier
                else self.run_model(origin, _named(report, f"{place + 1} of {count}") if count > 1 else report)
                for place, origin in enumerate(self.origins)
            )
            before = [theirs] if theirs else []
            if not (self.packed or self.tasks):  # nothing takes long, and nothing may be there
                ran = iter(found := [*ran])
                if not any(each.probes or each.stories for each in (*before, *found)):
                    others = ", ".join(sorted({model.id for model in self.gathered.models.values()}))
                    raise RequestError(
                        f"expected results of these models in `include`, got those of {others} with other weights; try "
                        "the same `dtype` and `revision` for all commands"
                    )
            for place, ours in enumerate(ran):
                evaluation = ours if place in earlier else self._compared(place, ours, theirs, before)
                before.append(evaluation)
                yield evaluation

    def _compared(
        self, place: int, ours: Evaluation, theirs: Evaluation | None, before: Sequence[Evaluation]
    ) -> Evaluation:
        """An evaluation with what it takes to read it: the other model, the differences, the warnings."""
        pair = [(self.origins[place], ours)] + ([(self.against, theirs)] if self.against and theirs else [])
        warnings = [*self._warnings(pair), *find_unlike(ours, before)]
        if place == len(self.origins) - 1:
            warnings += self.gathered.others([found.model for found in (*before, ours)])
        changes: dict[str, Any] = {"warnings": tuple(dict.fromkeys(warnings))}
        if theirs:
            sizes = {f"against_{name}": size for name, size in theirs.settings.items() if name.endswith("batch_size")}
            changes |= {"against": theirs.measurements(), "differences": find_differences(ours, theirs)}
            changes |= {"settings": ours.settings | sizes}
        return ours.model_copy(update=changes)

    def _warnings(self, ran: Sequence[tuple[Origin, Evaluation]]) -> Iterator[str]:
        """What a reader of an evaluation must know: of the model's run, and of the other's where there is one."""
        if self.tasks and self.tasks.missing:
            missing, there = ", ".join(self.tasks.missing), ", ".join(self.tasks.columns)
            yield f"{SUPERGLUE_GROUP}: no data of {missing}; the mean is over {there}"
        several = len(self.origins) > 1 or len(ran) > 1
        for origin, found in ran:
            whose = f"{origin.name or 'the model'}, " if several else ""
            parts = {f"probe of {task}: ": probe.warnings for task, probe in found.probes.items()}
            parts |= {"stories: ": found.stories.warnings} if found.stories else {}
            for part, warnings in {"": found.warnings, **parts}.items():
                yield from (whose + part + warning for warning in warnings)
            if origin.name and self.packed:
                yield from self._fitted_on(origin.name, self.packed)
            yield from self.gathered.namesakes(found.model)

    def _fitted_on(self, name: str, packed: TokenRows) -> Iterator[str]:
        """A warning where the plan beside a checkpoint says that these rows, or others of this text, went into it."""
        try:
            plan = Plan.load(resolve(name))
        except RequestError:  # nothing that was linearized
            return
        if plan.data.fingerprint == packed.fingerprint:
            which = "these very rows"
        elif _text_of(plan.data.source, plan.settings) == _text_of(self.text or "", self.rows.model_dump()):
            which = "this text, perhaps these rows"
        else:
            return
        yield f"{name} was fitted on {which} ({plan.data.source}), which flatters it; evaluate it on other text"

    def _earlier(self, origin: Origin, folder: Path) -> Evaluation:
        """An evaluation that is there already, if it is what would come of this one."""
        found = Evaluation.load(folder)

        def request(model: str, data: Any, against: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
            kept = {name: value for name, value in settings.items() if not name.endswith("batch_size")}
            about = {"model": model, "text": data and data.fingerprint, "against": against}
            return {**about, **json.loads(json.dumps(kept))}

        against = found.against.model.id if found.against else None
        usual = Rows().model_dump(exclude={"seq_len"}) if self.packed else {}  # what older versions did not ask for
        check_same(
            folder,
            request(found.model.id, found.data, against, usual | found.settings),
            request(origin.name, self.data, self.against.name if self.against else None, self.settings),
        )
        if weights_sha256(origin.load(head=True)) != found.model.sha256:
            raise RequestError(
                f"{folder} is of other weights than {origin.name} has now; try another `out`, or `overwrite`"
            )
        return found

    @in_step
    @reporting_exhausted_memory()
    def run_model(self, origin: Origin, progress: Progress) -> Evaluation:
        """Load a model and do all the work with it; the warnings are those of loading it and of its tasks."""
        module, batch_size = origin.load(head=True), self.evaluating.batch_size
        sizes: dict[str, int] = {}
        found: dict[str, Any] = {"warnings": loading_warnings(module)}
        items: dict[str, Any] = {}
        if packed := self.packed:
            ids = packed.ids
            check_positions(module, ids)
            check_decoder(module, ids, origin.name)
            found["warnings"] += bos_warnings(module, ids, packed.bos, packed.lead)
            progress(f"predicting: {find_passes_needs(module, ids.numel())}", 0, 0)

            def predict(size: int) -> tuple[Perplexity, int]:
                found = measure_perplexity(module, ids, size, progress, documents=packed.documents, bos=packed.lead)
                return found, size

            text, size = with_batch_size(predict, batch_size, module, ids.shape[1])
            sizes["batch_size"] = min(size, len(ids))
            found |= _text_record(text)
            items |= _text_items(text)
            if self.lengths:
                prompt, new = ids[:1, : self.lengths[0]], self.lengths[1]
                speed = current().from_first(lambda: measure_speed(module, prompt, new, progress=progress))
                found["tokens_per_second"] = TimedRecord(
                    prefill=speed.prefill,
                    decode=speed.decode,
                    prefill_middle=speed.prefill_middle,
                    decode_middle=speed.decode_middle,
                )
                found["cache_bytes"] = speed.cache_bytes
        if self.tasks:
            tasks, tokenizer = self.tasks, self.tokenizer or origin.tokenizer

            def answer(size: int) -> tuple[TaskScores, int]:
                return run_tasks(module, tokenizer, tasks, size, seed=self.rows.seed, progress=progress), size

            scores, sizes["tasks_batch_size"] = with_batch_size(answer, batch_size, module, _REQUEST_TOKENS)
            found |= {"tasks": scores.tasks, "groups": scores.groups}
            found["warnings"] += scores.warnings
            items["tasks"] = scores.items
        described = record_model(module, origin, _find_blocks(module), width_of(getattr(module, "config", None)))
        probes, stories, marks = self.gathered.of(described.sha256)
        return Evaluation(
            model=described,
            data=self.data,
            settings=self.settings | sizes,
            environment=record_environment(module),
            parameters=described.parameters,
            probes=probes,
            stories=stories,
            items=Items(marks=marks, **items),
            **found,
        )


def _text_record(text: Perplexity) -> dict[str, Any]:
    """What an evaluation says of the text."""
    count = len(text.clusters.sums)
    return {
        "perplexity": finite(text.perplexity),
        "loss": text.loss,
        "stderr": text.stderr,
        "interval": IntervalRecord.of(text.loss, text.stderr, count),
        "clusters": count,
        "clustered_by": "documents" if text.clusters is text.documents else "rows",
        "tokens": text.tokens,
    }


def _text_items(text: Perplexity) -> dict[str, Any]:
    """What it takes to compare the losses of a text with another model's."""
    items = {"rows": text.rows.sums.tolist()}
    if bool((text.rows.sizes != text.rows.sizes[0]).any()):
        items["row_tokens"] = text.rows.sizes.tolist()
    if text.documents:
        items |= {"documents": text.documents.sums.tolist(), "document_tokens": text.documents.sizes.tolist()}
    return items


def _find_blocks(module: nn.Module) -> BlockStack | None:
    """The block stack, which no number here depends on; None where it is not to be found."""
    try:
        return find_blocks(module)
    except RequestError:
        return None


def _named(progress: Progress, which: str) -> Progress:
    """Progress whose stages say which model they are of."""
    return lambda stage, done, total: progress(f"{stage} ({which})", done, total)


def _text_of(source: str | Path, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which text a source gives."""
    seed = settings.get("seed") if str(source) == "stories" else None
    return Path(source).expanduser().resolve(), seed, *(settings.get(key) for key in ("column", "config", "split"))
