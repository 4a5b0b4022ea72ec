"""The folder of checkpoints that a healing run leaves behind when it is stopped, and goes on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectilinear.runs import check_same, claim, read_request, write_request
from rectilinear.training.trainer import discard_checkpoints, keeping, last_checkpoint

# Beside the checkpoints: what they are checkpoints of.
_RECIPE = "heal.json"


@contextmanager
def healing_folder(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """Hold the folder of checkpoints beside ``out`` while open; it is gone when all went well, or if it has none.

    Args:
        out: where the result is to be.
        recipe: all that the outcome depends on, as JSON has it.
        overwrite: whether it may hold checkpoints of another recipe, which are removed, or other files, which stay.

    Raises:
        RequestError: it may not, is no folder, or another run has it.
        JobError: it cannot be written.
        Interrupted: for a `KeyboardInterrupt`, where there is a checkpoint to go on from.
    """
    folder = out.with_name(f"{out.name}.heal")
    found = read_request(folder / _RECIPE)
    if last_checkpoint(folder) and not overwrite:
        check_same(folder, found, recipe)
    with claim(folder, overwrite=overwrite or bool(found), kept=_what_is_kept):
        with keeping(folder):
            if found != recipe:
                _discard(folder)
            folder.mkdir(parents=True, exist_ok=True)
            write_request(folder / _RECIPE, recipe)
        try:
            yield folder
        except BaseException:
            if last_checkpoint(folder) is None:
                _discard(folder)
            raise
        _discard(folder)


def _what_is_kept(folder: Path) -> str | None:
    return f"{folder} keeps what was healed, to go on with the same command" if last_checkpoint(folder) else None


def _discard(folder: Path) -> None:
    """Remove the checkpoints and the recipe of a folder, and the folder if nothing else is in it."""
    discard_checkpoints(folder)
    (folder / _RECIPE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
