"""The JSON files of a checkpoint, checked before other libraries read them: they pass over, or break at, much."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from glob import escape
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.journal import JOURNAL

# More blocks than any decoder has, and sizes that no memory has room for: a configuration that says so is built, block
# by block, until something gives.
_BOUNDS = (
    (re.compile(r"n_layers?|\w+_layers"), 1_000),
    (re.compile(r"\w+_(size|dim|heads|experts)|n_(embd|inner|head)|d_(model|ff)"), 2**31 - 1),
)


def read_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object.

    Args:
        text: of the file.
        where: what to call it.

    Raises:
        RequestError: it is no JSON, something else than an object, or what cannot be written again.
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters cannot
    except RecursionError:
        raise RequestError(f"expected a JSON object in {where}, got one that is nested too deep") from None
    except ValueError as error:
        raise RequestError(f"expected a JSON object in {where}, got something else ({error})") from None
    if not isinstance(found, dict):
        raise RequestError(f"expected a JSON object in {where}, got {found!r:.40}")
    return found


def check_folder(folder: Path, patterns: Iterable[str]) -> None:
    """Raise `RequestError` for JSON files of a folder, by patterns of their names, that cannot be those of a model."""
    for file in sorted(path for pattern in patterns if pattern.endswith(".json") for path in folder.glob(pattern)):
        try:
            read_object(file.read_text(encoding="utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise RequestError(f"expected a JSON object in {file}, got no text in UTF-8 ({error})") from None
        except OSError as error:
            raise RequestError(f"cannot read {file}: {error.strerror}") from None


def check_config(model: str, text: str, trusted: bool) -> None:
    """Raise `RequestError` for a configuration of a model that cannot be, or of code that is not trusted.

    Args:
        model: path or Hub id.
        text: of its config.json.
        trusted: whether code of others may run.
    """
    for name, value in _entries(read_object(text, f"config.json of {model}")):
        for names, most in _BOUNDS:
            if isinstance(value, int) and names.fullmatch(name) and abs(value) > most:
                raise RequestError(f"expected {name} in config.json of {model} to be at most {most:,}, got {value:,}")
        if name.endswith("_implementation") and "/" in str(value) and not trusted:
            raise RequestError(
                f"cannot load {model!r}: its {name} is code on the Hub ({value}); if you trust it, try "
                "`trust_remote_code`"
            )


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        yield name, value
        if isinstance(value, dict):
            yield from _entries(value)


def is_being_replaced(folder: Path) -> bool:
    """Whether a run that was killed has not yet moved all of its files into a folder, or into the one around it."""
    outer, folder = folder.absolute().parent, folder.absolute()
    names = ((place, each.name) for each in (folder, outer) for place in (each, each.parent))
    return any(any(place.glob(f".{escape(name)}.staging-*/{JOURNAL}")) for place, name in names)


def check_weights_fill(folder: Path, parameters: int) -> None:
    """Raise `RequestError` for a model of which the files of weights in its folder can hold next to nothing.

    Else memory would be taken for all of it before it is seen that its weights are of other shapes.
    """
    there = [file.stat().st_size for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    if there and parameters > 8 * sum(there):  # one bit for each is the least that quantised models have
        raise RequestError(
            f"cannot load {str(folder)!r}: its configuration is of {parameters:,} parameters, but its weights are not "
            f"shaped so: their files have {sum(there):,} bytes; is config.json that of another model?"
        )
