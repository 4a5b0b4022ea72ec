"""What fine-tunings leave in a folder, seed by seed, to go on from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rectilinear.models.card_metadata import write_card
from rectilinear.models.export import write_checkpoint, writing
from rectilinear.publish import stage
from rectilinear.results import settings_record
from rectilinear.runs import check_same
from rectilinear.training.cards import classifier_card
from rectilinear.training.results import Finetuning, SeedRun
from rectilinear.training.settings import Profiling, Tuning

#: What fine-tunings leave in a folder: the results of all seeds and, while others run, of each; their models.
RESULTS = rf"seed-\d+\.json|{Finetuning.file_name}"
EVERYTHING = rf"{RESULTS}|seed-\d+"


def settings_of(tuning: Tuning, profiling: Profiling) -> dict[str, Any]:
    """What is asked for, but for how much of it and what is kept."""
    return {k: v for k, v in settings_record(tuning, profiling).items() if k not in ("seeds", "save_models")}


def save_seed(
    folder: Path,
    result: Finetuning,
    stale: Sequence[str],
    trained: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write the result of one seed, and its model where that is given; what is stale goes."""
    name = f"seed-{result.runs[0].seed}"
    with stage(folder, stale) as scratch, writing():
        if trained is not None:
            write_checkpoint(trained, tokenizer, scratch / name)
            write_card(scratch / name, classifier_card(result, scratch / name))
        (scratch / f"{name}.json").write_text(result.to_json(), encoding="utf-8")


def names_in(folder: Path, pattern: str) -> list[str]:
    """Names in a folder that match a pattern."""
    return sorted(path.name for path in folder.glob("*") if re.fullmatch(pattern, path.name))


def find_seeds(folder: Path) -> str | None:
    """What to say of a folder to whoever stops a fine-tuning in it; None where no seed is done."""
    done = names_in(folder, RESULTS)
    return f"{folder} keeps the seeds that are done; to go on, add `resume`" if done else None


def done_seeds(folder: Path, wanted: Finetuning, save_models: bool) -> dict[int, SeedRun]:
    """The seeds that are done in a folder; refused where they are of another request."""
    done: dict[int, SeedRun] = {}
    for name in names_in(folder, RESULTS):
        found = Finetuning.load(folder / name)
        check_same(folder, _identity(found), _identity(wanted))
        done |= {run.seed: run for run in found.runs if not save_models or (folder / f"seed-{run.seed}").is_dir()}
    return done


def _identity(result: Finetuning) -> dict[str, Any]:
    """All that a seed's run depends on, but for the machine; files of earlier versions have fewer settings."""
    settings = settings_of(Tuning(), Profiling()) | result.settings
    for name in ("profile", "device", "revision", "trust_remote_code"):
        settings.pop(name, None)
    return settings | {
        "penalize_embedding": settings["embedding"],
        "model": result.model.sha256,
        "task": result.task,
        "data": result.data.fingerprint,
        "rows": result.text.fingerprint,
    }
