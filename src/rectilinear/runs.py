"""The protocol of runs: claim a folder, publish results, resume, say where to go on."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.publish import contents, hold, nearest_existing
from rectilinear.ranks import current
from rectilinear.settings import BatchSize, Settings


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
    reads: Iterable[object] = (),
) -> Iterator[Path | None]:
    """Hold an output folder while open, so that no other run writes into it; see `rectilinear.publish.hold`.

    Of processes that share a job the first one alone has a folder.

    What a killed run was moving into it is finished. The same command then runs again: a folder in which there is only
    what a killed run put there, or had kept to go on from, is taken for an empty one.

    Args:
        out: the folder, which need not be there; None for a run that writes nothing.
        overwrite: whether it may hold other results.
        resume: whether to go on from an earlier part of the run, where it holds one.
        kept: what to say of the folder to whoever interrupts the run; None where there is nothing to go on from.
        reads: models and texts of the run; none whose path is given may be the folder itself, or a folder in one that
            is overwritten.

    Yields:
        The folder, absolute.

    Raises:
        RequestError: it is to be both overwritten and resumed; it is not empty and may be neither, is no folder, is
            what the run reads, cannot be written, or another run has it.
        Interrupted: for a `KeyboardInterrupt`, where there is something to go on from.
    """
    if resume and overwrite:
        raise RequestError("expected `resume` or `overwrite`, got both")
    if out is None or not current().is_first:
        yield None
        return
    try:
        folder = Path(out).expanduser().absolute()
    except RuntimeError as error:
        raise RequestError(f"expected a folder for `out`, got {out}: {error}") from None
    _check_place(folder, reads, overwrite)
    with hold(folder) as held:
        if not overwrite:
            _check_contents(folder, held.left, resume, kept)
        try:
            yield folder
        except KeyboardInterrupt as interrupt:
            message = kept(folder)
            if message is None or isinstance(interrupt, Interrupted):
                raise
            raise Interrupted(message) from None


def _check_place(folder: Path, reads: Iterable[object], overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"expected a folder for `out`, got the file {folder}")
    for source in filter(None, map(_place_of, reads)):
        if folder.exists() and source.samefile(folder):
            raise RequestError(f"expected another folder for `out` than one that is read, got {folder}")
        if overwrite and source.is_dir() and folder.resolve() in source.parents:
            raise RequestError(f"expected a folder for `out` without {source} in it, got {folder}; try another")
    nearest = nearest_existing(folder)
    if not nearest.is_dir():
        raise RequestError(f"expected a folder for `out`, got {folder} inside the file {nearest}")
    if not os.access(nearest, os.W_OK):
        raise RequestError(f"cannot write to {nearest} for `out={folder}`")


def _place_of(source: object) -> Path | None:
    """Where a model or text is on this machine, without links; None for what is no path, or of nothing there."""
    try:
        return Path(source).expanduser().resolve(strict=True) if isinstance(source, (str, Path)) else None
    except (OSError, ValueError, RuntimeError):
        return None


def _check_contents(
    folder: Path, left: frozenset[str] | None, resume: bool, kept: Callable[[Path], str | None]
) -> None:
    names = {path.name for path in contents(folder)} if folder.is_dir() else set()
    found = kept(folder) if names else None
    if not names or (resume and found):
        return
    if left is not None and (names <= left or (found and names & left)):
        if found:
            warnings.warn(f"{found}; without it this run begins anew", stacklevel=2)
        return
    what = "holds no run to resume; try" if resume else f"is not empty; try{' `resume`,' if found else ''}"
    raise RequestError(f"expected an empty folder for `out`, {folder} {what} another, or `overwrite`")


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
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_request(file: Path, request: Mapping[str, Any]) -> None:
    """Note a run's request in a JSON file, for `read_request`; records are written as in results."""
    text = json.dumps(request, indent=2, default=lambda record: record.model_dump(mode="json"))
    file.write_text(text + "\n", encoding="utf-8")
