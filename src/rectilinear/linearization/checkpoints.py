"""The folder of checkpoints that a healing run leaves behind when it is stopped, and goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.training.trainer import discard_checkpoints, keeping, last_checkpoint

# Beside the checkpoints: what they are checkpoints of.
_RECIPE = "heal.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where a recipe's checkpoints are.

    Attributes:
        folder: made where it is missing.
        recipe: all that the outcome depends on, as JSON has it.
    """

    folder: Path
    recipe: Mapping[str, Any]

    def check(self, overwrite: bool) -> None:
        """Refuse a folder of something else, before any work.

        Raises:
            RequestError: it is no folder, or holds something else and may not be overwritten.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"expected a folder for checkpoints, got the file {self.folder}")
        found = self._found()
        if overwrite or found == self.recipe or not self.folder.exists() or not any(self.folder.iterdir()):
            return
        others = ", ".join(key for key in self.recipe if found.get(key) != self.recipe[key])
        what = f"checkpoints of another recipe (it differs in {others})" if found else "something else"
        raise RequestError(
            f"expected checkpoints of this recipe in {self.folder}, got {what}; remove it, or add --overwrite"
        )

    @contextmanager
    def claimed(self) -> Iterator[Path]:
        """The folder, with checkpoints of this recipe alone; gone afterwards if there are none.

        Raises:
            JobError: it cannot be written.
        """
        try:
            with keeping(self.folder):
                if self._found() != self.recipe:
                    discard_healing(self.folder)
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / _RECIPE).write_text(json.dumps(self.recipe, indent=2) + "\n", encoding="utf-8")
            yield self.folder
        finally:
            if self.last() is None:
                discard_healing(self.folder)

    def last(self) -> Path | None:
        """See `last_checkpoint`."""
        return last_checkpoint(self.folder)

    def _found(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _RECIPE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def discard_healing(folder: Path) -> None:
    """Remove the checkpoints and the recipe of a folder, and the folder if nothing else is in it."""
    discard_checkpoints(folder)
    (folder / _RECIPE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
