"""The folder of a fine-tuning: the result of each seed that is done, until all are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rectilinear.errors import RequestError
from rectilinear.runs import stage
from rectilinear.training.finetuning.record import Finetuning, SeedRun

# What a seed leaves: its result while the others run, and its model where that is kept.
_OF_A_SEED = re.compile(r"seed-\d+(\.json)?")


def kept_runs(out: Path, wanted: Finetuning, save_models: bool) -> dict[int, SeedRun]:
    """The seeds that are done in a folder.

    Raises:
        RequestError: they are of another request.
    """
    kept: dict[int, SeedRun] = {}
    for file in result_files(out):
        found = Finetuning.load(file)
        ours, theirs = _identity(wanted), _identity(found)
        if others := sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)):
            told = ", ".join(f"{key} {theirs.get(key)!r} -> {ours.get(key)!r}" for key in others)
            raise RequestError(
                f"expected the fine-tuning in {out} to resume it, got another ({told}); "
                "try the same options, another --out, or --overwrite"
            )
        kept |= {run.seed: run for run in found.runs if not save_models or (out / f"seed-{run.seed}").is_dir()}
    return kept


def _identity(result: Finetuning) -> dict[str, Any]:
    """All that a seed's run depends on, but for the machine."""
    return {
        "model": result.model.sha256,
        "task": result.task,
        "data": result.data.fingerprint,
        "rows": result.text.fingerprint,
        **{name: value for name, value in result.settings.items() if name != "profile"},
    }


def result_files(out: Path) -> Iterator[Path]:
    """Results in a folder: of all seeds, and of each that was done before a job stopped."""
    found = sorted(out.iterdir()) if out.is_dir() else []
    return (path for path in found if path.name == Finetuning.file_name or _is_part(path))


def _is_part(path: Path) -> bool:
    return bool(_OF_A_SEED.fullmatch(path.name)) and path.suffix == ".json"


def discard_runs(out: Path) -> None:
    """Remove what earlier fine-tunings left in a folder.

    Raises:
        JobError: it cannot be removed.
    """
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    old = [name for name in names if name == Finetuning.file_name or _OF_A_SEED.fullmatch(name)]
    if old:
        with stage(out, stale=old):
            pass
