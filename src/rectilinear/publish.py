"""Who writes into a folder, and how results get there: all at once, whenever the process that does it is killed.

One process at a time holds a folder. It writes results into a folder of their own, the staging, and flushes them to
disk. Where the folder they are for does not exist, the staging is renamed; where it does, see `rectilinear.journal`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO

from rectilinear.errors import JobError, RequestError
from rectilinear.journal import JOURNAL, Moves, flush, flush_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment, unused-ignore]

# The lines of a lock: who has it; a hash of its command; that the folder held nothing then; a name that is about to be
# in the folder.
_PROCESS, _COMMAND, _EMPTY, _FILE = "process ", "command ", "empty", "file "

# Folders that this process writes into.
_held: dict[Path, Hold] = {}


@dataclass(frozen=True)
class Hold:
    """A folder that this process writes into.

    Attributes:
        folder: absolute; it need not be there.
        place: where the lock is, and what is not yet moved into the folder: beside it, or in it where that may not be
            written or is another file system, as beside a mounted volume.
        lock: the open file that keeps others out; None where the system has no such locks.
        left: what a process that was killed had moved, or was about to move, into a folder that was empty when it
            began; None where there was no such process, or it ran another command.
    """

    folder: Path
    place: Path
    lock: IO[str] | None
    left: frozenset[str] | None

    def note(self, names: Iterable[str]) -> None:
        """Note what is about to be in the folder, for the next one if this process is killed."""
        if self.lock:
            _note(self.lock, (f"{_FILE}{name}" for name in names))


@contextmanager
def hold(folder: Path) -> Iterator[Hold]:
    """Keep other processes from writing into a folder while open; a process that dies lets go of it.

    The lock is a file beside the folder and is locked by `fcntl.flock`, which Unix has, and most file systems of
    networks; elsewhere it is up to the user that no two runs have one folder. A folder in one that this process holds
    is held with it.

    Raises:
        RequestError: another process has it.
        JobError: the lock cannot be written, or what a killed run was moving into the folder cannot be finished.
    """
    folder = folder.resolve()
    for outer in (folder, *folder.parents):
        if outer in _held:
            yield _held[outer]
            return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with ExitStack() as stack:
            try:
                held = stack.enter_context(_held_by_us(folder))
            except OSError as error:
                raise JobError(f"cannot write to {folder}: {error.strerror or error}") from error
            yield held
    finally:
        if not (folder.is_dir() and any(folder.iterdir())):
            with suppress(OSError):  # one that is not empty, and those around it
                for path in made:
                    if path.exists():
                        path.rmdir()


@contextmanager
def _held_by_us(folder: Path) -> Iterator[Hold]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    place, left = _place(folder), None
    with ExitStack() as stack:
        lock, noted = _acquire(place / f".{folder.name}.lock", folder) if fcntl else None, False
        if lock:
            stack.enter_context(lock)
            noted, left = _take_over(lock, empty=not (folder.is_dir() and contents(folder)))
        _held[folder] = Hold(folder, place, lock, left)
        stack.callback(_held.pop, folder)
        try:
            _settle(_held[folder])
            yield _held[folder]
        except BaseException:
            if lock and not noted:  # else what a killed run noted stays, for its command to be run again
                _unlink(lock)
            raise
        if lock:
            _unlink(lock)


def _unlink(lock: IO[str]) -> None:
    """Remove a lock while it is held: see _acquire."""
    with suppress(OSError):
        Path(lock.name).unlink()


def _place(folder: Path) -> Path:
    beside = folder.parent
    if folder.is_dir() and not (os.access(beside, os.W_OK) and folder.stat().st_dev == beside.stat().st_dev):
        return folder
    return beside


def _acquire(file: Path, folder: Path) -> IO[str] | None:
    """A lock file, open and locked; None on a file system without locks.

    Raises:
        RequestError: another process has it.
    """
    while True:
        lock = file.open("a+", encoding="utf-8", errors="surrogateescape")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with lock:
                lock.seek(0)
                holders = [line for line in lock.read().splitlines() if line.startswith(_PROCESS)]
                holder = holders[-1] if holders else "of an unknown process"
            raise RequestError(
                f"another run ({holder}) is writing to {folder}; wait for it, or try another `out`"
            ) from None
        except OSError:
            lock.close()
            file.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                return lock
        lock.close()  # its holder removed the file after we had opened it: whoever comes next makes another


def _take_over(lock: IO[str], empty: bool) -> tuple[bool, frozenset[str] | None]:
    """Note who has a lock now, and of which folder; whether a killed run had noted anything, and `Hold.left`.

    Lines are only added, so that what a killed run noted is there whenever the next one is killed.
    """
    lock.seek(0)
    noted = lock.read().splitlines()
    command = _COMMAND + sha256("\0".join([os.getcwd(), *sys.argv]).encode(errors="surrogateescape")).hexdigest()
    left = None
    if {_EMPTY, command} <= {*noted}:
        left = frozenset(line.removeprefix(_FILE) for line in noted if line.startswith(_FILE))
    _note(lock, [f"{_PROCESS}{os.getpid()}", command, *([_EMPTY] if empty else [])])
    return bool(noted), left


def _note(lock: IO[str], lines: Iterable[str]) -> None:
    lock.write("".join(f"{line}\n" for line in lines))
    lock.flush()
    os.fsync(lock.fileno())


def contents(folder: Path) -> list[Path]:
    """What a folder holds, but for the lock and the staging of runs, which may be in it; see `Hold.place`."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.(lock|staging-\w{{8}})")
    return [path for path in folder.iterdir() if not ours.fullmatch(path.name)]


