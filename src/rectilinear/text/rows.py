"""Documents to token rows, in one fixed way, so that anyone can check a number; in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rectilinear.errors import RequestError
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.tokens import Document, Tokenize, trim_documents


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Packed rows of tokens.

    Attributes:
        ids: ``[rows, seq_len]`` int64.
        fingerprint: SHA-256 of the ids, row by row, as little-endian int64, in hexadecimal.
    """

    ids: Tensor
    fingerprint: str


def pack_rows(documents: Iterable[Document], tokenize: Tokenize, seq_len: int, max_tokens: int) -> TokenRows:
    """Pack documents into rows of equal length.

    Documents are trimmed of surrounding white space, empty ones skipped, each tokenised with the tokenizer's own
    special tokens, concatenated in order and cut into rows of ``seq_len``; the remainder is dropped and the first
    ``max_tokens // seq_len`` rows are kept. Documents are read 64 at a time and long ones piece by piece, no further
    than needed.

    Raises:
        RequestError: not even one row.
    """
    if seq_len < 1 or max_tokens < seq_len:
        raise RequestError(f"expected `max_tokens` >= `seq_len` >= 1, got {max_tokens} and {seq_len}")
    packed = torch.cat([*stream_rows(documents, tokenize, seq_len, max_tokens // seq_len)])
    return TokenRows(packed, fingerprint([packed]))


def stream_rows(
    documents: Iterable[Document], tokenize: Tokenize, seq_len: int, max_rows: int | None = None
) -> Iterator[Tensor]:
    """The rows of `pack_rows`, some at a time: int64 ``[rows, seq_len]``, in all one at least, ``max_rows`` at most."""
    tokens: list[int] = []
    done = 0
    for ids in tokenize(trim_documents(documents)):
        tokens.extend(ids)
        rows = len(tokens) // seq_len if max_rows is None else min(len(tokens) // seq_len, max_rows - done)
        if rows:
            yield torch.tensor(tokens[: rows * seq_len], dtype=torch.int64).view(rows, seq_len)
            tokens, done = tokens[rows * seq_len :], done + rows
        if done == max_rows:
            return
    if not (done or tokens):
        raise RequestError(f"expected text for at least one row of {seq_len} tokens, got none: there is no text in it")
    if not done:
        raise RequestError(
            f"expected text for at least one row of {seq_len} tokens, got {len(tokens)} tokens; try a smaller `seq_len`"
        )


class RowFile(NamedTuple):
    """What a file of rows contains: how many, of how many tokens, with the fingerprint of `TokenRows`."""

    rows: int
    seq_len: int
    fingerprint: str

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.rows * self.seq_len * 4


def write_rows(path: Path, chunks: Iterable[Tensor]) -> RowFile:
    """Write rows, int64 ``[rows, seq_len]`` some at a time, as little-endian int32 one after another."""
    rows = seq_len = 0
    with path.open("wb") as file:

        def saved() -> Iterator[Tensor]:
            nonlocal rows, seq_len
            for chunk in chunks:
                rows, seq_len = rows + len(chunk), chunk.shape[1]
                file.write(chunk.to(torch.int32).numpy().astype("<i4", copy=False).tobytes())
                yield chunk

        digest = fingerprint(saved())
    return RowFile(rows, seq_len, digest)


def open_rows(path: Path, contents: RowFile) -> Tensor:
    """``[rows, seq_len]`` int32, read from the file where and when they are needed."""
    shape = contents.rows, contents.seq_len
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=torch.int32).view(shape)
