"""``rectilinear finetune``."""

from __future__ import annotations

from rectilinear.cli.panels import LinearityOptions, ModelArgument, RuntimeOptions, TaskOption, WorkOptions
from rectilinear.errors import RequestError
from rectilinear.models.hub import check_upload, of_seed, push
from rectilinear.models.settings import Upload
from rectilinear.ranks import current
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
    upload: RuntimeOptions[Upload] = Upload(),
) -> None:
    """Fine-tune a decoder on a task with several seeds, and measure its linearity before and after.

    Texts of the task longer than --seq-len tokens lose their beginning.
    Prints a table; with --out also writes finetuning.json. With --save-models, --push-to-hub OWNER/NAME uploads each
    seed's model, to OWNER/NAME-seed-0 and so on.

    Example: rectilinear finetune storyteller --task cb --data superglue --seeds 2 --out finetuned
    """
    if upload.push_to_hub is not None and not tuning.save_models:
        raise RequestError("expected `save_models` with `push_to_hub`, which uploads the models, got none")
    uploads = {seed: of_seed(upload, seed) for seed in range(profiling.seed, profiling.seed + tuning.seeds)}
    check_upload([*uploads.values()][-1])  # whose name is the longest
    import rectilinear
    from rectilinear.report.terminal import say, show

    finetuned = rectilinear.finetune(
        model, task, tuning, profiling, out=output.out, resume=output.resume, overwrite=output.overwrite
    )
    show(finetuned)
    if output.out:
        say(f"wrote {finetuned.file_name} to {output.out}")
    if output.out and current().is_first:
        for seed, each in uploads.items():
            if where := push(output.out / f"seed-{seed}", each):
                say(f"uploaded the model of seed {seed} to {where}")
