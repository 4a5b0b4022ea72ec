"""Stories that a model completes, counted and judged (as in TinyStories, arXiv 2305.07759)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError, require
from rectilinear.evaluation import judge_client
from rectilinear.evaluation.criteria import INSTRUCTIONS
from rectilinear.evaluation.judge_endpoint import check_endpoint
from rectilinear.evaluation.judge_record import Judged, Judgement, JudgeName, JudgeReport, RunRecord, Story
from rectilinear.evaluation.judgements import JUDGEMENTS, read_judgements
from rectilinear.evaluation.settings import Judging, Stories
from rectilinear.evaluation.stories import (
    REQUEST,
    STORIES,
    measure_reference,
    measure_texts,
    read_run,
    write_stories,
)
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress, reporting
from rectilinear.publish import stage
from rectilinear.runs import check_same, claim, write_request
from rectilinear.settings import takes_settings


@takes_settings
def judge(
    model: str,
    out: str | Path,
    stories: Stories = Stories(),
    judging: Judging = Judging(),
    *,
    loading: Loading = Loading(),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | Progress = True,
) -> JudgeReport:
    """Have a model complete held-out beginnings, measure what it wrote, and have it judged.

    Args:
        model: Hub id, path, or ``"storyteller"``.
        out: folder for the stories, the answers as they come, and ``judge.json``.
        stories: which stories, and how they are written.
        judging: the judge, and how it is asked; by default there is none.
        loading: how models are loaded.
        resume: go on with the run of the same request in ``out``: stories that are there are not written again, those
            that have an answer are not asked again, but for malformed ones.
        overwrite: begin anew in a folder that is not empty.
        progress: see `rectilinear.progress.reporting`.

    Raises:
        RequestError: the request cannot be met: no such model or text, too few documents, a folder of something else,
            an endpoint that refuses key, model or request.
        JobError: the judge cannot be reached or keeps turning requests away; memory or disk that do not suffice.
        rectilinear.runs.Interrupted: for a `KeyboardInterrupt`, where there are stories to go on from.
    """
    with (
        claim_stories(out, [model, stories.text, judging.reference], resume=resume, overwrite=overwrite) as folder,
        reporting(progress) as report,
    ):
        run = prepare_stories(model, folder, stories, judging, loading=loading, resume=resume, progress=report)
        return run.finish(report)


def claim_stories(
    out: str | Path, reads: Iterable[object], *, resume: bool, overwrite: bool
) -> AbstractContextManager[Path]:
    """Hold the folder of a run; see `rectilinear.runs.claim`."""

    def kept(folder: Path) -> str | None:
        said = f"{folder} keeps the stories and the answers so far; to go on, add `resume`"
        return said if (folder / STORIES).exists() else None

    return claim(out, resume=resume, overwrite=overwrite, kept=kept, reads=reads)  # type: ignore[return-value]


@reporting_exhausted_memory()
def prepare_stories(
    model: str, out: Path, stories: Stories, judging: Judging, *, loading: Loading, resume: bool, progress: Progress
) -> StoryRun:
    """Have the stories written, unless they are there; everything up to what is paid for. See `judge`."""
    if judging.judge_model:
        require("openai", "judge")
        if not judging.dry_run:
            check_endpoint(judging)  # what is wrong with the request shows before there are stories
    origin = Origin(model, loading)
    other = Origin(judging.reference, loading.model_copy(update={"revision": None})) if judging.reference else None
    if other:
        _ = other.skeleton(), other.tokenizer
    request = {"model": model, **stories.model_dump(mode="json"), **loading.model_dump(include={"revision", "dtype"})}
    if resume and (out / STORIES).exists():
        check_same(out, read_run(out)[0].asked, request)
    else:
        if judging.judge_model and not judging.dry_run:
            judge_client.try_judge(judging)
        write_stories(origin, stories, request, out, progress)
    record, written = read_run(out)
    answers = read_judgements(out / JUDGEMENTS)
    if judging.judge_model:
        record = _bind(out, record, JudgeName(model=judging.judge_model, url=judging.where), answers)
    return StoryRun(out, written, answers, judging, record, request, other)


def _bind(out: Path, record: RunRecord, judge: JudgeName, answers: dict[int, Judgement]) -> RunRecord:
    """Note which judge is asked, beside the stories: answers of two judges are not to be mixed."""
    before = record.judge
    if answers and before != judge:
        theirs = f"{before.model} at {before.url}" if before else "an unknown judge"
        raise RequestError(
            f"{out} holds answers of {theirs}, got {judge.model} at {judge.url}; try the same, or another `out`"
        )
    bound = record.model_copy(update={"judge": judge})
    with stage(out) as folder:
        write_request(folder / REQUEST, bound.model_dump(mode="json"))
    return bound


@dataclass(frozen=True, eq=False)
class StoryRun:
    """Stories in a folder, and what is to be done with them.

    Attributes:
        out: the folder.
        stories: all of them.
        answers: of the judge so far, by index of the story.
        judging: the judge, and how it is asked.
        record: of the run that wrote the stories.
        request: all that they depend on.
        reference: the model whose loss of the completions is measured; None for none.
    """

    out: Path
    stories: list[Story]
    answers: dict[int, Judgement]
    judging: Judging
    record: RunRecord
    request: dict[str, Any]
    reference: Origin | None

    @property
    def left(self) -> list[Story]:
        """Stories that the judge is to be asked about."""
        return judge_client.unanswered(self.stories, self.answers) if self.judging.judge_model else []

    @property
    def announcement(self) -> str:
        """What the judge is asked, and what that will cost at most."""
        prompt_tokens, answer_tokens = judge_client.estimate_tokens(self.judging, self.left)
        about = f"about {prompt_tokens:,} tokens of requests and at most {answer_tokens:,} of answers"
        cost = self.judging.cost(prompt_tokens, answer_tokens)
        price = "; see `prices` for what that costs" if cost is None else f", at most about {cost:.2g} by `prices`"
        return f"{self.judging.judge_model} is asked about {len(self.left):,} stories: {about}{price}"

    @reporting_exhausted_memory()
    def finish(self, progress: Progress) -> JudgeReport:
        """Ask the judge about the stories that are left, measure them all, and write ``judge.json``."""
        answers = self.answers
        if self.judging.judge_model:
            answers = judge_client.ask(self.judging, self.stories, self.out / JUDGEMENTS, progress)
        compared, warnings = None, list(self.record.warnings)
        if self.reference:
            module, tokenizer = self.reference.load(head=True), self.reference.tokenizer
            compared = measure_reference(self.reference.name, module, tokenizer, self.stories, progress)
            warnings += (f"{self.reference.name}: {warning}" for warning in loading_warnings(module))
        whom = self.record.judge
        judged = judge_client.summarize(whom, answers, self.judging) if answers and whom else None
        report = JudgeReport(
            model=self.record.model,
            data=self.record.data,
            settings={**self.request, "instructions": INSTRUCTIONS if judged else None},
            environment=self.record.environment,
            completions=measure_texts([story.completion for story in self.stories]),
            endings=measure_texts([story.ending for story in self.stories]),
            reference=compared,
            judged=judged,
            warnings=(*warnings, *_warnings(self.stories, judged)),
        )
        with stage(self.out) as folder:
            report.save(folder)
        return report


def _warnings(stories: Sequence[Story], judged: Judged | None) -> Iterator[str]:
    if empty := sum(not story.completion.strip() for story in stories):
        yield f"{empty} of {len(stories)} completions are empty: the model ended the text at once"
    if judged and judged.asked < len(stories):
        yield f"the judge answered for {judged.asked} of {len(stories)} stories; for the others try `resume` with it"
    if judged and judged.outcomes["scored"] < judged.asked:
        lost = {name: count for name, count in judged.outcomes.items() if count and name != "scored"}
        counts = ", ".join(f"{count} {name}" for name, count in lost.items())
        yield f"of {judged.asked} answers {counts}, which are in no mean; see {JUDGEMENTS}"
