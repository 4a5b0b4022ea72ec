"""``rectilinear probe``."""

from __future__ import annotations

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, TaskOption, WorkOptions
from rectilinear.evaluation.settings import Probing
from rectilinear.models.settings import Loading
from rectilinear.runs import Runtime, claim


def probe(
    model: ModelArgument,
    /,
    *,
    task: TaskOption,
    probing: WorkOptions[Probing] = Probing(),
    loading: ModelOptions[Loading] = Loading(),
    runtime: RuntimeOptions[Runtime] = Runtime(),
) -> None:
    """Fit a logistic regression to the hidden states at every depth, and see what it gets right.

    Prints a table; with --out also writes probe.json, probe.png and probe.svg.

    Example: rectilinear probe storyteller --task cb --data superglue --out probed
    """
    with claim(runtime.out, overwrite=runtime.overwrite, reads=[model, probing.data]) as folder:
        import rectilinear
        from rectilinear.cli.conclude import conclude

        conclude(rectilinear.probe(model, task, probing, loading=loading, batch_size=runtime.batch_size), folder)
