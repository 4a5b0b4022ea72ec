"""``rectilinear evaluate``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.console import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, parse_batch_size
from rectilinear.errors import RequestError
from rectilinear.staging import staged


def evaluate(
    model: options.Model,
    text: options.EvaluatedText = None,
    tasks: options.EvaluatedTasks = None,
    data: options.EvaluatedData = None,
    limit: options.Limit = None,
    num_fewshot: options.FewShot = None,
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
    """Measure how well a decoder predicts some text, how fast it runs, and what it scores on tasks.

    Prints tables; with --out also writes evaluation.json.

    Example: rectilinear evaluate storyteller --text stories --out evaluation

    Example: rectilinear evaluate EleutherAI/pythia-70m --tasks superglue --data superglue
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)
    names = () if tasks is None else options.parse_names("--tasks", tasks)
    idle = {"--data": data, "--limit": limit, "--num-fewshot": num_fewshot}
    if given := [name for name, value in idle.items() if value is not None and not names]:
        raise RequestError(f"expected --tasks with {given[0]}, which changes nothing without")

    import rectilinear
    from rectilinear.report.evaluation_table import print_evaluation

    with progress() as report:
        evaluation = rectilinear.evaluate(
            model,
            text,
            tasks=names,
            data=data,
            limit=limit,
            num_fewshot=num_fewshot,
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
    # Files first: whoever reads the table may close the pipe.
    if out:
        with staged(out) as folder:
            evaluation.save(folder)
    print_evaluation(evaluation, stdout())
    if out:
        print(f"wrote {evaluation.file_name} to {out}")
