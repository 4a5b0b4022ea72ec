"""What it costs to replace parts of a decoder: one model and two texts, cells in files, losses by document."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from common import save

import rectilinear
from rectilinear import CalibrationRows, Loading, Rows, Selection
from rectilinear.intervals import half_width, mean_over_groups
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.workbench import count_fitted
from rectilinear.measurement.perplexity import token_losses
from rectilinear.models.describe import count_parameters
from rectilinear.models.load import load_tokenizer
from rectilinear.models.logits import next_logits, row_logits, tensors_in
from rectilinear.models.origin import Origin
from rectilinear.models.running import evaluating

HERE = Path(__file__).parent
LOADING = Loading(device="cpu", dtype="float32")


@dataclass(frozen=True)
class Study:
    """Ways to change a model, by the names of their cells, and the texts that they are compared on.

    Errors are over documents; losses of late positions are those in the second half of a row.

    Attributes:
        model: folder of the model; ``depth`` blocks.
        fit, score: files of the texts.
        seq_len: tokens in a row.
        fitted, scored: tokens, about.
        ways: what is done to the model, by cell.
        batch: rows in a forward pass.
        folder: where the cells are, beside this file.
        bos: where the tokenizer's BOS stands: see `rectilinear.Rows`.
    """

    model: str
    depth: int
    fit: str
    score: str
    seq_len: int
    fitted: int
    scored: int
    ways: Mapping[str, Any]
    batch: int
    folder: str = "bounded"
    bos: Literal["document", "row", "none"] = "document"

    def file(self, cell: str) -> Path:
        """Where a cell is."""
        return HERE / self.folder / f"{self.model}-{cell}.json"

    @property
    def rows(self) -> CalibrationRows:
        """The rows to fit on, and a tenth as many after them, which are not fitted on."""
        tokens = self.fitted * 10 // 9 // self.seq_len * self.seq_len
        return CalibrationRows(max_tokens=tokens, seq_len=self.seq_len, bos=self.bos)

    @property
    def tokens_fitted(self) -> int:
        """How many tokens are fitted on, in whole rows."""
        return count_fitted(torch.empty(self.rows.max_tokens // self.seq_len, 0)) * self.seq_len

    @property
    def dense(self) -> dict[str, Any]:
        """The cell of the model as it is, which is among those of bounded attention."""
        return dict(json.loads((HERE / "bounded" / f"{self.model}-dense.json").read_text()))

    def cells(self) -> dict[str, dict[str, Any]]:
        """The cells that are there, by name."""
        return {name: json.loads(self.file(name).read_text()) for name in self.ways if self.file(name).exists()}


STORIES = Study("stories260K", 5, "tinystories/train.txt", "tinystories/valid.txt", 256, 100_000, 100_000, {}, 16)
# Without BOS in each row this model predicts hardly anything.
GEMMA3 = Study("gemma3-270m", 18, "wikitext2/fit.txt", "wikitext2/score.txt", 512, 32_000, 10**9, {}, 1, bos="row")
SMOLLM2 = Study("smollm2-135m", 30, "wikitext2/fit.txt", "wikitext2/score.txt", 512, 32_000, 10**9, {}, 2)


def make_cells(
    studies: Sequence[Study],
    measure: Callable[[Study, Path, Path, Any], dict[str, Any]],
    question: str,
    command: str,
    describe: Callable[[dict[str, Any], Study], str] | None = None,
) -> None:
    """Make the cells that are not there, or those of them that the command line names, and print all of these.

    ``describe`` says what is printed of a cell: losses when it is not given.
    """
    describe = describe or losses_of
    models, texts = map(Path, sys.argv[1:3])
    for study in studies:
        for cell, way in study.ways.items():
            file = study.file(cell)
            if sys.argv[3:] and file.stem not in sys.argv[3:]:
                continue
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                made = measure(study, models / study.model, texts, way)
                save(str(file), question, {"cell": cell, **made}, command, show=False)
            print(file.stem, describe(json.loads(file.read_text()), study), flush=True)


def linearized(
    study: Study, model: Path, texts: Path, kind: Kind | None, selection: Selection, **run: Any
) -> rectilinear.Linearized:
    """What `rectilinear.linearize` makes of a model on the text that is fitted on."""
    usual: Any = {"rows": study.rows, "loading": LOADING, "batch_size": study.batch, "progress": False}
    return rectilinear.linearize(model, texts / study.fit, kind, selection, **{**usual, **run})


@dataclass(frozen=True)
class Whole:
    """How rows are run: each at once, so many in a forward pass."""

    rows: int

    def losses(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """Losses ``[rows, seq_len - 1]`` of all tokens but the first, in nats."""
        return row_losses(model, ids)

    def cached(self, model: Any, ids: torch.Tensor) -> list[int]:
        """Numbers of floating point that each layer of the cache keeps after a row."""
        _, cache = next_logits(model, ids)
        held = [tensors_in(vars(layer)) for layer in cache.value.layers]  # type: ignore[union-attr]
        return [sum(tensor.numel() for tensor in layer if tensor.is_floating_point()) for layer in held]


def score(study: Study, model: Path, texts: Path, edited: Any, how: Any = None) -> dict[str, Any]:
    """What an edited model weighs, and its losses by document, overall and of late positions.

    ``how`` rows are run: as `Whole` does when it is not given.
    """
    how = how or Whole(2 * study.batch)
    start = time.perf_counter()
    found: dict[str, Any] = {}
    rows = Rows(max_tokens=study.scored, seq_len=study.seq_len, bos=study.bos)
    read = Origin(model, Loading()).rows(texts / study.score, rows, load_tokenizer(model))
    found["parameters"] = count_parameters([edited])
    held = how.cached(edited, read.ids[:1])
    found |= {"floats_a_layer": sum(held) // len(held), "cache_floats": sum(held)}
    groups = read.documents[:, 1:].long() - int(read.documents.min())
    sums = {name: torch.zeros(int(groups.max()) + 1, dtype=torch.float64) for name in ("all", "late")}
    sizes = {name: torch.zeros(len(sums["all"]), dtype=torch.long) for name in sums}
    late = (torch.arange(1, study.seq_len) >= study.seq_len // 2).expand_as(groups)
    parts = zip(*(each.split(how.rows) for each in (read.ids, groups, late)), strict=True)
    with evaluating(edited), torch.no_grad():
        for ids, group, chosen in parts:
            lost = how.losses(edited, ids)
            for name, which in (("all", torch.ones_like(chosen)), ("late", chosen)):
                sums[name].index_add_(0, group[which], lost[which].double())
                sizes[name].index_add_(0, group[which], torch.ones_like(group[which]))
    found["score_seconds"] = time.perf_counter() - start
    found["rows"] = len(read.ids)
    found["sums"] = {name: each.tolist() for name, each in sums.items()}
    found["sizes"] = {name: each.tolist() for name, each in sizes.items()}
    return found


def row_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Losses ``[rows, seq_len - 1]`` of all tokens but the first, in nats."""
    return token_losses(row_logits(model, ids), ids)


