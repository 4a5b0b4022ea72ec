"""``rectilinear dynamics``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.console import check_out, progress, stdout
from rectilinear.cli.options import ConventionName, DTypeName, ProductsName, parse_batch_size
from rectilinear.staging import staged


def dynamics(
    checkpoints: options.Checkpoints,
    text: options.Text,
    revisions: options.Revisions = None,
    tokenizer: options.Tokenizer = None,
    max_tokens: options.MaxTokens = 100_000,
    seq_len: options.SeqLen = 256,
    folds: options.Folds = 4,
    blocks: options.Blocks = None,
    column: options.Column = "text",
    config: options.Config = None,
    split: options.Split = "train",
    convention: options.Convention = ConventionName.block,
    sink_ratio: options.SinkRatio = 10.0,
    products: options.Products = ProductsName.auto,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Profile a series of checkpoints of one training on the same text, step by step.

    A folder with checkpoint-N folders in it, as transformers' Trainer makes them, stands for these.
    Prints a table; with --out also writes dynamics.json, dynamics.png and dynamics.svg.

    Example: rectilinear dynamics runs/mine --text stories --out dynamics

    Example: rectilinear dynamics EleutherAI/pythia-70m --revisions step1,step1000,step143000 --text stories
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)
    wanted = None if revisions is None else options.parse_names("--revisions", revisions)

    import rectilinear
    from rectilinear.models.load import load_tokenizer
    from rectilinear.report.dynamics_table import print_dynamics
    from rectilinear.report.write import write_dynamics

    with progress() as report:
        measured = rectilinear.dynamics(
            checkpoints,
            text,
            revisions=wanted,
            tokenizer=load_tokenizer(tokenizer, trust_remote_code=trust_remote_code) if tokenizer else None,
            blocks=blocks,
            max_tokens=max_tokens,
            seq_len=seq_len,
            folds=folds,
            convention=convention.value,
            sink_ratio=sink_ratio,
            products=products.value,
            batch_size=rows_at_once,
            device=device,
            dtype=dtype.value,
            trust_remote_code=trust_remote_code,
            column=column,
            config=config,
            split=split,
            seed=seed,
            progress=report,
        )
    # Files first: whoever reads the table may close the pipe.
    if out:
        with staged(out) as folder:
            write_dynamics(measured, folder)
    print_dynamics(measured, stdout())
    if out:
        print(f"wrote dynamics.json, dynamics.png and dynamics.svg to {out}")
