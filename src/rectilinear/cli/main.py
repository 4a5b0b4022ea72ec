"""The command line: one program, generated from the commands' signatures, and what every command shares at its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable
from importlib import import_module
from io import TextIOWrapper
from itertools import pairwise
from typing import Any

import cyclopts
from cyclopts import App, CycloptsError, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.exceptions import MissingArgumentError
from pydantic import TypeAdapter, ValidationError

import rectilinear
from rectilinear.characters import visible
from rectilinear.errors import JobError, RequestError, try_nearest
from rectilinear.ranks import processes_started, sharing
from rectilinear.runs import Interrupted
from rectilinear.settings import first_reason, in_flags

# In the order in which help shows them; each is a function of that name in a module of that name.
COMMANDS = (
    "inspect",
    "measure",
    "dynamics",
    "linearize",
    "evaluate",
    "compare",
    "probe",
    "judge",
    "pretrain",
    "finetune",
    "explain",
    "report",
    "demo",
)

#: Those that several processes share; pretrain sees to its processes itself.
SHARED = ("measure", "dynamics", "linearize", "evaluate", "finetune")


def main() -> None:
    """Run the command line; exit 0 when done, 1 when the job failed, 2 when the request was wrong.

    An interrupted command exits 130 (Ctrl-C) or 143 (SIGTERM), as shells expect.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Read when libraries are first imported: no bars beside ours, no warnings about what a command does on purpose.
    for name, value in (("TQDM_DISABLE", "1"), ("TRANSFORMERS_VERBOSITY", "error")):
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # what libraries have to tell one another
    warnings.formatwarning = lambda message, *_, **__: _line(f"warning: {message}")  # without our source
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does with what it cannot encode
    try:
        code = _run(sys.argv[1:])
        sys.stdout.flush()  # here, where a reader that is gone is known what to do about
    except CycloptsError as error:
        code = _fail(_reason(error), 2)
    except (RequestError, JobError) as error:
        code = _fail(str(error), 2 if isinstance(error, RequestError) else 1)
    except KeyboardInterrupt as interrupt:
        kept = str(interrupt) if isinstance(interrupt, Interrupted) else ""
        sys.stderr.write(_line(f"interrupted, {kept or 'nothing was written'}"))
        code = getattr(interrupt, "code", 130)
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


class Program(App):
    """A program whose options are described by their fields alone; a search in docstrings takes half a second."""

    def assemble_argument_collection(self, **options: Any) -> ArgumentCollection:
        """The options of the program; see cyclopts."""
        return super().assemble_argument_collection(**options | {"parse_docstring": False})


def build(names: Iterable[str] = COMMANDS) -> Program:
    """The program, with some of its commands; each imports a module."""
    app = Program(
        name="rectilinear",
        help="Measure how linear each block of a transformer decoder is, and replace what is linear.",
        help_format="plaintext",
        help_flags=["-h", "--help"],
        version=f"rectilinear {rectilinear.__version__}",
        version_flags="--version",
        default_parameter=Parameter(negative=(), show_default=_shown, allow_repeating=True),  # the last one counts
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    for place, name in enumerate(names):
        command = getattr(import_module(f"rectilinear.cli.{name}"), name)
        app.command(command, name=name, sort_key=place, help=_paragraphs(command.__doc__ or ""))
    app.register_install_completion_command(help="Have the shell complete commands and options (bash, zsh, fish).")
    for flag in ("--help", "--version", "--install-completion"):
        app[flag].group = "Options"
    return app


def _run(arguments: list[str]) -> int:
    asked = [name for name in arguments[:1] if name in COMMANDS]
    program = build(asked or COMMANDS)
    if processes_started() > 1 and asked and asked[0] != "pretrain":
        if asked[0] not in SHARED:
            raise RequestError(
                f"expected one process for {asked[0]}, got {processes_started()}; try without torchrun, which is for "
                + ", ".join((*SHARED, "pretrain"))
            )
        with sharing(cpu="--device=cpu" in arguments or ("--device", "cpu") in pairwise(arguments)):
            program(arguments)
        return 0
    program(arguments or ["--help"])
    return 0 if arguments else 2


def _paragraphs(doc: str) -> str:
    """A docstring whose paragraphs are lines, for terminals of any width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


def _shown(value: Any) -> Any:
    """A default as help shows it, the way it would be given; switches that are off and empty lists are no news."""
    if value is False or value == ():
        return None
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _fail(text: str, code: int) -> int:
    if text:  # empty where the help was all there was to say
        sys.stderr.write(_line(f"error: {text}"))
    return code


def _line(text: str) -> str:
    """A message in a line, its fields as options, no endless word and nothing that a terminal obeys in it."""
    words = re.sub(r"(\S{200})\S{100,}", r"\1...", visible(in_flags(text)))
    rank = os.environ.get("RANK", "0")  # of several processes
    who = "rectilinear" if rank == "0" else f"rectilinear, process {rank}"
    return f"{who}: {' '.join(words.split())}\n"


def _reason(error: CycloptsError) -> str:
    """What is wrong with a command line, in one line: what was expected, what was got, what to try."""
    name = error.argument.name if error.argument else ""
    if isinstance(error.__cause__, ValidationError):
        return first_reason(error.__cause__, name)
    match error:
        case cyclopts.UnknownCommandError(unused_tokens=[str(got), *_]):
            return f"expected a command, got {got!r}{try_nearest(got, COMMANDS, 0.7) or '; try ' + ', '.join(COMMANDS)}"
        case cyclopts.UnknownOptionError():
            got = error.token.keyword or error.token.value
            known = [option for argument in error.argument_collection for option in argument.names]
            return f"expected an option of the command, got {got}{try_nearest(got, known, 0.7) or '; try --help'}"
        case MissingArgumentError(keyword=str(option)):
            return f"expected a value after {option}, got none"
        case MissingArgumentError():
            return f"expected {name}, got none; try --help"
        case cyclopts.UnusedCliTokensError():
            return f"expected no further arguments, got {shlex.join(error.unused_tokens or ())}; try --help"
        case cyclopts.CoercionError() if error.argument and error.token:
            try:
                TypeAdapter(error.argument.field_info.annotation).validate_python(error.token.value)
            except ValidationError as found:
                return first_reason(found, name)
    return f"{error}; try --help"
