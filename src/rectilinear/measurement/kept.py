"""Numbers of earlier runs: what a run that was stopped goes on from, and what an equal one need not do again.

Each is a small file of its own, written whole or not at all, in a folder by the hash of everything that the numbers
depend on: weights, configuration, tokens, settings, device, precision, and the code of this package and the versions of
others. So runs that share a folder cannot disturb each other, and what is found again is of an equal measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

import rectilinear
from rectilinear.core.block_moments import BlockMoments
from rectilinear.core.scores import score_block
from rectilinear.measurement.profile import BlockRecord, block_record
from rectilinear.measurement.settings import Measurement
from rectilinear.models.describe import is_known, record_environment
from rectilinear.models.origin import Origin
from rectilinear.models.running import device_of
from rectilinear.publish import write_whole
from rectilinear.results import Record
from rectilinear.settings import Target

_Kept = TypeVar("_Kept", bound=Record)

#: How many measurements are kept; those that were not used for longest go first.
MOST = 1000


def kept_folder() -> Path:
    """Where scores are kept: ``$RECTILINEAR_CACHE``, or ``rectilinear`` in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("RECTILINEAR_CACHE") or Path(caches, "rectilinear")) / "measured"


class KeptScores(Record):
    """The scores of a block, or a part of one.

    Attributes:
        block: its scores; None where it had no tokens.
        width, tokens: of what they are of; 0 where it had none.
    """

    block: BlockRecord | None
    width: int
    tokens: int

    @classmethod
    def of(cls, moments: BlockMoments, target: Target, index: int) -> KeptScores:
        """Those that moments give."""
        if not moments.count:
            return cls(block=None, width=0, tokens=0)
        scores = score_block(moments, alone=target != "block")
        whole = scores.all_tokens
        return cls(block=block_record(index, scores), width=len(whole.moments.mean_x), tokens=whole.tokens)


def name_of(value: Any, length: int = 16) -> str:
    """Of the file or folder for what has a description as JSON has it: so many digits of its SHA-256."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Kept:
    """The numbers of one measurement that are there already.

    Attributes:
        recipe: all that they depend on; None where nothing is kept.
    """

    recipe: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, module: nn.Module, origin: Origin, weights: str | None, measurement: Measurement, **others: Any
    ) -> Kept:
        """The scores of a model; of one that was not loaded here, or brought its own code, none are kept.

        Args:
            module, origin, weights: it, where it is from, and the hash of its weights.
            measurement: how it is measured.
            others: all else that scores depend on.
        """
        conditions = conditions_of(module, origin)
        if conditions is None or weights is None or not measurement.reuse:
            return cls()
        settings = measurement.model_dump(mode="json", exclude={"pairs", "pairs_columns", "target"})
        return cls({**settings, **others, **conditions, "weights": weights})

    @property
    def folder(self) -> Path | None:
        """Where they are; None where nothing is kept."""
        if self.recipe is None:
            return None
        return kept_folder() / name_of(self.recipe, 32)

    def changed(self, **changes: Any) -> Kept:
        """The scores of a measurement that differs in something."""
        return self if self.recipe is None else replace(self, recipe={**self.recipe, **changes})

    def load(self, name: str, kind: type[_Kept]) -> _Kept | None:
        """A record by its name; None where it is not there, or cannot be read."""
        if self.folder is None:
            return None
        try:
            found = kind.model_validate_json((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        with suppress(OSError):
            os.utime(self.folder)
        return found

    def save(self, name: str, record: Record) -> None:
        """Keep a record, unless there is no room or no right to."""
        if self.folder is None:
            return
        with suppress(OSError):
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                _forget_oldest(self.folder.parent)
            write_whole(self.folder / f"{name}.json", record.model_dump_json().encode(), writer=f".{os.getpid()}")


def conditions_of(module: Any, origin: Origin) -> dict[str, Any] | None:
    """What numbers of a model depend on beside its weights, its inputs and settings of ours.

    None of a model that is in memory, where anything may have been done to it, or that brought its own code.
    """
    if isinstance(origin.model, nn.Module) or not is_known(module):
        return None
    device = device_of(module)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "config": module.config.to_dict(),
        "attention": getattr(module.config, "_attn_implementation", None),
        "environment": record_environment(module).model_dump(mode="json"),
        "processor": name,
        "threads": torch.get_num_threads(),
        "autocast": [torch.is_autocast_enabled(device.type), str(torch.get_autocast_dtype(device.type))],
        "float32": torch.get_float32_matmul_precision(),
        "code": code_hash(),
    }


@cache
def code_hash() -> str:
    """A hash of this package's code."""
    files = sorted(Path(rectilinear.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _forget_oldest(folder: Path) -> None:
    """Leave no more measurements than `MOST`."""
    for old in sorted(folder.iterdir(), key=os.path.getmtime)[:-MOST]:
        shutil.rmtree(old, ignore_errors=True)
