"""``rectilinear dynamics``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from rectilinear.cli.panels import MODEL, TEXT, ModelOptions, RuntimeOptions, TextOption, TextOptions, WorkOptions
from rectilinear.errors import RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.runs import Runtime, claim
from rectilinear.settings import words_of
from rectilinear.text.settings import Rows


class Series(Loading):
    """How the checkpoints of a series are loaded."""

    revisions: str | None = None
    """Branches, tags or commits of one Hub id, one a step: a,b,c."""


def dynamics(
    checkpoint: Annotated[
        list[str],
        Parameter(
            help="Folders, a folder of checkpoint-N folders, or Hub ids; one Hub id with --revisions.", group=MODEL
        ),
    ],
    /,
    *,
    text: TextOption,
    tokenizer: Annotated[
        str | None, Parameter(help="Hub id or path of the tokenizer; the model's own when not given.", group=TEXT)
    ] = None,
    rows: TextOptions[Rows] = Rows(),
    measurement: WorkOptions[Measurement] = Measurement(),
    loading: ModelOptions[Series] = Series(),
    runtime: RuntimeOptions[Runtime] = Runtime(),
) -> None:
    """Profile a series of checkpoints of one training on the same text, step by step.

    A folder with checkpoint-N folders in it, as transformers' Trainer makes them, stands for these.
    Prints a table; with --out also writes dynamics.json, dynamics.png and dynamics.svg.

    Example: rectilinear dynamics run --text stories --max-tokens 20000 --seq-len 64 --out dynamics
    """
    if loading.revisions is not None:
        loading.refuse_unused("with `revisions`", "revision")
    series = checkpoint if loading.revisions is None else _at_revisions(checkpoint, loading.revisions)
    with claim(runtime.out, overwrite=runtime.overwrite, reads=[*checkpoint, text]) as folder:
        import rectilinear
        from rectilinear.cli.conclude import conclude
        from rectilinear.models.load import load_tokenizer

        measured = rectilinear.dynamics(
            series,
            text,
            measurement,
            rows=rows,
            loading=loading,
            tokenizer=load_tokenizer(tokenizer, loading.model_copy(update={"revision": None})) if tokenizer else None,
            batch_size=runtime.batch_size,
        )
        conclude(measured, folder)


def _at_revisions(checkpoints: list[str], revisions: str) -> list[str]:
    """``ID@REVISION`` for each of the revisions."""
    names = words_of(revisions)
    if not names:
        raise RequestError(f"expected `revisions=a,b,c`, got {revisions!r}")
    if len(checkpoints) != 1:
        raise RequestError(f"expected one Hub id with `revisions`, got {len(checkpoints)} checkpoints")
    return [f"{checkpoints[0]}@{name}" for name in names]
