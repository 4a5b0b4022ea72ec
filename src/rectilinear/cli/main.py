"""The command line: one program, generated from the commands' signatures, and what every command shares at its end."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Any

import typer
from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError as PydanticError

import rectilinear
from rectilinear.errors import JobError, RequestError
from rectilinear.runs import Interrupted
from rectilinear.settings import first_reason


def _shown(value: Any) -> Any:
    """A default as help shows it; switches that are off and empty lists are no news."""
    return None if value is False or value == () else value


app = App(
    name="rectilinear",
    help="Measure how linear each block of a transformer decoder is, and replace what is linear.",
    version=f"rectilinear {rectilinear.__version__}",
    help_flags=["-h", "--help"],
    version_flags=["--version"],
    default_parameter=Parameter(negative=(), show_default=_shown),
    result_action="return_value",
)
# In the order in which help shows them; each is a function of that name in a module of that name.
COMMANDS = ("inspect", "measure", "dynamics")


def main() -> None:
    """Run the command line; exit 0 when done, 1 when the job failed, 2 when the request was wrong.

    An interrupted command exits 130 (Ctrl-C) or 143 (SIGTERM), as shells expect.
    """
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; read when tqdm is first imported
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()  # here, where a reader that is gone is known what to do about
    except CycloptsError as error:
        code = _fail(_reason(error), 2)
    except (RequestError, typer.TyperException) as error:
        code = _fail(error.format_message() if isinstance(error, typer.TyperException) else str(error), 2)
    except JobError as error:
        code = _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        kept = str(interrupt) if isinstance(interrupt, (Interrupted, typer.Abort)) else ""
        print(f"rectilinear: interrupted, {_in_flags(kept) or 'nothing was written'}", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(arguments: list[str]) -> Any:
    if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        from rectilinear.cli.typer_app import app as old

        return old(arguments, standalone_mode=False)
    asked = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    for place, name in enumerate(COMMANDS):
        if name in asked:
            app.command(getattr(import_module(f"rectilinear.cli.{name}"), name), name=name, sort_key=place)
    app(arguments or ["--help"], exit_on_error=False, print_error=False)
    return 0


def _reason(error: CycloptsError) -> str:
    """What is wrong with a command line, in one line."""
    cause = error.__cause__
    text = first_reason(cause) if isinstance(cause, PydanticError) else str(error)
    return text if isinstance(cause, PydanticError) else f"{text} (try --help)"


def _in_flags(text: str) -> str:
    """A message in which fields are named as options are: ``--seq-len 128`` for `seq_len=128`."""
    return re.sub(
        r"`([a-z_]+)(?:=([^`]*))?`", lambda m: f"--{m[1].replace('_', '-')}" + (f" {m[2]}" if m[2] else ""), text
    )


def _fail(text: str, code: int) -> int:
    if text:  # empty where the help was all there was to say
        print(f"rectilinear: error: {' '.join(_in_flags(text).split())}", file=sys.stderr)
    return code


def _terminate(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