def write_whole(file: Path, content: bytes, writer: str = "") -> None:
    """Write a file whole or not at all, which may replace another.

    What a kill leaves is written over next time, as it always has one name; of each ``writer``, where there are several
    at once.

    Raises:
        OSError: it could not be written.
    """
    scratch = file.with_name(f".{file.name}{writer}.partial")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest folder above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


@contextmanager
def stage(out: Path, stale: Iterable[str] = ()) -> Iterator[Path]:
    """A folder to write results into, which become ``out``'s only when all of them are there and on disk.

    Args:
        out: the folder. Files of other names in it stay.
        stale: names of files and folders of an earlier result, which go.

    Raises:
        JobError: they could not be written; what was there before is there again.
        RequestError: another process writes into the folder.
    """
    out = out.resolve()
    try:
        with hold(out) as held:
            staging = Path(tempfile.mkdtemp(prefix=f".{held.folder.name}.staging-", dir=held.place))
            try:
                (staging / "new").mkdir()
                yield staging / "new"
                _publish(staging, held, out, stale)
            finally:
                if not (staging / JOURNAL).exists():
                    shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise JobError(f"cannot write to {out}: {error.strerror or error}") from error


def _settle(held: Hold) -> None:
    """Finish what killed runs were moving into a folder, and remove what else they left beside it.

    Raises:
        JobError: it cannot be finished.
    """
    if held.lock is None:  # whoever it is of may be there
        return
    ours = re.compile(rf"\.{re.escape(held.folder.name)}\.staging-\w{{8}}")
    for staging in filter(lambda path: ours.fullmatch(path.name), [*held.place.iterdir()]):
        if staging.lstat().st_uid != os.getuid():  # someone else's could have anything moved anywhere
            continue
        try:
            if (staging / JOURNAL).exists() and (moves := Moves.read(staging, held.folder)).out.exists():
                moves.carry_out()
        except (OSError, ValueError) as error:
            raise JobError(
                f"cannot finish what a run that was killed was moving to {held.folder}: "
                f"{getattr(error, 'strerror', None) or error}; its files are in {staging}"
            ) from error
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, held: Hold, out: Path, stale: Iterable[str]) -> None:
    new = staging / "new"
    flush(new)
    names = sorted(path.name for path in new.iterdir())
    held.note(names if out == held.folder else [out.relative_to(held.folder).parts[0]])
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(new, out)
        flush_folder(out.parent)
        return
    gone = sorted(name for name in {*stale} - {*names} if os.path.lexists(out / name))
    (staging / "old").mkdir()
    moves = Moves(staging, out, names, gone)
    moves.write(held.folder)
    try:
        moves.carry_out()
    except BaseException:
        moves.undo()
        raise
