"""The folder of checkpoints that a healing run leaves behind when it is stopped, and goes on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError

# Beside the checkpoints: what they are checkpoints of.
_RECIPE = "heal.json"


def claim_folder(folder: Path, recipe: Mapping[str, Any], overwrite: bool) -> None:
    """Make a folder for the checkpoints of a recipe, or take the one that has some.

    Args:
        folder: made where it is missing.
        recipe: all that the outcome depends on, to be written as JSON.
        overwrite: whether checkpoints of another recipe may be removed.

    Raises:
        RequestError: it holds something else, or cannot be written.
    """
    wanted = json.loads(json.dumps(recipe))
    try:
        found = _read(folder)
        if found != wanted and folder.exists() and any(folder.iterdir()):
            if not overwrite:
                others = ", ".join(key for key in wanted if found.get(key) != wanted[key])
                what = f"checkpoints of another recipe (it differs in {others})" if found else "something else"
                raise RequestError(
                    f"expected checkpoints of this very recipe in {folder}, got {what}; remove it, or add --overwrite"
                )
            discard_checkpoints(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _RECIPE).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from None


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end: Trainer writes its own state last."""
    return max((path for path in folder.glob("checkpoint-*") if _whole(path)), key=steps_of, default=None)


def steps_of(checkpoint: Path) -> int:
    """Steps that a checkpoint was made after."""
    return int(checkpoint.name.rpartition("-")[2])


def discard_checkpoints(folder: Path) -> None:
    """Remove checkpoints and what says whose they are, and the folder if nothing else is in it."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    (folder / _RECIPE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _RECIPE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
