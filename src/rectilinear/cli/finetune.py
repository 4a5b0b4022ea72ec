"""``rectilinear finetune``."""

from __future__ import annotations

import typer

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, RegularizerName


def finetune(
    context: typer.Context,
    model: options.Model,
    task: options.Task,
    data: options.TaskData = None,
    seeds: options.Seeds = 3,
    epochs: options.Epochs = 3.0,
    max_steps: options.MaxSteps = None,
    batch_size: options.ExamplesInStep = 16,
    learning_rate: options.TaskLearningRate = 5e-5,
    max_examples: options.MaxExamples = None,
    seq_len: options.TaskSeqLen = 256,
    regularizer: options.Regularizer = RegularizerName.none,
    strength: options.Strength = 0.5,
    embedding: options.Embedding = True,
    text: options.ProfileText = None,
    max_tokens: options.MaxTokens = 100_000,
    folds: options.Folds = 4,
    blocks: options.Blocks = None,
    out: options.Out = None,
    save_models: options.SaveModels = False,
    resume: options.ResumeSeeds = False,
    overwrite: options.Overwrite = False,
    device: options.TrainDevice = "auto",
    dtype: options.TrainDType = DTypeName.auto,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Fine-tune a decoder on a task with several seeds, and measure its linearity before and after.

    Prints a table; with --out also writes finetuning.json.

    Example: rectilinear finetune MODEL --task cb --data superglue --seeds 3 --out finetuned
    """
    options.refuse_idle(
        context,
        (regularizer is RegularizerName.none, "without --regularizer", ("strength",)),
        (max_steps is not None, "with --max-steps", ("epochs",)),
    )
    check_out(out, overwrite or resume)

    import rectilinear
    from rectilinear.report.finetuning_table import print_finetuning
    from rectilinear.training.finetuning.folder import result_files

    try:
        with progress() as report:
            finetuned = rectilinear.finetune(
                model,
                task,
                data,
                seeds=seeds,
                epochs=epochs,
                max_steps=max_steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                max_examples=max_examples,
                seq_len=seq_len,
                regularizer=regularizer.value,
                strength=strength,
                embedding=embedding,
                text=text,
                max_tokens=max_tokens,
                folds=folds,
                blocks=blocks,
                out=out,
                save_models=save_models,
                resume=resume,
                overwrite=overwrite,
                device=device,
                dtype=dtype.value,
                revision=revision,
                trust_remote_code=trust_remote_code,
                progress=report,
            )
    except KeyboardInterrupt:
        if out and any(result_files(out)):
            raise typer.Abort(f"{out} keeps the seeds that are done; to go on, add --resume") from None
        raise
    print_finetuning(finetuned, stdout())
    if out:
        print(f"wrote {finetuned.file_name} to {out}")
