"""``rectilinear evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from rectilinear.cli.panels import MODEL, TEXT, WORK, ModelOptions, RuntimeOptions, TextOptions, WorkOptions
from rectilinear.evaluation.settings import Evaluating
from rectilinear.models.settings import Loading
from rectilinear.publish import contents, stage
from rectilinear.ranks import current
from rectilinear.runs import Output, claim
from rectilinear.text.settings import Rows

if TYPE_CHECKING:
    from rectilinear.evaluation.record import Evaluation


def evaluate(
    model: Annotated[list[str], Parameter(help="Hub ids, paths, or 'storyteller' (built in).", group=MODEL)],
    /,
    *,
    text: Annotated[str | None, Parameter(help="Text to predict, as for rectilinear measure.", group=TEXT)] = None,
    against: Annotated[
        str | None,
        Parameter(help="Another model to compare with, in its default revision.", group=WORK),
    ] = None,
    rows: TextOptions[Rows] = Rows(),
    evaluating: WorkOptions[Evaluating] = Evaluating(),
    loading: ModelOptions[Loading] = Loading(),
    output: RuntimeOptions[Output] = Output(),
) -> None:
    """Measure how well decoders predict some text, how fast they run, and what they score on tasks.

    Prints tables; with --out also writes evaluation.json, of several models one each in a folder of its own. The same
    command goes on with the models that are missing where it was interrupted.

    Example: rectilinear evaluate storyteller --text stories --max-tokens 20000 --out evaluated/dense

    Example: rectilinear evaluate smaller --against storyteller --text stories --max-tokens 20000
    --out evaluated/smaller

    Example: rectilinear evaluate storyteller --tasks cb --data superglue --include probed --include judged
    """
    from rectilinear.names import short_names

    names = short_names(model) if len(model) > 1 else []
    resume = not output.overwrite and _holds_only(output.out, names)

    def kept(folder: Path) -> str | None:
        there = names and _holds_only(folder, names)
        return f"{folder} keeps the models that are done; to go on, run the same command again" if there else None

    reads = [*model, against, text, evaluating.data]
    with claim(output.out, overwrite=output.overwrite, resume=resume, kept=kept, reads=reads) as out:
        from rectilinear.evaluation.evaluate import prepare

        # Of several models each has a folder of its own, written as soon as the model is done.
        folders = [out and out / name for name in names] or [out]
        there = [(place, folder) for place, folder in enumerate(folders) if resume and folder and folder.exists()]
        earlier = current().from_first(lambda: dict(there))
        job = prepare(model, text, evaluating, against=against, rows=rows, loading=loading)
        done: list[Evaluation] = []
        written: list[str] = []
        try:
            for evaluation, folder in zip(job.run(done=earlier), folders, strict=True):
                if folder and folder not in earlier.values():
                    with stage(folder) as staged:
                        evaluation.save(staged)
                    written.append(str(folder))
                done.append(evaluation)
        finally:  # what some models scored is not lost where another fails
            if done:
                _show(done, written)


def _show(done: list[Evaluation], written: list[str]) -> None:
    """Print evaluations of some models, and which folders they were written to."""
    from rectilinear.evaluation.comparison_table import evaluation_tables
    from rectilinear.report.terminal import say, show_table, show_warnings, stdout

    console = stdout()
    for table in evaluation_tables(done):
        show_table(table, console)
    show_warnings(dict.fromkeys(warning for each in done for warning in each.all_warnings()), console)
    if written:
        say(f"wrote {done[0].file_name} to {', '.join(written)}")


def _holds_only(out: Path | None, names: list[str]) -> bool:
    """Whether a folder holds evaluations of some models and nothing else."""
    children = contents(out.absolute()) if out and out.is_dir() else []
    return bool(children) and all(
        child.name in names and [file.name for file in child.glob("*")] == ["evaluation.json"] for child in children
    )
