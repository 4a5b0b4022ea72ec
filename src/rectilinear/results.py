"""What every result file says of the model, the data and the software it came from, and how it shows itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rectilinear.characters import visible, writable
from rectilinear.charts import Chart, MarkedText
from rectilinear.errors import JobError, RequestError
from rectilinear.intervals import LEVEL, half_width
from rectilinear.names import short_name
from rectilinear.publish import write_whole
from rectilinear.settings import first_reason
from rectilinear.tables import Table

if TYPE_CHECKING:
    from typing import Self

    from pandas import DataFrame


class Record(BaseModel):
    """Base of everything that is written as JSON."""

    # Later files of the same schema may have more keys.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


@dataclass(frozen=True)
class Section:
    """What results say of themselves.

    Attributes:
        title: what it is about.
        headline: what is found, in a sentence.
        words: in plain words, a paragraph each.
        charts, tables: its figures and numbers.
        texts: whose tokens are marked.
        warnings: what to know before trusting the numbers.
        facts: what made it, by name, in groups.
        command: that makes it again; "" where that takes more than a command.
    """

    title: str
    headline: str = ""
    words: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    texts: tuple[MarkedText, ...] = ()
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    command: str = ""


class ResultFile(Record):
    """Base of a result that is a file of its own, ``file_name`` in a folder, and shows itself as tables and figures."""

    file_name: ClassVar[str]
    #: What such results are about.
    heading: ClassVar[str]

    def tables(self) -> tuple[Table, ...]:
        """The result as tables, the most important one first."""
        return ()

    def charts(self) -> tuple[Chart, ...]:
        """The result as figures, the most important one first."""
        return ()

    def texts(self) -> tuple[MarkedText, ...]:
        """Texts whose tokens are marked."""
        return ()

    def headline(self) -> str:
        """What is found, in a sentence."""
        return ""

    def command(self) -> str:
        """The command that makes such a result again; "" where that takes more than a command."""
        return ""

    def words(self) -> tuple[str, ...]:
        """What the numbers mean, for a reader who meets them for the first time; every number is the result's."""
        return ()

    def section(self, name: str = "") -> Section:
        """All that the result says of itself.

        Args:
            name: of its model, where others on the page have models of the same name; default: the end of its id.
        """
        name = name or (short_name(self.model.id) if hasattr(self, "model") else "")
        records = {group: part for group, part in self.model_dump(mode="json").items() if isinstance(part, dict)}
        return Section(
            title=f"{self.heading}: {name}" if name else self.heading,
            headline=self.headline(),
            words=self.words(),
            charts=self.charts(),
            texts=self.texts(),
            tables=self.tables(),
            warnings=self.all_warnings(),
            facts={group: records[group] for group in ("model", "data", "settings", "environment") if group in records},
            command=self.command(),
        )

    @classmethod
    def together(cls, results: Sequence[Self]) -> Section | None:
        """What several such results say beside one another; None where there is nothing to add."""
        return None

    def all_warnings(self) -> tuple[str, ...]:
        """What to know before trusting the numbers, each once."""
        return tuple(dict.fromkeys(getattr(self, "warnings", ())))

    def to_frame(self) -> DataFrame:
        """The first table as a pandas data frame."""
        return self.tables()[0].to_frame()

    def __repr__(self) -> str:
        return visible("\n\n".join([*map(str, self.tables()), *(f"warning: {text}" for text in self.all_warnings())]))

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The tables and warnings for a notebook."""
        tables = [table.to_html() for table in self.tables()]
        return "".join([*tables, *(f"<p>{escape(f'warning: {text}')}</p>" for text in self.all_warnings())])

    def to_json(self) -> str:
        """The text of the file."""
        return json_text(self.model_dump(mode="json", by_alias=True))

    def save(self, folder: str | Path) -> Path:
        """Write the file into a folder, which is made where it is missing, whole or not at all; return its path."""
        path = Path(folder) / self.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.to_json().encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read such a file, or the one in a folder.

        Raises:
            RequestError: there is none, or it is something else.
        """
        kind = cls.__name__.lower()
        file = Path(path) / cls.file_name if Path(path).is_dir() else Path(path)
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"no {kind} at {file}: {error.strerror}") from None
        except ValueError as error:  # perhaps not even text
            reason = first_reason(error).partition("; try")[0] if isinstance(error, ValidationError) else str(error)
            reason = reason.replace("`", "'")  # they are no options
            raise RequestError(f"{file}: expected a rectilinear {kind} ({reason})") from None


def json_text(result: Any) -> str:
    """The text of a file that has a result; `JobError` for numbers that are not finite, which JSON does not have."""
    try:
        return json.dumps(writable(result), indent=2, allow_nan=False) + "\n"
    except ValueError:
        raise JobError("expected finite numbers in a result, got others; try milder options") from None


class ModelRecord(Record):
    """Which model it is about."""

    id: str
    revision: str | None
    architecture: str
    num_blocks: int | None = Field(description="null where there is no block stack to be found")
    width: int | None
    parameters: int
    sha256: str | None = Field(
        description="of the weights as loaded: names, dtypes, shapes and bytes; null where they cannot be hashed"
    )
    own_code: bool = Field(default=False, description="whether code that came with it was run")


class IntervalRecord(Record):
    """What a number is expected to be on other text: a loss, or a score of maps that were fitted on as many tokens."""

    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """Half of it."""
        return (self.high - self.low) / 2

    @classmethod
    def of(cls, value: float | None, stderr: float | None, parts: int) -> IntervalRecord | None:
        """By Student's t, of a mean over some parts; None where there is no error."""
        if value is None or stderr is None:
            return None
        half = half_width(stderr, parts)
        return cls(low=value - half, high=value + half, level=LEVEL)


class DataRecord(Record):
    """Which tokens it was measured on."""

    source: str
    fingerprint: str = Field(description="SHA-256 of the inputs")
    tokens: int
    rows: int
    seq_len: int | None
    documents: int | None = Field(default=None, description="of the text, that the rows are of; null where not known")


class EnvironmentRecord(Record):
    """Which software and hardware measured it."""

    rectilinear: str
    torch: str
    transformers: str | None
    device: str
    dtype: str


def describe_rows(data: DataRecord, settings: Mapping[str, Any]) -> str:
    """Which tokens they are, and how their rows begin where that was asked for."""
    how = {"row": " in rows that begin with BOS", "none": " without BOS"}.get(settings.get("bos", ""), "")
    return f"{data.tokens:,} tokens of {short_name(data.source)}{how}"


def settings_record(*settings: BaseModel, **others: Any) -> dict[str, Any]:
    """Settings objects as one flat record, and what else is to be recorded with them."""
    return {key: value for part in settings for key, value in part.model_dump(mode="json").items()} | others
