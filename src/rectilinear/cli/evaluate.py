"""``rectilinear evaluate``."""

from __future__ import annotations

import typer

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, parse_batch_size
from rectilinear.runs import stage


def evaluate(
    context: typer.Context,
    models: options.Models,
    text: options.EvaluatedText = None,
    tasks: options.EvaluatedTasks = None,
    data: options.EvaluatedData = None,
    limit: options.Limit = None,
    num_fewshot: options.FewShot = None,
    apply_chat_template: options.ChatTemplate = False,
    system_instruction: options.SystemInstruction = None,
    include: options.Include = None,
    against: options.Against = None,
    max_tokens: options.MaxTokens = 100_000,
    seq_len: options.SeqLen = 256,
    speed: options.Speed = True,
    column: options.Column = "text",
    config: options.Config = None,
    split: options.Split = "train",
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Measure how well decoders predict some text, how fast they run, and what they score on tasks.

    Prints tables; with --out also writes evaluation.json, of several models one each in a folder of its own.

    Example: rectilinear evaluate storyteller --text stories --out evaluation

    Example: rectilinear evaluate EleutherAI/pythia-70m --tasks superglue --data superglue

    Example: rectilinear evaluate smaller smallest --against dense --text valid.txt --include probed --include judged
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)
    names = () if tasks is None else options.parse_names("--tasks", tasks)
    of_tasks = ("data", "limit", "num_fewshot", "apply_chat_template", "system_instruction")
    of_text = ("max_tokens", "seq_len", "speed", "column", "config", "split")
    options.refuse_idle(context, (not names, "without --tasks", of_tasks), (text is None, "without --text", of_text))

    import rectilinear
    from rectilinear.report.evaluation_table import print_evaluation, print_side_by_side, short_names

    # Of several models each has a folder of its own, written as soon as the model is done.
    folders = [out] if len(models) == 1 else [out and out / name for name in short_names(models)]
    done: list[rectilinear.Evaluation] = []
    try:
        with progress() as report:
            evaluations = rectilinear.evaluate_all(
                models,
                text,
                tasks=names,
                data=data,
                limit=limit,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                system_instruction=system_instruction,
                include=include or (),
                against=against,
                max_tokens=max_tokens,
                seq_len=seq_len,
                batch_size=rows_at_once,
                device=device,
                dtype=dtype.value,
                revision=revision,
                trust_remote_code=trust_remote_code,
                column=column,
                config=config,
                split=split,
                seed=seed,
                speed=speed,
                progress=report,
            )
            for evaluation, folder in zip(evaluations, folders, strict=True):
                # Files first: whoever reads the table may close the pipe.
                if folder:
                    with stage(folder) as place:
                        evaluation.save(place)
                done.append(evaluation)
    except KeyboardInterrupt:
        if done and out:
            raise typer.Abort(f"{out} keeps the models that are done; for the others choose another --out") from None
        raise
    finally:
        # What some models scored is not lost where another fails.
        if len(done) == len(models) == 1:
            print_evaluation(done[0], stdout())
        elif done:
            print_side_by_side(done, stdout())
        if done and out:
            where = ", ".join(map(str, folders[: len(done)]))
            print(f"wrote {rectilinear.Evaluation.file_name} to {where}", flush=True)
