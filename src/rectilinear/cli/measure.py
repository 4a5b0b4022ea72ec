"""``rectilinear measure``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.console import check_out, progress, stdout
from rectilinear.cli.options import ConventionName, DTypeName, ProductsName, parse_batch_size
from rectilinear.staging import staged


def measure(
    model: options.Model,
    text: options.Text,
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
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Profile how linear each block of a decoder is on some text.

    Prints a table; with --out also writes profile.json, profile.png and profile.svg.

    Example: rectilinear measure storyteller --text stories --out profile
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)

    import rectilinear
    from rectilinear.report.tables import print_profile
    from rectilinear.report.write import write_profile

    with progress() as report:
        profile = rectilinear.measure(
            model,
            text,
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
            revision=revision,
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
            write_profile(profile, folder)
    print_profile(profile, stdout())
    if out:
        print(f"wrote profile.json, profile.png and profile.svg to {out}")
