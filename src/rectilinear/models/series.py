"""A series of checkpoints of one training: which they are, in which order, and that they are alike."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.models.describe import describe
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.load import STORYTELLER
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Loading

# What transformers' Trainer writes into its folders.
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Checkpoint:
    """One model of a series.

    Attributes:
        origin: where it is.
        step: optimizer steps it was trained for, as far as known.
    """

    origin: Origin
    step: int | None

    @property
    def source(self) -> str:
        """Its path or Hub id, with the revision where one was asked for."""
        return (
            f"{self.origin.name}@{self.origin.loading.revision}" if self.origin.loading.revision else self.origin.name
        )


@dataclass(frozen=True)
class Anatomy:
    """What all models of a series share.

    Attributes:
        architecture: name of the model's class.
        num_blocks: length of the block stack.
        width: of the hidden states, as the configuration says.
        parameters: of the whole model.
    """

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

    Args:
        checkpoints: folders, Hub ids or ``ID@REVISION``. A folder that holds ``checkpoint-N`` folders stands for
            them, and for its own model where that is of another step.
        loading: how to load them.

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
        found = [replace(checkpoint, step=place) for place, checkpoint in enumerate(found)]
    by_step: dict[int, Checkpoint] = {}
    for checkpoint in found:
        other = by_step.setdefault(checkpoint.step or 0, checkpoint)
        if other is not checkpoint:
            raise RequestError(
                f"expected one checkpoint a step, got {other.source} and {checkpoint.source} at step "
                f"{checkpoint.step}; leave one of them out"
            )
    return [by_step[step] for step in sorted(by_step)], warnings


def check_alike(checkpoints: Sequence[Checkpoint], blocks: str | None) -> Anatomy:
    """What checkpoints share; needs no weights, but sees that there are some.

    Raises:
        RequestError: no configuration, weights or block stack, or one that differs from the first.
    """
    first: Anatomy | None = None
    for checkpoint in checkpoints:
        checkpoint.origin.config()  # before the weights: what has none is no checkpoint
        _check_weights(checkpoint.origin)
        built: Any = checkpoint.origin.skeleton()
        told = describe(built, find_blocks(built, blocks))
        found = Anatomy(**{name: told[name] for name in ("architecture", "num_blocks", "width", "parameters")})
        first = first or found
        if found != first:
            raise RequestError(
                f"expected checkpoints of one model, got {first} ({checkpoints[0].source}) and {found} "
                f"({checkpoint.source})"
            )
    if first is None:
        raise RequestError("expected at least one checkpoint, got none")
    return first


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints that transformers' Trainer left in a folder, by step; some may not be written to their end."""
    found = (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted((path for path in found if path.is_dir()), key=steps_of)


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
        state: Any = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _check_weights(origin: Origin) -> None:
    folder = Path(origin.name).expanduser()
    if folder.is_dir() and not _has_weights(folder):
        raise RequestError(f"no weights in {folder}: expected model.safetensors or its parts beside config.json")
