"""Where text comes from, and how it becomes rows of tokens."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from rectilinear.settings import Settings


class Source(Settings):
    """How a text source is read; see `rectilinear.text.sources.open_text`."""

    column: str = "text"
    """Column of the text in .jsonl, .parquet and Hub datasets."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str = "train"
    """Split of a Hub dataset."""
    seed: NonNegativeInt = 0
    """Seed of everything that is drawn: generated stories, weights, orders and samples."""


class Rows(Source):
    """How text becomes ``max_tokens // seq_len`` rows of ``seq_len`` tokens; see `rectilinear.text.rows.pack_rows`."""

    max_tokens: PositiveInt = 100_000
    """Tokens of the text to take, at most."""
    seq_len: PositiveInt = 256
    """Tokens in a row."""
