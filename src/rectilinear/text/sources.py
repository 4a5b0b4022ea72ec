"""Text sources: files, folders, Hub datasets and generated stories, as streams of documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.text.jsonl import read_records, readable
from rectilinear.text.stories import generate_stories

#: The line that separates documents in a ``.txt`` file.
SEPARATOR = "<|endoftext|>"

# Added to the seed of generated text, which stays what it was when the generator's 0 was kept for training.
_FIRST_STORY_SEED = 1

_SUFFIXES = (".txt", ".jsonl", ".parquet")


def open_text(
    source: str | Path,
    *,
    column: str = "text",
    config: str | None = None,
    split: str = "train",
    seed: int = 0,
) -> Iterator[str]:
    """Stream the documents of a text source, in order.

    Args:
        source: a ``.txt`` file (documents separated by a line ``<|endoftext|>``), a ``.jsonl`` or
            ``.parquet`` file, a folder of these (in order of name), a Hub dataset id, or
            ``"stories"`` (generated, endless).
        column: where the text is in jsonl, parquet and Hub datasets.
        config: configuration of a Hub dataset.
        split: split of a Hub dataset.
        seed: which generated stories.

    Raises:
        RequestError: there is no such source; at once. While reading: a column that is not
            there, a line that is not JSON, a file that is not UTF-8.
    """
    if str(source) == "stories":
        return generate_stories(seed + _FIRST_STORY_SEED)
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise RequestError(f"expected .txt, .jsonl or .parquet files in {path}, found none")
        return chain.from_iterable(_read_file(file, column) for file in files)
    if path.is_file():
        if path.suffix.lower() not in _SUFFIXES:
            raise RequestError(f"expected a .txt, .jsonl or .parquet file, got {path}")
        return _read_file(path, column)
    if path.suffix.lower() in _SUFFIXES or path.is_absolute() or str(source).startswith(("./", "../", "~")):
        raise RequestError(f"no text at {source}: expected a file, a folder, a Hub dataset id or 'stories'")
    return _read_hub(str(source), column, config, split)


def _read_file(path: Path, column: str) -> Iterator[str]:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    with readable(path):
        yield from readers[path.suffix.lower()](path, column)


def _read_txt(path: Path, column: str) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            if line.strip() == SEPARATOR:
                yield "".join(lines)
                lines = []
            else:
                lines.append(line)
    yield "".join(lines)


def _read_jsonl(path: Path, column: str) -> Iterator[str]:
    for where, record in read_records(path):
        yield _text_of(record, column, where)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise RequestError(f"cannot read {path} as parquet: {first_line(error)}") from None
    names = file.schema_arrow.names
    if column not in names:
        raise _missing_column(column, names, str(path))
    try:
        for batch in file.iter_batches(batch_size=256, columns=[column]):
            for record in batch.to_pylist():
                yield _text_of(record, column, str(path))
    except pyarrow.ArrowInvalid as error:
        raise RequestError(f"cannot read {path} as parquet: {first_line(error)}") from None


def _read_hub(source: str, column: str, config: str | None, split: str) -> Iterator[str]:
    import datasets

    try:
        records = datasets.load_dataset(source, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"no text {source!r}: expected a file, a folder, 'stories' or a Hub dataset id ({first_line(error)})"
        ) from None
    return _stream_hub(records, column, source)


def _stream_hub(records: Iterable[dict[str, object]], column: str, source: str) -> Iterator[str]:
    try:
        for record in records:
            yield _text_of(record, column, source)
    except OSError as error:
        raise JobError(f"reading {source} from the Hub broke off ({first_line(error)})") from error


def _text_of(record: dict[str, object], column: str, where: str) -> str:
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
    there = f"there are {', '.join(names)}; try --column {likely}"
    return RequestError(f"{where}: no column {column!r}; {there}")
