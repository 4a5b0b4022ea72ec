"""Results on disk that are whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rectilinear.errors import JobError


@contextmanager
def staged(out: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write results into, which become ``out``'s only when all of them are there.

    Files of ``out`` with other names stay, but for those that match a pattern in ``stale``; whatever
    was replaced or removed comes back when anything fails.

    Raises:
        JobError: they could not be written.
    """
    out = out.absolute()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=nearest_existing(out)) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            old.mkdir()
            yield new
            _move_all(new, old, out, stale)
    except OSError as error:
        raise JobError(f"cannot write to {out}: {error.strerror or error}") from error


def _move_all(new: Path, old: Path, out: Path, stale: Sequence[str]) -> None:
    """Move the files of one folder into another, those they replace and stale ones into a third; all or none."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    names = sorted(file.name for file in new.iterdir())
    outdated = sorted({file.name for pattern in stale for file in out.glob(pattern)} - set(names))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in outdated:
            os.replace(out / name, old / name)
        for name in names:
            if (out / name).exists():
                os.replace(out / name, old / name)
            os.replace(new / name, out / name)
    except BaseException:
        for name in outdated:
            if (old / name).exists():
                shutil.move(old / name, out / name)
        for name in names:
            if not (new / name).exists():
                (out / name).unlink(missing_ok=True)
            if (old / name).exists():
                shutil.move(old / name, out / name)
        for folder in missing:
            if folder.exists():
                folder.rmdir()
        raise


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
