"""How much memory there is."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil

from rectilinear.ranks import current

_GROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes of memory that this process can still have: what the machine, its control group and its limits leave.

    Of processes that share a job each has its part of that.
    """
    process = psutil.Process().memory_info()
    left: list[int] = [psutil.virtual_memory().available]
    with suppress(ImportError, OSError):  # neither of which every system has
        import resource

        used = {resource.RLIMIT_AS: process.vms, resource.RLIMIT_DATA: getattr(process, "data", process.rss)}
        limits = {kind: resource.getrlimit(kind)[0] for kind in used}
        left += [limits[kind] - used[kind] for kind in used if limits[kind] != resource.RLIM_INFINITY]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, own = line.split(":", 2)
            if kind in ("", "memory"):
                left += _left_in(_GROUPS / kind, own.lstrip("/"))
    return max(0, min(left)) // current().here


def return_memory() -> None:
    """Have the C library give back to the system what is free: glibc keeps matrices of up to 32 MiB in pieces."""
    with suppress(AttributeError, OSError, TypeError):  # of other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _left_in(root: Path, own: str) -> list[int]:
    """What a control group and those above it leave: they limit what is not in the system's cache of files."""
    left = []
    for folder in (root / own, *(root / own).parents):
        with suppress(OSError, ValueError, KeyError):  # of no limit, or of none that can be read
            name = "memory.max" if root == _GROUPS else "memory.limit_in_bytes"
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            names = ("anon", "shmem") if root == _GROUPS else ("total_rss", "total_shmem")
            used = sum(int(stat.get(name, 0)) for name in names)
            left.append(int((folder / name).read_text()) - used)
        if folder == root:
            break
    return left
