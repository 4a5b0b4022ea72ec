"""A series of checkpoints of one training: which they are, in which order, and that they are alike."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rectilinear.errors import RequestError
from rectilinear.models.describe import count_parameters
from rectilinear.models.find_blocks import find_blocks, width_of
from rectilinear.models.load import STORYTELLER
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading


class Checkpoint(NamedTuple):
    """One model of a series: where it is, and the optimizer steps it was trained for, as far as known."""

    origin: Origin
    step: int | None

    @property
    def source(self) -> str:
        """Its path or Hub id, with the revision where one was asked for."""
        revision = self.origin.loading.revision
        return f"{self.origin.name}@{revision}" if revision else self.origin.name


class Anatomy(NamedTuple):
    """What all models of a series share; the width of hidden states is that of the configuration."""

    architecture: str
    num_blocks: int
    width: int | None
    parameters: int

    def __str__(self) -> str:
        return f"{self.architecture}, {self.num_blocks} blocks of width {self.width}, {self.parameters:,} parameters"


def find_checkpoints(
    checkpoints: str | Path | Sequence[str | Path], loading: Loading
) -> tuple[list[Checkpoint], list[str]]:
    """The checkpoints of a series by step, each with one, and what to be warned about.

    They are folders, Hub ids or ``ID@REVISION``. A folder that holds ``checkpoint-N`` folders stands for them, and for
    its own model where that is of another step.

    Raises:
        RequestError: none, no model in one of them, several of one step, a revision of a folder.
    """
    given = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    found = [checkpoint for each in given for checkpoint in _expand(each, loading)]
    if not found:
        raise RequestError("expected at least one checkpoint, got none; give folders, a Hub id or a folder of them")
    warnings = []
    folders = [str(each) for each in given if checkpoints_of(Path(each).expanduser())]
    if len(folders) > 1:
        warnings.append(
            f"{', '.join(folders)} are taken for one training, their checkpoints for one series; if they are several, "
            "measure each by itself"
        )
    if unknown := [checkpoint.source for checkpoint in found if checkpoint.step is None]:
        warnings.append(
            f"no step is known of {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}: "
            "steps are places in the series as given; name checkpoints like checkpoint-500"
        )
        found = [Checkpoint(checkpoint.origin, place) for place, checkpoint in enumerate(found)]
    found.sort(key=lambda checkpoint: checkpoint.step or 0)
    for one, other in pairwise(found):
        if one.step == other.step:
            raise RequestError(
                f"expected one checkpoint a step, got {one.source} and {other.source} at step {one.step}; "
                "leave one of them out"
            )
    return found, warnings


def check_alike(checkpoints: Sequence[Checkpoint], blocks: str | None) -> Anatomy:
    """What checkpoints share; needs no weights, but sees that there are some.

    Raises:
        RequestError: no configuration, weights or block stack, or one that differs from the first.
    """
    first = _anatomy_of(checkpoints[0].origin, blocks)
    for checkpoint in checkpoints[1:]:
        if (found := _anatomy_of(checkpoint.origin, blocks)) != first:
            raise RequestError(
                f"expected checkpoints of one model, got {first} ({checkpoints[0].source}) and {found} "
                f"({checkpoint.source})"
            )
    return first


def _anatomy_of(origin: Origin, blocks: str | None) -> Anatomy:
    folder, config = Path(origin.name).expanduser(), origin.config  # what has none is no checkpoint
    if folder.is_dir() and not _has_weights(folder):
        raise RequestError(f"no weights in {folder}: expected model.safetensors or its parts beside config.json")
    built = origin.skeleton()
    stack = find_blocks(built, blocks)
    return Anatomy(type(built).__name__, len(stack), width_of(config), count_parameters([built]))


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints that transformers' Trainer left in a folder, by step; some may not be written to their end."""
    named = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(filter(Path.is_dir, named), key=steps_of)


def steps_of(checkpoint: Path) -> int:
    """Steps that such a checkpoint was made after, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def step_in(name: str) -> int | None:
    """The step in the name of a folder or revision: the number after ``step``, else the one at its end.

    Examples: ``checkpoint-500`` 500, ``step1000-tokens4B`` 1000, ``main`` None; None for hashes of commits.
    """
    if re.fullmatch(r"(?=.*[a-f])[0-9a-f]{7,40}", name):
        return None
    found = re.search(r"steps?[-_=]?(\d+)", name, re.IGNORECASE) or re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


def _expand(given: str | Path, loading: Loading) -> list[Checkpoint]:
    """A checkpoint, or those in a folder of them by number, the folder's own model last."""
    folder = Path(given).expanduser()
    name, at, revision = str(given).rpartition("@")
    if at and not folder.exists():
        if Path(name).expanduser().exists() or name == STORYTELLER:
            raise RequestError(f"expected a Hub id with a revision, got {name}, which has none")
        return [Checkpoint(Origin(name, loading.model_copy(update={"revision": revision})), step_in(revision))]
    inside = checkpoints_of(folder)
    if not inside:
        return [Checkpoint(Origin(given, loading), _step_of(folder))]
    found = [Checkpoint(Origin(path, loading), _step_of(path)) for path in inside]
    step = state_step(folder)
    if step is not None and _has_weights(folder) and step not in {checkpoint.step for checkpoint in found}:
        found.append(Checkpoint(Origin(given, loading), step))
    return found


def _step_of(folder: Path) -> int | None:
    step = state_step(folder)
    return step_in(folder.name) if step is None else step


def state_step(folder: Path) -> int | None:
    """The step that Trainer wrote down, as the last of a checkpoint's files; None where it did not."""
    try:
        return int(json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
