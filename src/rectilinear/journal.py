"""Moving files into a folder that has files already, so that a kill between two moves loses and mixes nothing.

The JSON files, by which a folder is known for a result, are moved away first and come last, so that what is in between
is no result. A journal says what is to be moved: while it is there, the next run finishes the moves.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: In the folder that files are moved from. While it is there, the moves are under way.
JOURNAL = "journal.json"


@dataclass(frozen=True)
class Moves:
    """What a journal says: files from the staging to a folder, and files of the folder that these replace or that go.

    Each step can be taken again: a kill may come between any two of them.
    """

    staging: Path
    out: Path
    new: list[str]
    gone: list[str]

    @classmethod
    def read(cls, staging: Path, folder: Path) -> Moves:
        """Those of a journal; the folder may have been moved since, with what is beside it.

        Raises:
            ValueError: it is none, or names what is not in the folder.
        """
        written = json.loads((staging / JOURNAL).read_text(encoding="utf-8"))
        try:
            out, new, gone = written["out"], [*written["new"]], [*written["gone"]]
            plain = all(Path(name).name == name for name in [*new, *gone])
            inside = not Path(out).is_absolute() and ".." not in Path(out).parts
        except (KeyError, TypeError, AttributeError):
            plain = inside = False
        if not (plain and inside):
            raise ValueError(f"{JOURNAL} is none of ours")
        return cls(staging, folder / out, new, gone)

    def write(self, folder: Path) -> None:
        """Write the journal, whole or not."""
        draft = self.staging / "draft"
        with draft.open("w", encoding="utf-8") as file:
            json.dump({"out": str(self.out.relative_to(folder)), "new": self.new, "gone": self.gone}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.staging / JOURNAL)
        flush_folder(self.staging)

    def carry_out(self) -> None:
        """Move everything, from wherever an earlier attempt ended."""
        marks, others = self._by_kind()
        for name in reversed(marks):
            self._put_away(name)
        for name in others:
            self._put_away(name)
            _rename(self.staging / "new" / name, self.out / name)
        flush_folder(self.out)
        for name in marks:
            _rename(self.staging / "new" / name, self.out / name)
        flush_folder(self.out)
        (self.staging / JOURNAL).unlink(missing_ok=True)

    def undo(self) -> None:
        """Have everything where it was, so that it can be carried out again."""
        marks, others = self._by_kind()
        for name in [*reversed(marks), *others]:
            if name in self.new and not os.path.lexists(self.staging / "new" / name):
                _rename(self.out / name, self.staging / "new" / name)
        for name in [*others, *marks]:
            _rename(self.staging / "old" / name, self.out / name)
        flush_folder(self.out)
        (self.staging / JOURNAL).unlink(missing_ok=True)

    def _by_kind(self) -> tuple[list[str], list[str]]:
        """Names of files that make a folder a result, that of a checkpoint last, and of all others."""
        names = sorted([*self.new, *self.gone], key=lambda name: (name == "config.json", name))
        marks = [name for name in names if name.endswith(".json")]
        return marks, [name for name in names if name not in marks]

    def _put_away(self, name: str) -> None:
        if name in self.gone or os.path.lexists(self.staging / "new" / name):
            _rename(self.out / name, self.staging / "old" / name)


def _rename(source: Path, target: Path) -> None:
    """Move what is there to be moved."""
    if os.path.lexists(source):
        os.replace(source, target)


def flush(folder: Path) -> None:
    """Have all files of a folder on disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            flush_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    with suppress(OSError):  # some systems have no such thing
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
