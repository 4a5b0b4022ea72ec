"""``rectilinear judge``."""

from __future__ import annotations

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, TextOptions, WorkOptions
from rectilinear.errors import RequestError
from rectilinear.evaluation.settings import Judging, Stories
from rectilinear.models.settings import Loading
from rectilinear.runs import ResumableOutput
from rectilinear.settings import in_flags


def judge(
    model: ModelArgument,
    /,
    *,
    stories: TextOptions[Stories] = Stories(),
    judging: WorkOptions[Judging] = Judging(),
    loading: ModelOptions[Loading] = Loading(),
    output: RuntimeOptions[ResumableOutput] = ResumableOutput(),
) -> None:
    """Have a model complete held-out stories, measure what it wrote, and have a judge mark it.

    Grammar, creativity, consistency and plot from 1 to 10, as in the TinyStories and the linearity paper.

    Example: rectilinear judge storyteller --judge-url http://localhost:8000/v1 --judge-model mine --count 10
    --out judged
    """
    from rectilinear.evaluation.judge import claim_stories, prepare_stories
    from rectilinear.progress import reporting
    from rectilinear.report.terminal import say, show

    if output.out is None:
        raise RequestError("expected `out=DIR`, a folder for the stories, the answers and judge.json, got none")
    reads = [model, stories.text, judging.reference]
    with (
        claim_stories(output.out, reads, resume=output.resume, overwrite=output.overwrite) as folder,
        reporting(True) as report,
    ):
        run = prepare_stories(model, folder, stories, judging, loading=loading, resume=output.resume, progress=report)
        if run.left:
            say(in_flags(run.announcement), to_errors=True)
        if judging.dry_run:
            return
        judged = run.finish(report)
    show(judged)
    say(f"wrote {judged.file_name} to {output.out}")
