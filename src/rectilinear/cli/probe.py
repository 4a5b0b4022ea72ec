"""``rectilinear probe``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, PoolingName, parse_batch_size
from rectilinear.runs import stage


def probe(
    model: options.Model,
    task: options.Task,
    data: options.TaskData = None,
    pooling: options.Pooling = PoolingName.mean,
    folds: options.ProbeFolds = 5,
    max_examples: options.MaxExamples = None,
    seq_len: options.TaskSeqLen = 256,
    blocks: options.Blocks = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Fit a logistic regression to the hidden states at every depth, and see what it gets right.

    Prints a table; with --out also writes probe.json, probe.png and probe.svg.

    Example: rectilinear probe MODEL --task cb --data superglue --out probed
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)

    import rectilinear
    from rectilinear.report.probe_table import print_probe
    from rectilinear.report.write import write_result

    with progress() as report:
        probed = rectilinear.probe(
            model,
            task,
            data,
            pooling=pooling.value,
            folds=folds,
            max_examples=max_examples,
            seq_len=seq_len,
            blocks=blocks,
            batch_size=rows_at_once,
            device=device,
            dtype=dtype.value,
            revision=revision,
            trust_remote_code=trust_remote_code,
            progress=report,
        )
    # Files first: whoever reads the table may close the pipe.
    if out:
        with stage(out) as folder:
            write_result(probed, folder)
    print_probe(probed, stdout())
    if out:
        print(f"wrote probe.json, probe.png and probe.svg to {out}")
