"""``rectilinear probe``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rectilinear.cli.panels import WORK, BatchSizeOption, LoadingOptions, ModelArgument, OutputOptions, TaskOption
from rectilinear.evaluation.settings import Probing
from rectilinear.models.settings import Loading
from rectilinear.runs import Output, claim


def probe(
    model: ModelArgument,
    /,
    *,
    task: TaskOption,
    probing: Annotated[Probing, Parameter("*", group=WORK)] = Probing(),
    loading: LoadingOptions = Loading(),
    batch_size: BatchSizeOption = "auto",
    output: OutputOptions = Output(),
) -> None:
    """Fit a logistic regression to the hidden states at every depth, and see what it gets right.

    Prints a table; with --out also writes probe.json, probe.png and probe.svg.

    Example: rectilinear probe MODEL --task cb --data superglue --out probed
    """
    with claim(output.out, overwrite=output.overwrite) as folder:
        import rectilinear
        from rectilinear.cli.console import conclude

        conclude(rectilinear.probe(model, task, probing, loading=loading, batch_size=batch_size), folder)
