"""Where text comes from, and how it becomes rows of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from rectilinear.settings import Settings


class Seeded(Settings):
    """What everything that is drawn begins with."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything that is drawn: generated stories, weights, orders and samples."""


class Source(Seeded):
    """How a text source is read; see `rectilinear.text.sources.open_text`."""

    column: str = "text"
    """Column of the text in .jsonl, .parquet and Hub datasets."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""


class Rows(Source):
    """How text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens; see `rectilinear.text.rows.pack_rows`."""

    max_tokens: PositiveInt = 100_000
    """Tokens of the text to take, at most."""
    seq_len: PositiveInt = 256
    """Tokens in a row."""
    bos: Literal["document", "row", "none"] = "document"
    """Where the beginning-of-sequence token (BOS) stands: at the beginning of documents, where the tokenizer puts it
    there; of every row; or nowhere."""


class TaskSource(Settings):
    """Where the questions of a task are; see `rectilinear.text.tasks.read_task`."""

    data: str | Path | None = None
    """Folder with TASK/train.jsonl and TASK/val.jsonl, or a Hub id; SuperGLUE's on the Hub when not given. For reward
    a .jsonl of chosen, rejected and perhaps prompt, or a folder with train.jsonl and val.jsonl."""
    max_examples: PositiveInt | None = None
    """Lines of each data file to read, at most, from the first."""
