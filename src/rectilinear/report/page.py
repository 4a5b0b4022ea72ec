"""Results as one page that explains itself: a file that opens from disk, without a network."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

import rectilinear
from rectilinear.charts import CEILING, FLOOR, Chart, MarkedText
from rectilinear.errors import RequestError
from rectilinear.names import distinct_names, labels
from rectilinear.report.static import WIDTHS, save
from rectilinear.results import ResultFile, Section
from rectilinear.settings import in_flags

_Kinds = dict[str, type[ResultFile]]

# What draws the figures on the page; the second needs the first.
_SCRIPTS = ("point_names.js", "page.js")


@dataclass(frozen=True)
class Report:
    """What some results say of themselves, and beside one another.

    Attributes:
        title: of the page.
        sections: of the results, those of several together first.
        results: how many there are.
    """

    title: str
    sections: tuple[Section, ...]
    results: int

    @property
    def charts(self) -> list[Chart]:
        """All figures, in their order."""
        return [chart for section in self.sections for chart in section.charts]

    def to_html(self) -> str:
        """The page; names and texts are escaped, the script for figures is in it."""
        from jinja2 import Environment
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs

        room = files("rectilinear.report")
        environment = Environment(autoescape=True, trim_blocks=False)
        environment.filters["paragraph"] = _paragraph
        places = count()  # of charts on the page
        sections = [
            {
                **vars(section),
                "warnings": [in_flags(warning) for warning in section.warnings],
                "texts": [(text, _marks(text)) for text in section.texts],
                "charts": [(next(places), chart) for chart in section.charts],
            }
            for section in self.sections
        ]
        given = {"charts": [_finite(asdict(chart)) for chart in self.charts], "floor": FLOOR, "ceiling": CEILING}
        drawn = json.dumps(given, separators=(",", ":"), allow_nan=False)
        # A script ends at the first "</script" in it, whatever it is in the language.
        return environment.from_string(room.joinpath("page.html").read_text(encoding="utf-8")).render(
            title=self.title,
            version=rectilinear.__version__,
            count=self.results,
            sections=sections,
            charts=Markup(drawn.replace("<", r"\u003c")),
            style=Markup(room.joinpath("page.css").read_text(encoding="utf-8")),
            script=Markup("\n".join(room.joinpath(name).read_text(encoding="utf-8") for name in _SCRIPTS)),
            plotly=Markup(get_plotlyjs()),
        )

    def write(self, folder: str | Path) -> list[str]:
        """Write the page into a folder, beside it each figure for paper, and its numbers; return the files' names."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(self.to_html(), encoding="utf-8")
        names, figures = ["report.html"], folder / "figures"
        figures.mkdir(exist_ok=True)
        for chart in self._named():
            for width in WIDTHS:
                names += save(replace(chart, name=f"{chart.name}-{width}"), figures, ("png", "svg", "pdf"), width=width)
            for place, table in enumerate(chart.tables()):
                name = f"{chart.name}{f'-{place + 1}' if place else ''}.csv"
                table.to_frame().to_csv(figures / name, index=False)
                names.append(name)
        return names

    def _named(self) -> Iterator[Chart]:
        """The charts, with a number where a name comes again."""
        counts: Counter[str] = Counter()
        for chart in self.charts:
            counts[chart.name] += 1
            yield replace(chart, name=f"{chart.name}-{counts[chart.name]}" if counts[chart.name] > 1 else chart.name)


def make_report(*results: str | Path | ResultFile) -> Report:
    """What results say of themselves, and beside one another, as a page.

    Args:
        results: results, files of them, or folders that have some at any depth. In folders, files that have the name
            of a result and are none are left out, with a warning.

    Raises:
        RequestError: a place has no result.
    """
    by_place: dict[Path | int, ResultFile] = {}  # each once
    for place in results:
        if isinstance(place, ResultFile):
            by_place[id(place)] = place
        else:
            by_place |= _read(Path(place), result_kinds(), known=by_place)
    found = [*by_place.values()]
    kinds: dict[type[ResultFile], list[ResultFile]] = {}
    for result in found:
        kinds.setdefault(type(result), []).append(result)
    together = [kind.together(several) for kind, several in kinds.items() if len(several) > 1]
    alone = [section for several in kinds.values() for section in _told_apart(several)]
    models = dict.fromkeys(model.id for model in (getattr(result, "model", None) for result in found) if model)
    title = "; ".join(distinct_names([*models])) or "Results"
    return Report(title, (*filter(None, together), *alone), len(found))


def _told_apart(results: Sequence[ResultFile]) -> Iterator[Section]:
    """Results of one kind, a section each, by names that no two have."""
    names = labels(results) if len(results) > 1 else [""]
    return (result.section(name) for result, name in zip(results, names, strict=True))


@cache
def result_kinds() -> _Kinds:
    """Every kind of result, by the name of its file: those that are public, so that a new one is known by itself."""
    public = (getattr(rectilinear, name) for name in rectilinear.__all__)
    kinds = [kind for kind in public if isinstance(kind, type) and issubclass(kind, ResultFile)]
    return {kind.file_name: kind for kind in kinds}


def _read(place: Path, kinds: _Kinds, known: Container[Any]) -> dict[Path | int, ResultFile]:
    """The result in a file, or those in a folder, by their paths; but those that are known."""
    path = place.resolve()
    if not path.exists():
        raise RequestError(f"expected a folder or file of results, got {place}, which does not exist")
    if not path.is_dir():
        files, missing = [path], f"expected a result of rectilinear, a JSON file with its schema, got {place}"
    else:
        files = sorted(file for name in kinds for file in path.rglob(name) if not _hidden(file.relative_to(path)))
        missing = f"expected results in {place}, got none of {', '.join(sorted(kinds))}"
    found = {file: _kind_of(file, kinds) for file in files}
    odd = f"left out, as no results: {', '.join(str(file) for file, kind in found.items() if kind is None)}"
    if not any(found.values()):
        raise RequestError(f"{missing}; {odd}" if path.is_dir() and found else missing)
    if None in found.values():
        warnings.warn(odd, stacklevel=3)
    return {file: kind.load(file) for file, kind in found.items() if kind and file not in known}


def _hidden(path: Path) -> bool:
    """Whether it is in the hidden folder of a run that is not done."""
    return any(part.startswith(".") for part in path.parts)


def _kind_of(file: Path, kinds: _Kinds) -> type[ResultFile] | None:
    """The kind whose schema a file names, whatever it is called."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))["schema"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return next((kind for kind in kinds.values() if kind.model_fields["schema_"].default == schema), None)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _marks(text: MarkedText) -> list[tuple[str, str, int]]:
    """Each token, its value in words, and how full its mark is, in percent."""
    found = []
    for token, value in zip(text.tokens, text.values, strict=True):
        share = 0.0 if value is None else (value - text.low) / (text.high - text.low)
        found.append((token, "" if value is None else f"{value:.3g}", round(100 * min(max(share, 0.0), 1.0))))
    return found


def _paragraph(text: str) -> tuple[str, str]:
    """What a paragraph is about, its first few words up to a full stop, and the rest."""
    lead, stop, rest = text.partition(". ")
    return (f"{lead}.", rest) if stop and len(lead) < _LEAD else ("", text)


# Letters that the words have that say what a paragraph is about.
_LEAD = 30
