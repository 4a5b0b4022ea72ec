"""The folder of a pretraining run: its recipe, tokenizer and rows, made once and found again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rectilinear.errors import RequestError
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.models.load import load_tokenizer
from rectilinear.models.series import checkpoints_of
from rectilinear.runs import stage
from rectilinear.text.rows import RowFile, open_rows, pack_rows, stream_rows, write_rows
from rectilinear.text.settings import Source
from rectilinear.text.sources import open_documents
from rectilinear.text.tokens import Document, tokenize_with
from rectilinear.training.pretraining.presets import Preset
from rectilinear.training.pretraining.recipe import Recipe
from rectilinear.training.pretraining.record import Training
from rectilinear.training.pretraining.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Beside the checkpoints.
_RECIPE, _ROWS = "recipe.json", "rows.bin"

# What a run before this one left beside its checkpoints, and is not replaced at once.
_STALE = (Training.file_name, Dynamics.file_name, "config.json", "generation_config.json", "model*.safetensors*")

# Of a text, where no other is held out: one row in a hundred, and no more than this.
_HELD_OUT_SHARE, _HELD_OUT_ROWS = 100, 400


@dataclass(frozen=True, eq=False)
class Run:
    """A pretraining run.

    Attributes:
        folder: of the run.
        recipe: as asked for.
        preset: filled in by the recipe.
        tokenizer: of the text.
        contents: of the file of rows.
        train: ``[rows, seq_len]`` int32, read from disk where they are needed.
        held_out: ``[rows, seq_len]`` int64, not among them.
        held_out_source: where these come from.
    """

    folder: Path
    recipe: Recipe
    preset: Preset
    tokenizer: PreTrainedTokenizerBase
    contents: RowFile
    train: Tensor
    held_out: Tensor
    held_out_source: str


def found_run(out: Path, recipe: Recipe, preset: Preset) -> bool:
    """Whether a folder holds a run of this recipe to go on with; False where there is none.

    Raises:
        RequestError: it holds the run of another recipe.
    """
    record = _read(out)
    found = record.get("recipe")
    if not isinstance(found, dict):
        return False
    wanted = _recipe_of(recipe, preset)
    if others := sorted(key for key in {*wanted, *found} if found.get(key) != wanted.get(key)):
        told = ", ".join(f"{key} {found.get(key)!r} -> {wanted.get(key)!r}" for key in others)
        raise RequestError(
            f"expected the recipe of the run in {out} to resume it, got another ({told}); "
            "try the same options, another --out, or --overwrite in the place of --resume"
        )
    rows = RowFile(**record["rows"])
    over = (out / Training.file_name).exists()
    if not over and (not (out / _ROWS).is_file() or (out / _ROWS).stat().st_size != rows.bytes):
        raise RequestError(f"expected {rows.rows:,} rows in {out / _ROWS}, to resume the run, got another file or none")
    return True


def start_run(out: Path, recipe: Recipe, preset: Preset) -> None:
    """Make the tokenizer and the rows of a run in its folder, in the place of what an earlier one left there.

    Raises:
        RequestError: no such text or tokenizer, a text shorter than a batch.
        JobError: they could not be written.
    """
    documents, again = _documents(recipe, recipe.text, recipe.seed), _documents(recipe, recipe.text, recipe.seed)
    tokenizer = _tokenizer(recipe) or train_tokenizer(map("".join, documents), preset.vocabulary)
    with stage(out, stale=[*_STALE, *(path.name for path in checkpoints_of(out))]) as folder:
        tokenizer.save_pretrained(folder)
        rows = stream_rows(again, tokenize_with(tokenizer), preset.seq_len, _rows_wanted(recipe, preset))
        contents = write_rows(folder / _ROWS, rows)
        if recipe.held_out:
            held_out = 0
            _held_out_rows(recipe, preset, tokenizer)  # refused now, if at all
        else:
            held_out = min(_HELD_OUT_ROWS, max(1, contents.rows // _HELD_OUT_SHARE))
        if contents.rows - held_out < preset.rows:
            raise RequestError(
                f"expected text for at least one step of {preset.rows} rows of {preset.seq_len} tokens, got "
                f"{max(0, contents.rows - held_out)} rows to train on; try a smaller --batch-size and "
                "--gradient-accumulation 1"
            )
        record = {"recipe": _recipe_of(recipe, preset), "rows": contents._asdict(), "held_out": held_out}
        (folder / _RECIPE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def open_run(out: Path, recipe: Recipe, preset: Preset) -> Run:
    """What `start_run` made.

    Raises:
        RequestError: the text that is held out is not there, or not long enough for one row.
    """
    record = _read(out)
    contents = RowFile(**record["rows"])
    tokenizer = load_tokenizer(out)
    rows = open_rows(out / _ROWS, contents)
    if recipe.held_out:
        held_out, source = _held_out_rows(recipe, preset, tokenizer), recipe.held_out
    else:
        rows, last = rows[: -record["held_out"]], rows[-record["held_out"] :]
        held_out, source = last.long(), f"{recipe.text}, the last {len(last)} rows"
    # Whole steps only, so that every step is as large as the others and an epoch ends with one.
    train = rows[: len(rows) // preset.rows * preset.rows]
    return Run(out, recipe, preset, tokenizer, contents, train, held_out, source)


def discard_rows(out: Path) -> None:
    """Remove the rows, which are not needed once the run is over."""
    (out / _ROWS).unlink(missing_ok=True)


def _tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase | None:
    if recipe.tokenizer is None:
        return None
    return load_tokenizer(recipe.tokenizer, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code)


def _documents(recipe: Recipe, source: str, seed: int) -> Iterator[Document]:
    return open_documents(source, Source(column=recipe.column, config=recipe.config, split=recipe.split, seed=seed))


def _held_out_rows(recipe: Recipe, preset: Preset, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``[rows, seq_len]`` int64 of the text that is held out."""
    documents = _documents(recipe, str(recipe.held_out), recipe.seed + 1)  # other stories
    return pack_rows(documents, tokenize_with(tokenizer), preset.seq_len, recipe.held_out_tokens).ids


def _rows_wanted(recipe: Recipe, preset: Preset) -> int | None:
    """Rows that are of use: those of ``max_tokens``, those of the steps; None for all there are."""
    limits = [recipe.max_tokens // preset.seq_len] if recipe.max_tokens else []
    if recipe.max_steps:
        train = recipe.max_steps * preset.rows
        limits.append(train if recipe.held_out else train + min(_HELD_OUT_ROWS, train // (_HELD_OUT_SHARE - 1) + 1))
    return min(limits, default=None)


def _recipe_of(recipe: Recipe, preset: Preset) -> dict[str, Any]:
    """As JSON has it, with what the preset was taken for."""
    return {**asdict(recipe), **asdict(preset)}


def _read(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / _RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
