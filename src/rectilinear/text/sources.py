"""Text sources: files, folders, Hub datasets, generated stories and texts in memory, as streams of documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.text.lines import read_lines, readable, surrogate_replacer
from rectilinear.text.settings import Source
from rectilinear.text.stories import generate_stories
from rectilinear.text.tokens import Document

#: The line that separates documents in a ``.txt`` file.
SEPARATOR = "<|endoftext|>"

# Added to the seed of generated text, which stays what it was when the generator's 0 was kept for training.
_FIRST_STORY_SEED = 1

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_KINDS = "a path, a Hub dataset id or 'stories'"

# Characters that are read at once at most; of a Hub dataset id at most.
_PIECE, _LONGEST_ID = 65_536, 200


def open_text(
    source: str | Path | Iterable[Any],
    *,
    column: str = "text",
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
) -> Iterator[str]:
    """Stream the documents of a text source, in order.

    Args:
        source: a ``.txt`` file (documents separated by a line ``<|endoftext|>``), a ``.jsonl`` or
            ``.parquet`` file, a folder of these (in order of name), a Hub dataset id, ``"stories"``
            (generated, endless); or documents in memory: strings, a data frame, a `datasets.Dataset`.
        column: where the text is in tables: jsonl, parquet, Hub datasets, data frames.
        config: configuration of a Hub dataset.
        split: split of a Hub dataset.
        seed: which generated stories.

    Raises:
        RequestError: there is no such source; at once. While reading: a column that is not
            there, a line that is not JSON, a file that is not UTF-8.
    """
    return map("".join, open_documents(source, Source(column=column, config=config, split=split, seed=seed)))


def open_documents(source: str | Path | Iterable[Any], reading: Source = Source()) -> Iterator[Document]:
    """The documents of `open_text`, those of ``.txt`` files in pieces that are read when they are needed."""
    if not isinstance(source, (str, Path)):
        return _read_memory(source, reading)
    if str(source) == "stories":
        _refuse_unused(reading, "generated stories", "column", "config", "split")
        return iter(generate_stories(reading.seed + _FIRST_STORY_SEED))
    path = Path(source)
    try:
        path = path.expanduser()
        is_folder, is_file = bool(str(source)) and path.is_dir(), path.is_file()
    except (OSError, RuntimeError):  # longer than a name can be, or of nobody's home
        is_folder = is_file = False
    if is_folder or is_file:
        _refuse_unused(reading, "files", "config", "split")
    if is_folder:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise RequestError(f"expected .txt, .jsonl or .parquet files in {path}, found none")
        return chain.from_iterable(_read_file(file, reading.column) for file in files)
    if is_file:
        if path.suffix.lower() not in _SUFFIXES:
            raise RequestError(f"expected a .txt, .jsonl or .parquet file, got {path}")
        if path.suffix.lower() == ".txt":
            _refuse_unused(reading, "a .txt file", "column")
        return _read_file(path, reading.column)
    name = _hub_id(str(source))
    rows = read_hub(name, reading.config, reading.split, f"no text {name!r}: expected {_KINDS}")
    return _texts_of(rows, reading.column, name)


def _refuse_unused(reading: Source, what: str, *names: str) -> None:
    """Raise `RequestError` for what is not as usual and would change nothing."""
    for name in names:
        if getattr(reading, name) != Source.model_fields[name].default:
            raise RequestError(f"expected no `{name}` with {what}, where it changes nothing; try without it")


def name_source(source: str | Path | Iterable[Any]) -> str:
    """What results call a source: its path or id; for documents in memory, their type."""
    return str(source) if isinstance(source, (str, Path)) else f"{type(source).__name__} in memory"


def _hub_id(source: str) -> str:
    """A source that is no file, where it may be the id of a dataset."""
    is_text = len(source) > _LONGEST_ID or "\n" in source
    if not is_text and (Path(source).suffix.lower() in _SUFFIXES or is_path(source)):
        raise RequestError(f"no text at {source}: expected a file, a folder, a Hub dataset id or 'stories'")
    if is_text or len(source.split()) != 1:
        shown = f"{source[:40]!r}{'...' if len(source) > 40 else ''}"
        raise RequestError(f"expected {_KINDS}, got a text ({shown}); try [text]")
    return source


def is_path(source: str) -> bool:
    """Whether it can be nothing but a path; a Hub id looks like a relative one."""
    return Path(source).is_absolute() or source.startswith(("./", "../", "~"))


def _read_memory(source: Iterable[Any], reading: Source) -> Iterator[str]:
    """Strings, or records with a column of text: a list of them, a `datasets.Dataset`, a data frame."""
    if isinstance(source, Mapping):  # of splits
        if reading.split not in source:
            there = ", ".join(map(str, source))
            raise RequestError(f"expected texts or a table with a split {reading.split!r}, got {there}")
        source = source[reading.split]
    column, where = reading.column, type(source).__name__
    if not isinstance(source, Iterable):
        raise RequestError(f"expected {_KINDS}, or texts, got {where}")
    if hasattr(source, "columns") and not hasattr(source, "column_names"):  # a data frame, which iterates over columns
        names = [*map(str, source.columns)]
        if column not in names:
            raise _missing_column(column, names, where)
        source = ({column: text} for text in source[column])  # type: ignore[index]
    return _texts_of(source, column, where)


def _texts_of(items: Iterable[Any], column: str, where: str) -> Iterator[str]:
    replace_surrogates = surrogate_replacer()
    for place, item in enumerate(items):
        there = f"{where}, item {place}"
        if isinstance(item, Mapping):
            text = _text_of(item, column, there)
        elif isinstance(item, str):
            text = item
        else:
            raise RequestError(f"{there}: expected a text, got {type(item).__name__}; only measure takes tokens")
        yield replace_surrogates(text, there)


def _read_file(path: Path, column: str) -> Iterator[Document]:
    match path.suffix.lower():
        case ".txt":
            return _read_txt(path)
        case ".jsonl":
            return (_text_of(line.record, column, line.where) for line in read_lines(path))
        case _:
            return _read_parquet(path, column)


def _read_txt(path: Path) -> Iterator[Iterator[str]]:
    for _, pieces in groupby(_number_pieces(path), itemgetter(0)):
        yield (piece for _, piece in pieces)


def _number_pieces(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, long ones in pieces, with the number of their document; "" for what ends a document."""
    number, begins = 0, True
    with readable(path), path.open(encoding="utf-8-sig") as file:
        while piece := file.readline(_PIECE):
            # White space around a separator may be longer than a piece.
            while begins and not piece.endswith("\n") and SEPARATOR.startswith(piece.strip()):
                if not (more := file.readline(_PIECE)):
                    break
                piece += more
            separates = begins and piece.strip() == SEPARATOR
            yield number, "" if separates else piece
            number += separates
            begins = piece.endswith("\n")
    yield number, ""


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with readable(path):
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if column not in names:
                raise _missing_column(column, names, str(path))
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for record in batch.to_pylist():
                    yield _text_of(record, column, str(path))
    except pyarrow.ArrowInvalid as error:
        raise RequestError(f"cannot read {path} as parquet: {first_line(error)}") from None


def read_hub(name: str, config: str | None, split: str, refusal: str) -> Iterator[dict[str, Any]]:
    """The rows of a Hub dataset, read when they are needed; refused at once where there is no such dataset."""
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(f"{refusal} ({first_line(error)})") from None

    def unbroken() -> Iterator[dict[str, Any]]:
        try:
            yield from rows
        except OSError as error:
            raise JobError(f"reading {name} from the Hub broke off ({first_line(error)})") from error

    return unbroken()


def _text_of(record: Mapping[str, object], column: str, where: str) -> str:
    if column not in record:
        raise _missing_column(column, list(record), where)
    text = record[column]
    if not isinstance(text, str):
        raise RequestError(f"{where}: expected text in column {column!r}, got {type(text).__name__}")
    return text


def _missing_column(column: str, names: list[str], where: str) -> RequestError:
    if not names:
        return RequestError(f"{where}: no column {column!r}; there are none")
    likely = get_close_matches(column, names, 1, 0.0)[0]
    return RequestError(f"{where}: no column {column!r}; there are {', '.join(names)}; try `column={likely}`")
