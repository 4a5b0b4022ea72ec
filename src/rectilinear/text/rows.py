"""Documents to token rows, in one fixed way, so that anyone can check a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from rectilinear.errors import RequestError
from rectilinear.text.fingerprint import fingerprint

#: Token ids of each of some documents, special tokens included.
Tokenize = Callable[[list[str]], Sequence[Sequence[int]]]


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Packed rows of tokens.

    Attributes:
        ids: ``[rows, seq_len]`` int64.
        fingerprint: SHA-256 of the ids, row by row, as little-endian int64, in hexadecimal.
    """

    ids: Tensor
    fingerprint: str


def pack_rows(documents: Iterable[str], tokenize: Tokenize, seq_len: int, max_tokens: int) -> TokenRows:
    """Pack documents into rows of equal length.

    Documents are trimmed of surrounding white space, empty ones skipped, each tokenised with the
    tokenizer's own special tokens, concatenated in order and cut into rows of ``seq_len``; the
    remainder is dropped and the first ``max_tokens // seq_len`` rows are kept. Documents are read
    64 at a time, no further than needed.

    Raises:
        RequestError: not even one row.
    """
    if seq_len < 1 or max_tokens < seq_len:
        raise RequestError(f"expected --max-tokens >= --seq-len >= 1, got {max_tokens} and {seq_len}")
    chunks = [*stream_rows(documents, tokenize, seq_len, max_tokens // seq_len)]
    packed = torch.cat(chunks)
    return TokenRows(packed, fingerprint([packed]))


def stream_rows(
    documents: Iterable[str], tokenize: Tokenize, seq_len: int, max_rows: int | None = None
) -> Iterator[Tensor]:
    """The rows of `pack_rows`, some at a time: int64 ``[rows, seq_len]``, in all ``max_rows`` at most.

    Raises:
        RequestError: not even one row, when the text has come to its end.
    """
    texts = (text for text in map(str.strip, documents) if text)
    tokens: list[int] = []
    done = 0
    for group in _groups(texts, 64):
        for ids in tokenize(group):
            tokens.extend(ids)
        rows = len(tokens) // seq_len
        if max_rows is not None:
            rows = min(rows, max_rows - done)
        if rows:
            yield torch.tensor(tokens[: rows * seq_len], dtype=torch.int64).view(rows, seq_len)
            tokens, done = tokens[rows * seq_len :], done + rows
        if done == max_rows:
            return
    if not done:
        raise RequestError(
            f"expected text for at least one row of {seq_len} tokens, got {len(tokens)} tokens; try a shorter --seq-len"
        )


def _groups(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while group := list(islice(texts, size)):
        yield group
