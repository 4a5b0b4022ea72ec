"""The command lines that make results again, from what these record."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord
from rectilinear.settings import ONE_WORD


def command_line(
    command: str,
    arguments: Iterable[str | None],
    settings: Mapping[str, Any],
    *options: type[BaseModel],
    folder: bool = False,
) -> str:
    """A command with those of its options that were not given their defaults.

    Args:
        command: its name.
        arguments: what it cannot do without, in order; None for what cannot be named, such as text in memory.
        settings: values of options by the names of their fields, among others.
        options: settings whose fields are the command's options.
        folder: whether it needs one for its results.

    Returns:
        It; "" where an argument cannot be named.
    """
    words = [*arguments]
    for name, about in ((name, about) for kind in options for name, about in kind.model_fields.items()):
        value = settings.get(name)
        if value is not None and _words(value) != _words(about.get_default(call_default_factory=True)):
            words += _option(name, about, value)
    words += ["--out", "DIR"] * folder
    return "" if None in words else shlex.join(["rectilinear", command, *filter(None, words)])


def text_command(command: str, result: Any, *options: type[BaseModel]) -> str:
    """The command that makes a result of a model on a text.

    Args:
        command, options: as for `command_line`.
        result: with a model, data, settings and an environment.
    """
    arguments = [model_word(result.model), "--text", text_word(result.data)]
    values = {**result.settings, **loaded_as(result.model, result.environment), "seq_len": result.data.seq_len}
    return command_line(command, arguments, values, *options)


def model_word(model: ModelRecord) -> str | None:
    """A model as a command takes it; None for one that was not loaded by a name."""
    return None if model.id == model.architecture else model.id


def text_word(data: DataRecord) -> str | None:
    """A text as a command takes it; None for one in memory."""
    source = data.source
    return None if source in ("rows", "batches") or source.endswith(" in memory") else source


def loaded_as(model: ModelRecord, environment: EnvironmentRecord) -> dict[str, Any]:
    """The options of loading that a result records."""
    return {"revision": model.revision, "dtype": environment.dtype, "trust_remote_code": model.own_code}


def _option(name: str, about: FieldInfo, value: Any) -> list[str]:
    """An option and its value as the command line takes them."""
    flag, parameters = f"--{name.replace('_', '-')}", [each for each in about.metadata if isinstance(each, Parameter)]
    if isinstance(value, bool):
        negative = [each for parameter in parameters for each in parameter.negative or ()]
        return [flag if value else negative[0]]
    if ONE_WORD in parameters:
        return [flag, ",".join(_words(value)) or "none"]
    return [word for each in _words(value) for word in (flag, each)]


def _words(value: Any) -> list[str]:
    return [*map(str, value)] if isinstance(value, (list, tuple)) else [str(value)]
