"""An endless, seeded supply of short stories in simple English.

Each story follows one of the eleven plots of ``stories.json``. In a plot's text ``{field}`` is filled from the cast or
from a word table, and ``[this|that]`` keeps one alternative, so a name, a colour, a thing or a place that is drawn once
comes back all through the story. A word table is a list of rows, or a text in which ``;`` ends a row; ``/`` ends a
cell, and the table's key names the fields that one row fills together. The stories train and test the small decoder
that ships with the package; telling them takes only the standard library.
"""

import json
import random
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any

__all__ = ["generate_stories"]

_MIN_WORDS, _MAX_WORDS = 80, 200

_PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her"},
    "boy": {"he": "he", "him": "him", "his": "his"},
}
_CHOICE = re.compile(r"\[([^\[\]]*)\]")

#: Rows of cells.
_Table = list[list[str]]


@cache
def _book() -> dict[str, Any]:
    """Names, places, common word tables and plots; each table as rows of cells."""

    def read(part: Any) -> Any:
        return {key: _rows(value) if isinstance(value, (str, list)) else read(value) for key, value in part.items()}

    book = json.loads(files(__package__).joinpath("stories.json").read_text(encoding="utf-8"))
    plots = [("\n\n".join(plot["text"]), read(plot["tables"])) for plot in book.pop("plots").values()]
    return {**read(book), "plots": plots}


def _rows(table: str | list[str]) -> _Table:
    rows = table.split(";") if isinstance(table, str) else table
    return [[cell.strip() for cell in row.split("/")] for row in rows]


def _cast(rng: random.Random) -> dict[str, str]:
    """Draw the hero with pronouns, the friend, and the place with two spots in it."""
    names = _book()["names"]
    girl, other = rng.choice(("girl", "boy")), rng.choice(("girl", "boy"))
    [name] = rng.choice(names[girl])
    [friend] = rng.choice([row for row in names[other] if row != [name]])
    at, place, *spots = rng.choice(_book()["places"])
    spot, miss = rng.sample(spots, 2)
    cast = {"girl": girl, "name": name, "friend": friend, "at": at, "place": place, "spot": spot, "miss": miss}
    return cast | _PRONOUNS[girl]


def _tell(text: str, tables: dict[str, _Table], rng: random.Random) -> str:
    """Fill one plot: draw every field, then resolve choices and fields until none is left."""
    fields = _cast(rng)
    for keys, table in {**_book()["common"], **tables}.items():
        fields |= zip(keys.split(), rng.choice(table), strict=True)
    fields |= {key.capitalize(): value[0].upper() + value[1:] for key, value in fields.items()}
    while "[" in text or "{" in text:
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text).format_map(fields)
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", "\n\n".join(paragraphs))


def generate_stories(seed: int = 0) -> Iterator[str]:
    """Yield stories without end; the story at an index depends on nothing but ``seed`` and that index.

    Args:
        seed: Any integer. Different seeds tell different stories.

    Yields:
        A story of 80 to 200 words in two to four paragraphs, with a blank line between paragraphs.
    """
    for index in count():
        rng = random.Random(f"{seed}:{index}")
        story = ""
        while not _MIN_WORDS <= len(story.split()) <= _MAX_WORDS:
            text, tables = rng.choice(_book()["plots"])
            story = _tell(text, tables, rng)
        yield story
