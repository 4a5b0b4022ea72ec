"""The protocol of runs: claim a folder, stage results, publish all of them or nothing, resume, say where to go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rectilinear.errors import JobError, RequestError
from rectilinear.settings import BatchSize, Settings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

# Folders that this process has claimed.
_claimed: set[Path] = set()


class Output(Settings):
    """Where results go."""

    out: Path | None = None
    """Folder for the results."""
    overwrite: bool = False
    """Write into a folder that is not empty."""


class Runtime(Output):
    """Where results go, and how much runs at once."""

    batch_size: BatchSize = "auto"
    """Rows in a forward pass; 'auto' halves it when memory runs out."""


class ResumableOutput(Output):
    """Where results go that a stopped run has a part of."""

    resume: bool = False
    """Go on from what a stopped run of the same request left in the folder."""


class Interrupted(KeyboardInterrupt):
    """A run that was interrupted: what there is to go on from, and the exit code."""

    def __init__(self, kept: str, code: int = 130) -> None:
        super().__init__(kept)
        self.code = code


@contextmanager
def claim(
    out: str | Path | None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    kept: Callable[[Path], str | None] = lambda out: None,
) -> Iterator[Path | None]:
    """Hold an output folder while open, so that no other run writes into it; a process that dies lets go of it.

    Runs are kept apart by a lock beside the folder, where the system has such locks (`fcntl.flock`: Unix, and most file
    systems of networks); elsewhere it is up to the user that no two runs have one folder.

    Args:
        out: the folder, which need not be there; None for a run that writes nothing.
        overwrite: whether it may hold other results.
        resume: whether to go on from an earlier part of the run, where it holds one.
        kept: what to say of the folder to whoever interrupts the run; None where there is nothing to go on from.

    Yields:
        The folder, absolute.

    Raises:
        RequestError: it is to be both overwritten and resumed; it is not empty and may be neither, is no folder,
            cannot be written, or another run has it.
        Interrupted: for a `KeyboardInterrupt`, where there is something to go on from.
    """
    if resume and overwrite:
        raise RequestError("expected `resume` or `overwrite`, got both")
    if out is None:
        yield None
        return
    folder = Path(out).expanduser().absolute()
    _check_folder(folder, overwrite, resume, kept)
    with ExitStack() as stack:
        if folder not in _claimed:
            stack.enter_context(_lock(folder))
        try:
            yield folder
        except KeyboardInterrupt as interrupt:
            message = kept(folder)
            if message is None or isinstance(interrupt, Interrupted):
                raise
            raise Interrupted(message) from None


def _check_folder(
    folder: Path, overwrite: bool, resume: bool = False, kept: Callable[[Path], str | None] = lambda out: None
) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"expected a folder for `out`, got the file {folder}")
    if folder.exists() and contents(folder) and not overwrite:
        found = kept(folder)
        if not (resume and found):
            what = "holds no run to resume; try" if resume else f"is not empty; try{' `resume`,' if found else ''}"
            raise RequestError(f"expected an empty folder for `out`, {folder} {what} another, or `overwrite`")
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        raise RequestError(f"expected a folder for `out`, got {folder} inside the file {nearest}")
    if not os.access(nearest, os.W_OK):
        raise RequestError(f"cannot write to {nearest} for `out={folder}`")


def contents(folder: Path) -> list[Path]:
    """What a folder holds, but for the lock and the staging of runs, which may be in it; see `_workplace`."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.lock|\..+\.staging-\w{{8}}")
    return [path for path in folder.iterdir() if not ours.fullmatch(path.name)]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock beside a folder, and clean up after runs that are gone."""
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)  # where the lock is must not depend on what else there is
    place = _workplace(folder)
    file = place / f".{folder.name}.lock"
    try:
        with ExitStack() as stack:
            if fcntl:
                stack.enter_context(_acquire(file, folder))
                stack.callback(file.unlink, missing_ok=True)  # while it is held: see _acquire
            _claimed.add(folder)
            stack.callback(_claimed.discard, folder)
            left = re.compile(rf"\.{re.escape(folder.name)}\.staging-\w{{8}}")
            for path in filter(lambda path: left.fullmatch(path.name), place.iterdir()):
                shutil.rmtree(path, ignore_errors=True)
            yield
    finally:
        with suppress(OSError):  # one that is not empty, and those around it
            for parent in made:
                parent.rmdir()


def _workplace(folder: Path) -> Path:
    """Where lock and staging are: beside a folder; in it where that may not be written, as beside a mounted volume."""
    beside = nearest_existing(folder.parent)
    return folder if folder.is_dir() and not os.access(beside, os.W_OK) else beside


def _acquire(file: Path, folder: Path) -> IO[str]:
    """A lock file, open and locked.

    Raises:
        RequestError: another run has it.
    """
    while True:
        held = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with held:
                held.seek(0)
                holder = held.read().strip() or "of an unknown process"
            raise RequestError(
                f"another run ({holder}) is writing to {folder}; wait for it, or try another `out`"
            ) from None
        except OSError:  # a file system without locks
            return held
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held.fileno()), file.stat()):
                held.truncate(0)
                held.write(f"process {os.getpid()}")
                held.flush()
                return held
        held.close()  # its holder removed the file after we had opened it: whoever comes next makes another


@contextmanager
def stage(out: Path, stale: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to write results into, which become ``out``'s only when all of them are there.

    Files of ``out`` with other names stay, but for those that match a pattern in ``stale``; whatever
    was replaced or removed comes back when anything fails.

    Raises:
        JobError: they could not be written.
    """
    out = out.absolute()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.staging-", dir=_workplace(out)) as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            new.mkdir()
            old.mkdir()
            yield new
            _publish(new, old, out, stale)
    except OSError as error:
        raise JobError(f"cannot write to {out}: {error.strerror or error}") from error


def _publish(new: Path, old: Path, out: Path, stale: Sequence[str]) -> None:
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
        for name in names:
            if not (new / name).exists():
                _remove(out / name)
        for name in {*names, *outdated}:
            if (old / name).exists():
                shutil.move(old / name, out / name)
        for folder in missing:
            if folder.exists():
                folder.rmdir()
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to go on with a run of another request.

    Args:
        folder: of the run.
        found: what that run was asked for, as JSON has it.
        wanted: what is asked for now.

    Raises:
        RequestError: they differ.
    """
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if names:
        changes = ", ".join(f"{name} {found.get(name)!r} -> {wanted.get(name)!r}" for name in names)
        raise RequestError(
            f"expected the request of the run in {folder} to resume it, got another ({changes}); "
            "try the same options, another `out`, or `overwrite`"
        )


def read_request(file: Path) -> dict[str, Any]:
    """What a run noted of its request in a JSON file; empty where there is none that can be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_request(file: Path, request: Mapping[str, Any]) -> None:
    """Note a run's request in a JSON file, for `read_request`; records are written as in results."""
    text = json.dumps(request, indent=2, default=lambda record: record.model_dump(mode="json"))
    file.write_text(text + "\n", encoding="utf-8")


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
