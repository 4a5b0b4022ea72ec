"""The kinds of replacements, each in a file of its own in this folder; a new file is found by being here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.linearization.kinds.base import Kind
from rectilinear.settings import words_of

_modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]

#: The kinds by name.
KINDS: Mapping[str, type[Kind]] = {
    value.name: value
    for module in _modules
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Kind) and "name" in vars(value)
}

#: What stands in where no kind is named.
DEFAULT_KIND = "filter"


def parse_kinds(value: Any) -> Any:
    """``bounded:window=16,affine`` as kinds, see `Kind.spelled`; anything but texts as it is.

    Raises:
        RequestError: as `make_kind`.
    """
    words = words_of(value)
    if words is None:
        return value
    texts: list[str] = []
    for word in words:  # the values of an option may have commas, too
        if texts and "=" in texts[-1] and re.fullmatch(r"[-+.\de]+", word):
            texts[-1] += f",{word}"
        else:
            texts.append(word)
    found = list[Kind]()
    for text in texts:
        name, *options = text.split(":")
        if wrong := [option for option in options if "=" not in option]:
            raise RequestError(f"expected `choices=bounded:window=16,affine`, got {wrong[0]!r} in {text!r}")
        found.append(make_kind(name, dict(option.split("=", 1) for option in options)))
    if not found or len({*found}) < len(found):
        got = "no kind" if not found else f"one of them twice in {','.join(texts)!r}"
        raise RequestError(f"expected `choices=bounded:window=16,affine`, got {got}")
    return found


def make_kind(name: Any, options: Mapping[str, Any]) -> Kind:
    """A kind by its name and its options.

    Raises:
        RequestError: no such kind, options that it does not have, or values that they cannot take.
    """
    if name not in [*KINDS]:  # which may be of any type in a file
        raise RequestError(f"expected `kind` to be one of {', '.join(KINDS)}, got {name!r}")
    for unknown in sorted(options.keys() - KINDS[name].model_fields.keys()):
        raise RequestError(f"expected no `{unknown}` with `kind={name}`, where it changes nothing; try without it")
    return KINDS[name](**options)
