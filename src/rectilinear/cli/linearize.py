"""``rectilinear linearize``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, TextOption, TextOptions, WorkOptions
from rectilinear.errors import RequestError
from rectilinear.linearization.kinds import DEFAULT_KIND, KINDS, make_kind
from rectilinear.linearization.settings import CalibrationRows, Fitting, Selection
from rectilinear.models.hub import check_upload, push
from rectilinear.models.settings import Loading, Upload
from rectilinear.runs import Runtime, claim
from rectilinear.settings import Settings

_HELP = "What stands in. " + " ".join(f"{name}: {(kind.__doc__ or '').splitlines()[0]}" for name, kind in KINDS.items())

if TYPE_CHECKING:
    AnyKind = Settings
else:  # the options of all kinds, and which of them is meant
    AnyKind = create_model(
        "AnyKind",
        __base__=Settings,
        kind=(Literal[tuple(KINDS)], Field(DEFAULT_KIND, description=_HELP)),
        **{name: (field.annotation, field) for kind in KINDS.values() for name, field in kind.model_fields.items()},
    )


class Published(Runtime, Upload):
    """Where a checkpoint goes."""


def linearize(
    model: ModelArgument,
    /,
    *,
    text: TextOption,
    kind: WorkOptions[AnyKind] = AnyKind(),
    selection: WorkOptions[Selection] = Selection(),
    fitting: WorkOptions[Fitting] = Fitting(),
    rows: TextOptions[CalibrationRows] = CalibrationRows(),
    loading: ModelOptions[Loading] = Loading(),
    runtime: RuntimeOptions[Published] = Published(),
) -> None:
    """Replace blocks, attentions or MLPs by something cheaper, and write a checkpoint that works.

    Which ones: one of --blocks, --count, --budget, --max-loss-increase and --plan.

    With --heal-steps, a run that was stopped goes on from its last checkpoint, in OUT.heal, when the same command
    is run again.

    Example: rectilinear linearize storyteller --text stories --max-tokens 50000 --kind filter --count 2 --out smaller
    """
    if runtime.out is None:
        raise RequestError("expected `out`, a folder for the checkpoint, got none")
    given = kind.model_dump(include=kind.model_fields_set)
    if selection.plan is not None:
        kind.refuse_unused("with `plan`", *given)
    if selection.choices is not None:
        kind.refuse_unused("with `choices`, in which options follow their kind", *given)
    check_upload(runtime)
    made_of = make_kind(given.pop("kind", DEFAULT_KIND), given) if given else None
    with claim(runtime.out, overwrite=runtime.overwrite, reads=[model, text]) as folder:
        import rectilinear
        from rectilinear.report.terminal import say, show

        linearized = rectilinear.linearize(
            model,
            text,
            made_of,
            selection,
            rows=rows,
            loading=loading,
            fitting=fitting,
            out=folder,
            overwrite=runtime.overwrite,
            batch_size=runtime.batch_size,
        )
    show(linearized.plan)
    say(f"wrote the checkpoint, plan.json and README.md to {folder}; loaded again in a fresh process, it agrees")
    if folder and (where := push(folder, runtime)):
        say(f"uploaded it to {where}")