def losses_of(cell: dict[str, Any], study: Study) -> str:
    """How much more a cell loses than the dense model."""
    losses = [f"{name} {loss_of(cell, study.dense, name)}" for name in ("all", "late")]
    return ", ".join([f"{cell['floats_a_layer']:,} floats a layer", *losses])


def loss_of(cell: dict[str, Any], other: dict[str, Any], name: str) -> str:
    """How much more a cell loses than another, with half of a 95 % interval over documents."""
    value, half = interval_of(cell, other, name)
    return f"{value:+.4f} ± {half:.4f}"


def interval_of(cell: dict[str, Any], other: dict[str, Any], name: str) -> tuple[float, float]:
    """How much larger a cell's loss is than another's, and half of a 95 % interval over documents."""
    value, stderr, groups = difference(cell, other, name)
    return value, half_width(stderr or 0.0, groups)


def cache_share(cell: dict[str, Any], study: Study) -> str:
    """What a row leaves in the cache, of what the dense model does."""
    return f"{cache_of(cell, study) / (study.depth * study.dense['floats_a_layer']):.1%}"


def cache_of(cell: dict[str, Any], study: Study) -> int:
    """Numbers of floating point in the cache after a row, in all layers."""
    if "cache_floats" in cell:
        return int(cell["cache_floats"])
    count = replaced_in(cell, study)  # cells of before had those of a layer that was replaced, or all alike
    return int(count * cell["floats_a_layer"] + (study.depth - count) * study.dense["floats_a_layer"])


def cache_of_replaced(cell: dict[str, Any], study: Study) -> int:
    """The same in each of the layers that something was done to, the mean."""
    count = replaced_in(cell, study)
    return (cache_of(cell, study) - (study.depth - count) * int(study.dense["floats_a_layer"])) // count


def replaced_in(cell: dict[str, Any], study: Study) -> int:
    """How many attentions are bounded."""
    return int((cell.get("chosen") or {}).get("count", study.depth))


def about_rows(study: Study, *, rows: str = "", fitted: str = "fitted") -> str:
    """A paragraph of a page: which rows are fitted on and scored, and what the dense model loses.

    ``rows`` is said of rows beside their length, and ``fitted`` what was done to those of the first text.
    """
    dense, tokens = study.dense, sum(study.dense["sizes"]["all"])
    first = ", BOS the first of them" if study.bos == "row" else ""
    return (
        f"Rows of {study.seq_len}{first}{rows}; {fitted} on {study.tokens_fitted:,} tokens of {study.fit}, scored on {tokens:,} tokens of {study.score} ({difference(dense, dense, 'all')[2]} documents), "
        f"{dense['machine']['processor']}. The dense model's loss is {sum(dense['sums']['all']) / tokens:.4f}."
    )


def difference(cell: dict[str, Any], other: dict[str, Any], name: str) -> tuple[float, float | None, int]:
    """How much larger a cell's loss is than another's, its standard error over documents, and how many these are."""
    pairs = zip(cell["sums"][name], other["sums"][name], cell["sizes"][name], strict=True)
    kept = [(one - another, size) for one, another, size in pairs if size]
    sums, sizes = zip(*kept, strict=True)
    return *mean_over_groups(sums, sizes), len(kept)
