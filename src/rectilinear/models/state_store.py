"""Hidden states of all rows at one depth: in memory, or in a file where they would take too much of it."""

from __future__ import annotations

import shutil
import tempfile
from math import prod
from typing import IO, Any

import numpy
import psutil
import torch
from torch import Tensor

from rectilinear.errors import JobError

# The share of the memory that is free which one store may take.
_SHARE = 0.125


class StateStore:
    """The hidden states of each batch at one depth, on the CPU; what is put in is copied, whatever it is kept in.

    Args:
        limit: bytes of memory that the states of all batches may take; more of them are in a file without a name in
            the folder for temporary files, which is gone with the store or its process. An eighth of the memory that
            is free when not given.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = int(_SHARE * psutil.virtual_memory().available) if limit is None else limit
        self._states: dict[int, Tensor] = {}
        self._file: IO[bytes] | None = None

    @property
    def in_file(self) -> bool:
        """Whether they are in a file."""
        return self._file is not None

    def expect(self, size: int) -> None:
        """Prepare for this many bytes in all.

        Raises:
            JobError: there is not as much space.
        """
        if size <= self.limit:
            return
        folder = tempfile.gettempdir()
        if size > (free := shutil.disk_usage(folder).free):
            raise JobError(
                f"expected {size / 1e9:.1f} GB in {folder} for hidden states, got {free / 1e9:.1f} GB; try fewer "
                "`max_tokens`, or another folder in TMPDIR"
            )
        self._file = tempfile.TemporaryFile(prefix="rectilinear-", dir=folder)  # noqa: SIM115  # for as long as the store

    def __getitem__(self, batch: int) -> Tensor:
        """The states of a batch, which are the store's own: not to be written over."""
        return self._states[batch]

    def __setitem__(self, batch: int, states: Tensor) -> None:
        kept = self._states.get(batch)
        if kept is None or (kept.shape, kept.dtype) != (states.shape, states.dtype):
            kept = self._states[batch] = self._empty(states)
        kept.copy_(states)

    def _empty(self, like: Tensor) -> Tensor:
        if self._file is None:
            return torch.empty_like(like, device="cpu", memory_format=torch.contiguous_format)
        start = self._file.seek(0, 2)
        size = prod(like.shape) * like.itemsize
        self._file.truncate(start + size)
        mapped: Any = numpy.memmap(self._file, numpy.uint8, "r+", start, (size,))
        return torch.from_numpy(mapped).view(like.dtype).view(like.shape)

    def copy(self) -> StateStore:
        """Another store of the same states."""
        other = StateStore(self.limit)
        other.expect(sum(states.nbytes for states in self._states.values()))
        for batch, states in self._states.items():
            other[batch] = states
        return other
