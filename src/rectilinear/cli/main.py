"""The command line: one program, one file a command, and what every command shares at its end."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

import rectilinear
from rectilinear.cli import demo, dynamics, evaluate, finetune, inspect, judge, linearize, measure, pretrain, probe
from rectilinear.errors import JobError, RequestError

app = typer.Typer(
    name="rectilinear",
    help="Measure how linear each block of a transformer decoder is, and replace what is linear.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("inspect")(inspect.inspect)
app.command("measure")(measure.measure)
app.command("dynamics")(dynamics.dynamics)
app.command("linearize")(linearize.linearize)
app.command("evaluate")(evaluate.evaluate)
app.command("probe")(probe.probe)
app.command("judge")(judge.judge)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("demo")(demo.demo)


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


def main() -> None:
    """Run the command line; exit 0 when done, 1 when the job failed, 2 when the request was wrong.

    An interrupted command exits 130 (Ctrl-C) or 143 (SIGTERM), as shells expect.
    """
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; read when tqdm is first imported
    kept = ""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that is gone is known what to do about
    except (RequestError, typer.TyperException) as error:
        code = _fail(error, 2)
    except JobError as error:
        code = _fail(error, 1)
    except typer.Abort as abort:
        code, kept = 130, str(abort)
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code == 130:
        print(f"rectilinear: interrupted, {kept or 'nothing was written'}", file=sys.stderr)
    sys.exit(code)


def _fail(error: Exception, code: int) -> int:
    text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    if text:  # empty where the help was all there was to say
        print(f"rectilinear: error: {' '.join(text.split())}", file=sys.stderr)
    return code


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
