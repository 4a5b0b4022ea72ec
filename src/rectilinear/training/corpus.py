"""The folder of a pretraining: its request, tokenizer and rows, made once and found again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.dynamics import Dynamics
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.models.code_files import drop_absent_code
from rectilinear.models.earlier_checkpoint import checkpoint_files
from rectilinear.models.export import writing
from rectilinear.models.load import load_tokenizer
from rectilinear.models.series import checkpoints_of
from rectilinear.models.settings import Access
from rectilinear.publish import stage
from rectilinear.results import settings_record
from rectilinear.runs import check_same, read_request, write_request
from rectilinear.text.rows import RowFile, open_rows, pack_rows, stream_rows, write_rows
from rectilinear.text.sources import open_documents
from rectilinear.text.tokens import tokenize_with
from rectilinear.training.presets import Preset
from rectilinear.training.results import Training
from rectilinear.training.settings import Corpus, Recipe
from rectilinear.training.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Beside the checkpoints.
_REQUEST, ROWS = "recipe.json", "rows.bin"

# Rows to hold out where no other text is: one in a hundred, 400 at most, but enough tokens for the width where there
# are, and of a text that is all trained on a tenth at most.
_SHARE, _ROWS_AT_MOST, _LARGEST_SHARE = 100, 400, 10

# Names in files of earlier versions.
_RENAMED = {"vocabulary": "vocab_size", "accumulation": "gradient_accumulation", "embedding": "penalize_embedding"}


@dataclass(frozen=True)
class Plan:
    """What a pretraining is asked for; its outcome depends on nothing else but the machine.

    The recipe's dtype is not ``auto``, and the preset is filled in by recipe and corpus.
    """

    text: str
    recipe: Recipe
    corpus: Corpus
    preset: Preset

    def request(self) -> dict[str, Any]:
        """As JSON has it."""
        return settings_record(self.recipe, self.corpus, text=self.text) | asdict(self.preset)

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many rows to train on."""
        return self.recipe.max_steps or max(1, int(self.recipe.epochs * (rows // self.preset.rows)))


@dataclass(frozen=True, eq=False)
class PackedText:
    """What a decoder is trained and measured on."""

    tokenizer: PreTrainedTokenizerBase
    contents: RowFile
    train: Tensor  # [rows, seq_len] int32, whole steps of them, read from disk where they are needed
    held_out: Tensor  # [rows, seq_len] int64, not among these
    held_out_source: str


def find_run(out: Path) -> str | None:
    """What to say of a folder to whoever stops a pretraining in it; None where there is none."""
    record = read_request(out / _REQUEST)
    found = all(isinstance(record.get(name), dict) for name in ("recipe", "rows")) and "held_out" in record
    return f"{out} keeps what there is of the run; to go on, add `resume`" if found else None


def start_run(out: Path, plan: Plan) -> None:
    """Make the tokenizer and the rows of a run in its folder, in the place of what an earlier one left there.

    Raises:
        RequestError: no such text or tokenizer, a text shorter than a step.
    """
    preset, corpus = plan.preset, plan.corpus
    if corpus.tokenizer is None:
        tokenizer = train_tokenizer(map("".join, open_documents(plan.text, corpus)), preset.vocab_size)
    else:
        tokenizer = load_tokenizer(corpus.tokenizer, corpus)
    checkpoints = [path.name for path in checkpoints_of(out)]
    if checkpoints and find_run(out) is None:
        raise RequestError(
            f"expected a folder without checkpoints of another training for `out`, got {out}; try another"
        )
    stale = [*checkpoint_files(out, Training.file_name), Dynamics.file_name, *checkpoints]
    with stage(out, stale=stale) as folder, writing():
        tokenizer.save_pretrained(folder)
        drop_absent_code(folder)
        contents = _write_rows(folder, plan, tokenizer, _rows_wanted(plan))
        if corpus.held_out:
            _held_out_rows(plan, tokenizer)  # refused now, if at all
        held_out = 0 if corpus.held_out else _count_held_out(plan, contents.rows)
        if (train := contents.rows - held_out) < preset.rows:
            raise RequestError(
                f"expected text for at least one step of {preset.rows} rows of {preset.seq_len} tokens, got "
                f"{max(0, train)} rows to train on; try a smaller `batch_size` and `gradient_accumulation=1`"
            )
        write_request(folder / _REQUEST, {"recipe": plan.request(), "rows": contents._asdict(), "held_out": held_out})


def resume_run(out: Path, plan: Plan) -> None:
    """Make ready a run that is there, of this request or one for fewer steps.

    Raises:
        RequestError: it is of another, or its rows are not there any more.
    """
    record, wanted = read_request(out / _REQUEST), plan.request()
    found = settings_record(Recipe(), Corpus())
    found |= {_RENAMED.get(name, name): value for name, value in record["recipe"].items()}
    for name in ("max_steps", "epochs"):
        if found[name] and wanted[name] and wanted[name] > found[name]:
            found[name] = wanted[name]
    check_same(out, *({**request, "device": None} for request in (found, wanted)))
    if is_over(out, plan):
        discard_rows(out)  # killed before the run itself came to it
        return
    contents, file = RowFile(**record["rows"]), out / ROWS
    with stage(out) as folder:
        if (out / Training.file_name).exists() and not file.exists():
            file = folder / ROWS
            if _write_rows(folder, plan, _own_tokenizer(out, plan), contents.rows) != contents:
                raise RequestError(f"expected the text that the run in {out} was trained on, got another")
        if not file.is_file() or file.stat().st_size != contents.bytes:
            raise RequestError(
                f"expected {contents.rows:,} rows in {file}, to resume the run, got another file or none"
            )
        write_request(folder / _REQUEST, {**record, "recipe": wanted})


def is_over(out: Path, plan: Plan) -> bool:
    """Whether the run in a folder has made all of its steps."""
    record = read_request(out / _REQUEST)
    steps = plan.steps(record["rows"]["rows"] - record["held_out"])
    return (out / Training.file_name).exists() and Training.load(out).steps >= steps


def open_run(out: Path, plan: Plan) -> PackedText:
    """What `start_run` made; refused where the text to hold out is not there any more, or shorter than a row."""
    record = read_request(out / _REQUEST)
    contents = RowFile(**record["rows"])
    tokenizer = _own_tokenizer(out, plan)
    rows = open_rows(out / ROWS, contents)
    if plan.corpus.held_out:
        held_out, source = _held_out_rows(plan, tokenizer), plan.corpus.held_out
    else:
        rows, last = rows[: -record["held_out"]], rows[-record["held_out"] :]
        held_out, source = last.long(), f"{plan.text}, the last {len(last)} rows"
    # Whole steps only, so that every step is as large as the others and an epoch ends with one.
    train = rows[: len(rows) // plan.preset.rows * plan.preset.rows]
    return PackedText(tokenizer, contents, train, held_out, source)


def _own_tokenizer(out: Path, plan: Plan) -> PreTrainedTokenizerBase:
    """The tokenizer of a run; code came along with it only where that was trusted."""
    return load_tokenizer(out, Access(trust_remote_code=plan.corpus.trust_remote_code))


def about_vocabulary(plan: Plan, made: int) -> list[str]:
    """What to know where a text has made fewer tokens of a vocabulary than were asked for."""
    asked = plan.corpus.vocab_size
    if asked is None or made >= asked:
        return []
    return [f"the text has made a vocabulary of {made:,} tokens, not the {asked:,} of `vocab_size`; try more text"]


def _write_rows(folder: Path, plan: Plan, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> RowFile:
    documents = open_documents(plan.text, plan.corpus)
    return write_rows(folder / ROWS, stream_rows(documents, tokenize_with(tokenizer), plan.preset.seq_len, rows))


def _held_out_rows(plan: Plan, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``[rows, seq_len]`` int64 of the text that is held out."""
    reading = plan.corpus.model_copy(update={"seed": plan.corpus.seed + 1})  # other stories
    documents = open_documents(str(plan.corpus.held_out), reading)
    return pack_rows(documents, tokenize_with(tokenizer), plan.preset.seq_len, plan.corpus.held_out_tokens).ids


def _rows_wanted(plan: Plan) -> int | None:
    """Rows that are of use: those of ``max_tokens``, those of the steps; None for all there are."""
    limits = [plan.corpus.max_tokens // plan.preset.seq_len] if plan.corpus.max_tokens else []
    if plan.recipe.max_steps:
        train = plan.recipe.max_steps * plan.preset.rows
        share = max(min(_ROWS_AT_MOST, train // (_SHARE - 1) + 1), _rows_for_width(plan))
        limits.append(train if plan.corpus.held_out else train + share)
    return min(limits, default=None)


def _count_held_out(plan: Plan, rows: int) -> int:
    """How many of the rows that there are to hold out."""
    train = plan.recipe.max_steps * plan.preset.rows if plan.recipe.max_steps else rows
    to_spare = max(rows - train, rows // _LARGEST_SHARE)
    return max(min(_ROWS_AT_MOST, max(1, rows // _SHARE)), min(_rows_for_width(plan), to_spare))


def _rows_for_width(plan: Plan) -> int:
    """Rows with enough tokens for scores at the decoder's width."""
    return -(-TOKENS_A_FEATURE * plan.preset.width // plan.preset.seq_len)


def discard_rows(out: Path) -> None:
    """Remove the rows of a run that is over; `JobError` where that cannot be."""
    try:
        (out / ROWS).unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise JobError(f"the run is over, but cannot remove {out / ROWS}: {why}; to do so, add `resume`") from error
