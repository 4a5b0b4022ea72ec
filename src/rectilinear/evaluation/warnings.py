"""What a reader of an evaluation must know before trusting its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.evaluation.gather import Gathered
from rectilinear.evaluation.record import Evaluation
from rectilinear.evaluation.task_set import SUPERGLUE_GROUP
from rectilinear.linearization.plan import Plan
from rectilinear.models.load import resolve
from rectilinear.models.origin import Origin, short_name
from rectilinear.results import ModelRecord
from rectilinear.text.rows import TokenRows

if TYPE_CHECKING:
    from rectilinear.evaluation.run import Job


def find_warnings(ran: Sequence[tuple[Origin, Evaluation]], job: Job) -> Iterator[str]:
    """What a reader of an evaluation must know: of the model's run, and of the other's where there is one."""
    if job.tasks and job.tasks.missing:
        missing, there = ", ".join(job.tasks.missing), ", ".join(job.tasks.columns)
        yield f"{SUPERGLUE_GROUP}: no data of {missing}; the mean is over {there}"
    several = len(job.origins) > 1 or len(ran) > 1
    for origin, found in ran:
        whose = f"{origin.name or 'the model'}, " if several else ""
        included = [f"probe of {task}: {warning}" for task, probe in found.probes.items() for warning in probe.warnings]
        included += [f"stories: {warning}" for warning in (found.stories.warnings if found.stories else ())]
        yield from (whose + warning for warning in (*found.warnings, *included))
        if origin.name and job.packed:
            yield from _fitted_on(origin.name, job, job.packed)
        yield from _other_names(job.gathered, found.model)


def not_included(gathered: Gathered, ran: Sequence[Evaluation]) -> Iterator[str]:
    """Results that came to no model."""
    weights = {found.model.sha256 for found in ran}
    for file, model in gathered.models.items():
        if model.sha256 not in weights:
            yield (
                f"{file} is not included: it is of {model.id} with other weights than any model here has; try the same "
                "`dtype` and `revision` for all commands"
            )


def _other_names(gathered: Gathered, ours: ModelRecord) -> Iterator[str]:
    """Results of a model's weights under another name: the configuration may be another too."""
    for file, model in gathered.models.items():
        if model.sha256 == ours.sha256 and short_name(model.id) != short_name(ours.id):
            yield f"{file} is of {model.id}, which has the weights of {ours.id}: are they the same model?"


def _fitted_on(name: str, job: Job, packed: TokenRows) -> list[str]:
    """A warning where the plan beside a checkpoint says that these rows, or others of this text, went into it."""
    try:
        plan = Plan.load(resolve(name))
    except RequestError:  # nothing that was linearized
        return []
    if plan.data.fingerprint == packed.fingerprint:
        which = "these very rows"
    elif _text_of(plan.data.source, plan.settings) == _text_of(job.text or "", job.rows.model_dump()):
        which = "this text, perhaps these rows"
    else:
        return []
    return [f"{name} was fitted on {which} ({plan.data.source}), which flatters it; evaluate it on other text"]


def _text_of(source: str | Path, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides which text a source gives."""
    seed = settings.get("seed") if str(source) == "stories" else None
    return Path(source).expanduser().resolve(), seed, *(settings.get(key) for key in ("column", "config", "split"))
