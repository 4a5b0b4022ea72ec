"""Packed rows on disk, for texts that are larger than memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rectilinear.text.fingerprint import fingerprint


class RowFile(NamedTuple):
    """What is in a file of rows.

    Attributes:
        rows: how many.
        seq_len: tokens in each.
        fingerprint: as `rectilinear.text.rows.TokenRows` has it.
    """

    rows: int
    seq_len: int
    fingerprint: str

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.rows * self.seq_len * 4


def write_rows(path: Path, chunks: Iterable[Tensor]) -> RowFile:
    """Write rows, int64 ``[rows, seq_len]`` some at a time, as little-endian int32 one after another.

    Raises:
        OSError: they could not be written.
    """
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
    size = contents.rows * contents.seq_len
    flat = torch.from_file(str(path), shared=False, size=size, dtype=torch.int32)
    return flat.view(contents.rows, contents.seq_len)
