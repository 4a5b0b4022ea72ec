"""Commands that are not generated yet."""

from __future__ import annotations

from typing import Annotated

import typer

import rectilinear
from rectilinear.cli import finetune, linearize, pretrain

app = typer.Typer(
    name="rectilinear",
    help="Measure how linear each block of a transformer decoder is, and replace what is linear.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("linearize")(linearize.linearize)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)


def _version(asked: bool) -> None:
    if asked:
        print(f"rectilinear {rectilinear.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
