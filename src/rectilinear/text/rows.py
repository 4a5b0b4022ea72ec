"""Documents to token rows, in one fixed way, so that anyone can check a number; in memory or in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rectilinear.errors import RequestError
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.settings import Rows
from rectilinear.text.tokens import Document, Tokenize, Tokens, tokenize_with, trim_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Packed rows of tokens.

    Attributes:
        ids: ``[rows, seq_len]`` int64.
        fingerprint: SHA-256 of the ids, row by row, as little-endian int64, in hexadecimal.
        documents: ``[rows, seq_len]`` int32, which document of the text each token is of, from 0.
        bos: id of the tokenizer's BOS; None where it has none, or it is not known.
        lead: id of the token that each row begins with, which is BOS and which nothing has to predict; None where rows
            begin wherever they were cut.
    """

    ids: Tensor
    fingerprint: str
    documents: Tensor
    bos: int | None = None
    lead: int | None = None

    @property
    def count(self) -> int:
        """How many documents the rows are of."""
        return int(self.documents[-1, -1] - self.documents[0, 0]) + 1


def read_rows(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, reading: Rows) -> TokenRows:
    """Documents as a model takes them: tokenised by its tokenizer, and packed with BOS where that was asked for.

    Raises:
        RequestError: not even one row, or a tokenizer without BOS where rows are to begin with it.
    """
    tokenize, bos = tokenize_with(tokenizer), getattr(tokenizer, "bos_token_id", None)
    if reading.bos == "row" and bos is None:
        raise RequestError("expected a tokenizer with a BOS token for `bos=row`, got one without; try `bos=document`")

    def without_bos(documents: Iterable[Document]) -> Iterator[Tokens]:
        for ids, begins in tokenize(documents):
            yield Tokens(ids[1:] if begins and [*ids[:1]] == [bos] else ids, begins)

    how = without_bos if reading.bos == "none" else tokenize
    lead = bos if reading.bos == "row" else None
    return replace(pack_rows(documents, how, reading.seq_len, reading.max_tokens, lead), bos=bos)


def pack_rows(
    documents: Iterable[Document], tokenize: Tokenize, seq_len: int, max_tokens: int, lead: int | None = None
) -> TokenRows:
    """Pack documents into rows of equal length.

    Documents are trimmed of surrounding white space, empty ones skipped, each tokenised with the tokenizer's own
    special tokens, concatenated in order and cut into rows of ``seq_len``; the remainder is dropped and the first
    ``max_tokens // seq_len`` rows are kept. Documents are read 64 at a time and long ones piece by piece, no further
    than needed.

    With ``lead``, the id of BOS, each row is that token and the next ``seq_len - 1`` of the text.

    Raises:
        RequestError: not even one row.
    """
    first = 0 if lead is None else 1
    if seq_len <= first or max_tokens < seq_len:
        raise RequestError(f"expected `max_tokens` >= `seq_len` >= {first + 1}, got {max_tokens} and {seq_len}")
    begins: list[int] = []  # where in the text's tokens its documents do

    def noted(pieces: Iterable[Tokens]) -> Iterator[Tokens]:
        place = 0
        for piece in pieces:
            if piece.begins:
                begins.append(place)
            place += len(piece.ids)
            yield piece

    pieces = noted(tokenize(trim_documents(documents)))
    cut = torch.cat([*_cut(pieces, seq_len - first, max_tokens // seq_len)])
    starts = torch.tensor(begins)
    document = torch.searchsorted(starts, torch.arange(cut.numel()), right=True, out_int32=True).view_as(cut) - 1
    if lead is not None:
        cut = torch.cat([torch.full((len(cut), 1), lead), cut], 1)
        document = torch.cat([document[:, :1], document], 1)
    return TokenRows(cut, fingerprint([cut]), document, lead, lead)


def stream_rows(
    documents: Iterable[Document], tokenize: Tokenize, seq_len: int, max_rows: int | None = None
) -> Iterator[Tensor]:
    """The rows of `pack_rows`, some at a time: int64 ``[rows, seq_len]``, in all one at least, ``max_rows`` at most."""
    return _cut(tokenize(trim_documents(documents)), seq_len, max_rows)


def _cut(pieces: Iterable[Tokens], seq_len: int, max_rows: int | None) -> Iterator[Tensor]:
    tokens: list[int] = []
    done = 0
    for piece in pieces:
        tokens.extend(piece.ids)
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
