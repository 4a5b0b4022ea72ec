"""``rectilinear compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rectilinear.cli.panels import WORK, RuntimeOptions
from rectilinear.runs import Output, claim


def compare(
    results: Annotated[
        list[Path],
        Parameter(
            help="Results of a model each, first those of the model to compare with: folders or files of rectilinear "
            "evaluate, or folders of rectilinear probe and judge.",
            group=WORK,
        ),
    ],
    /,
    *,
    output: RuntimeOptions[Output] = Output(),
) -> None:
    """Compare models with a first one by the files of their results, piece by piece.

    Losses and tasks document by document, probes question by question, marks story by story, each difference
    with its standard error and a test. Nothing is loaded or run. With --out also writes comparison.json and
    a figure of quality against cost.

    Example: rectilinear compare evaluated/dense evaluated/smaller --out compared
    """
    with claim(output.out, overwrite=output.overwrite) as folder:
        from rectilinear.cli.conclude import conclude
        from rectilinear.comparison import compare

        conclude(compare(*results), folder)
