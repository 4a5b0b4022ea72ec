"""What models and texts are called where people read: by the ends of their ids and paths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any


def short_name(place: str) -> str:
    """What comes after the last slash of a Hub id or path; of ``.`` and ``..`` the folder's name."""
    last = Path(place).name
    return last if last not in ("", "..") else Path(place).resolve().name


def short_names(places: Sequence[str], letters: int | None = None) -> list[str]:
    """What comes after the last slash, with a number where that is another's name already.

    A name of more ``letters`` is cut in the middle: models of one family differ at their ends.
    """
    found: list[str] = []
    for name in map(short_name, places):
        if letters and len(name) > letters:
            name = f"{name[: letters // 2 - 2]}…{name[-(letters // 2) :]}"
        numbered = (name if number == 1 else f"{name}-{number}" for number in count(1))
        found.append(next(one for one in numbered if one not in found))
    return found


def distinct_names(places: Sequence[str]) -> list[str]:
    """Of each id or path its end, with as many of the folders before it as tell it from the others."""
    parts = {place: _parts(place) for place in places}

    def end(place: str) -> str:
        own = parts[place]
        for length in range(1, len(own)):
            if all(other == own or other[-length:] != own[-length:] for other in parts.values()):
                return "/".join(own[-length:])
        return "/".join(own)

    return [end(place) for place in places]


def labels(results: Sequence[Any]) -> list[str]:
    """What tells results apart: the model; where others have the same its text, the number of tokens, or a number.

    Args:
        results: each with a model, or one that it compares with; perhaps with data.
    """
    models = distinct_names([_model_of(result) for result in results])
    texts = distinct_names([_text_of(result) for result in results])
    every = [*zip(models, texts, results, strict=True)]
    levels = [
        models,
        [f"{model} on {text}" if text else model for model, text, _ in every],
        [f"{model} on {_tokens(result)}{text}" if text else model for model, text, result in every],
    ]
    found = []
    for place in range(len(results)):
        alone = [level[place] for level in levels if level.count(level[place]) == 1]
        same = levels[1][: place + 1].count(levels[1][place])
        found.append(alone[0] if alone else f"{levels[1][place]} ({same})")
    return found


def _model_of(result: Any) -> str:
    model = getattr(result, "model", None) or result.against.model
    return str(model.id)


def _text_of(result: Any) -> str:
    data = getattr(result, "data", None)
    return "" if data is None else str(data.source)


def _tokens(result: Any) -> str:
    tokens = getattr(result.data, "tokens", None)
    return "" if tokens is None else f"{tokens:,} tokens of "


def _parts(place: str) -> tuple[str, ...]:
    """Of a path, from the first folder on."""
    path = Path(place)
    if path.name in ("", ".."):
        path = path.resolve()
    return tuple(part for part in path.parts if part != path.anchor) if place else ("",)
