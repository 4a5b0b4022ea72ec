"""What is wrong with a command line, in one line: what was expected, what was got, what to try."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import cyclopts
from cyclopts.exceptions import MissingArgumentError
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError

from rectilinear.errors import try_nearest
from rectilinear.settings import first_reason


def reason(error: cyclopts.CycloptsError, commands: Iterable[str]) -> str:
    """One line on a command line that could not be read."""
    name = error.argument.name if error.argument else ""
    if isinstance(error.__cause__, PydanticError):
        return first_reason(error.__cause__, name)
    match error:
        case cyclopts.UnknownCommandError(unused_tokens=[str(got), *_]):
            return f"expected a command, got {got!r}{try_nearest(got, commands, 0.7) or '; try ' + ', '.join(commands)}"
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
            except PydanticError as found:
                return first_reason(found, name)
    return f"{error}; try --help"
