"""``rectilinear finetune``."""

from __future__ import annotations

from rectilinear.cli.panels import LinearityOptions, ModelArgument, RuntimeOptions, TaskOption, WorkOptions
from rectilinear.runs import ResumableOutput
from rectilinear.training.settings import Profiling, Tuning


def finetune(
    model: ModelArgument,
    /,
    *,
    task: TaskOption,
    tuning: WorkOptions[Tuning] = Tuning(),
    profiling: LinearityOptions[Profiling] = Profiling(),
    output: RuntimeOptions[ResumableOutput] = ResumableOutput(),
) -> None:
    """Fine-tune a decoder on a task with several seeds, and measure its linearity before and after.

    Texts of the task longer than --seq-len tokens lose their beginning.
    Prints a table; with --out also writes finetuning.json.

    Example: rectilinear finetune storyteller --task cb --data superglue --seeds 2 --out finetuned
    """
    import rectilinear
    from rectilinear.report.terminal import say, show

    finetuned = rectilinear.finetune(
        model, task, tuning, profiling, out=output.out, resume=output.resume, overwrite=output.overwrite
    )
    show(finetuned)
    if output.out:
        say(f"wrote {finetuned.file_name} to {output.out}")
