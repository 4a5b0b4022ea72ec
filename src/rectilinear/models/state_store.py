"""Hidden states of all rows at one depth: in memory, or in a file where they would take too much of it."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from math import prod

import torch
from torch import Tensor

from rectilinear.errors import JobError, RequestError

#: Bytes of hidden states that are kept in memory.
IN_MEMORY = 2**26

# Bytes of a file at least, and what a place in one is a multiple of.
_PART, _ALIGNED = 2**26, 64


def has_room(size: int) -> bool:
    """Whether there is room for hidden states of some bytes, in memory or in a file."""
    return size <= IN_MEMORY or size < shutil.disk_usage(tempfile.gettempdir()).free


def check_room(size: int) -> None:
    """Raise a `RequestError` where there is no room for hidden states of some bytes."""
    if not has_room(size):
        folder = tempfile.gettempdir()
        there = shutil.disk_usage(folder).free
        raise RequestError(
            f"expected room for {size / 1e9:.1f} GB of hidden states in {folder}, got {there / 1e9:.1f} GB; try fewer "
            "`max_tokens`, or another folder in TMPDIR"
        )


class StateStore:
    """The hidden states of each batch at one depth, on the CPU; what is put in is copied, whatever it is kept in.

    Args:
        limit: bytes of memory that the states of all batches may take. More of them are in files without names in
            the folder for temporary files, which are gone with the store or its process; the system has them in memory
            too, as long as there is any to spare.

    Attributes:
        in_file: whether any of them are in a file.
    """

    def __init__(self, limit: int = IN_MEMORY) -> None:
        self.limit = limit
        self.in_file = False
        self._states: dict[int, Tensor] = {}
        self._in_memory = 0
        self._part = memoryview(b"")  # what is left of the last file

    def __getitem__(self, batch: int) -> Tensor:
        """The states of a batch, which are the store's own: not to be written over."""
        return self._states[batch]

    def __setitem__(self, batch: int, states: Tensor) -> None:
        """Keep the states of a batch.

        Raises:
            JobError: there is no room for them.
        """
        kept = self._states.get(batch)
        if kept is None or (kept.shape, kept.dtype) != (states.shape, states.dtype):
            kept = self._states[batch] = self._empty(states)
        kept.copy_(states)

    def _empty(self, like: Tensor) -> Tensor:
        size = prod(like.shape) * like.itemsize
        if self._in_memory + size <= self.limit or not size:
            self._in_memory += size
            return torch.empty_like(like, device="cpu", memory_format=torch.contiguous_format)
        if len(self._part) < size:
            self._part = memoryview(self._more(max(size, _PART)))
        mine, self._part = self._part[:size], self._part[-(-size // _ALIGNED) * _ALIGNED :]
        return torch.frombuffer(mine, dtype=like.dtype).view(like.shape)

    def _more(self, size: int) -> mmap.mmap:
        """Another file; all of it is there, as a disk that is full when it is written to would end the process.

        Raises:
            JobError: there is no room for it.
        """
        try:
            with tempfile.TemporaryFile(prefix="rectilinear-") as file:  # which is there as long as it is mapped
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    os.truncate(file.fileno(), size)
                self.in_file = True
                return mmap.mmap(file.fileno(), size)
        except OSError as error:
            reason = f"no room for hidden states in {tempfile.gettempdir()} ({error.strerror or error})"
            raise JobError(f"{reason}; try fewer `max_tokens`, or another folder in TMPDIR") from error

    def copy(self) -> StateStore:
        """Another store of the same states."""
        other = StateStore(self.limit)
        for batch, states in self._states.items():
            other[batch] = states
        return other
