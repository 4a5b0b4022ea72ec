"""What a linearization has fitted so far, beside its output: what the same command goes on from after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rectilinear.publish import write_whole
from rectilinear.ranks import current

_RECIPE = "recipe.json"


@contextmanager
def fits_folder(out: Path, recipe: Mapping[str, Any]) -> Iterator[Path | None]:
    """A folder beside ``out`` for what is fitted, which is gone once the run ends, unless it was killed.

    What it holds of another recipe is removed. None where there can be no such folder.

    Args:
        out: where the result is to be; the run that has claimed it is the only one to use the folder.
        recipe: all that the fits depend on.
    """
    folder, text = out.with_name(f".{out.name}.fits"), json.dumps(recipe, sort_keys=True, default=str)
    found: Path | None = None
    with suppress(OSError):
        mark = folder / _RECIPE
        if not mark.is_file() or mark.read_text(encoding="utf-8") != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            mark.write_text(text, encoding="utf-8")
        found = folder
    try:
        yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class KeptFits:
    """The results of computations, by name.

    Args:
        folder: where they are kept; None for nowhere.
        prefix: of their files.
    """

    def __init__(self, folder: Path | None = None, prefix: str = "") -> None:
        self._folder, self._prefix = folder, prefix

    def under(self, prefix: str) -> KeptFits:
        """Others in the same folder."""
        return KeptFits(self._folder, f"{self._prefix}{prefix}-")

    def recall(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The result of a computation, as it was kept, or else as it is made now; kept if there is room.

        Of processes that share the rows all take what the first one has, which alone has a folder.
        """
        file = self._folder and self._folder / f"{self._prefix}{name}.safetensors"

        def read() -> dict[str, Tensor] | None:
            with suppress(OSError, SafetensorError):
                return load(file.read_bytes()) if file else None
            return None

        if (kept := current().from_first(read)) is not None:
            return kept
        made = make()
        if file:
            with suppress(OSError):
                write_whole(file, save({name: tensor.contiguous() for name, tensor in made.items()}))
        return made
