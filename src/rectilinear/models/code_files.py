"""Code that goes with a checkpoint: what its files may name, and what its card says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rectilinear.models.card_metadata import bare_name
from rectilinear.models.released_code import EVER, hash_code, released_versions

# Keys of configurations, of models as of tokenizers, under which transformers finds code to run.
_NAMING = ("auto_map", "custom_pipelines")


def drop_absent_code(folder: Path) -> None:
    """Drop from the JSON files of a checkpoint what names code that is not in its folder.

    Transformers writes the code of classes along that are in use, so that it has run here: code that was trusted, and
    ours. Whatever else a source's files named, here or in other places, goes.
    """
    for file in sorted(folder.glob("*.json")):
        text = file.read_text(encoding="utf-8")
        if not any(f'"{key}"' in text for key in _NAMING):
            continue
        before = json.loads(text)
        after = _without_absent(before, folder)
        if after != before:
            file.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_code(folder: Path, source: str) -> str:
    """What a card is to say of the code in a checkpoint; "" where there is none.

    Args:
        folder: of the checkpoint.
        source: the model that others' code came from.
    """
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.py"))}
    ours = [name for name in EVER if name in texts]
    if hash_code([texts[name] for name in ours]) not in released_versions():
        ours = []
    others = [name for name in texts if name not in ours]
    said = []
    if ours:
        said.append(
            f"The stand-ins are code of Rectilinear, {_listed(ours)}, which transformers runs where it is told to "
            "trust it: `trust_remote_code=True`. Rectilinear itself loads this checkpoint without running these files."
        )
    if others:
        said.append(
            f"{_listed(others)} came with `{bare_name(source)}`, and not from Rectilinear: whoever made this "
            "checkpoint trusted that code. Loading with `trust_remote_code=True` runs it, so read it first."
        )
    return "\n\n".join(said)


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _without_absent(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_without_absent(each, folder) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, entry in value.items():
        if key in _NAMING:
            entry = {kind: named for kind, named in _items(entry) if _is_there(named, folder)}
            if not entry:
                continue
        else:
            entry = _without_absent(entry, folder)
        kept[key] = entry
    return kept


def _items(entry: Any) -> list[tuple[str, Any]]:
    return [*entry.items()] if isinstance(entry, dict) else []


def _is_there(named: Any, folder: Path) -> bool:
    """Whether the modules of what an entry names are files of the folder: of ``module.Class``, or of all of several."""
    if isinstance(named, dict):  # of a pipeline
        named = named.get("impl")
    names = [name for name in (named if isinstance(named, (list, tuple)) else [named]) if name is not None]
    modules = [re.fullmatch(r"(\w+)\.\w+", str(name)) for name in names]
    return bool(names) and all(module and (folder / f"{module[1]}.py").is_file() for module in modules)
