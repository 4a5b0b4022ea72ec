"""Do other engines run what `linearize` leaves, with the same predictions?

Checkpoints with replaced blocks, attentions and MLPs are written as GGUF files in float32 (gguf_file.py) and run by
llama.cpp on the processor, on token ids that both sides are given. Beside it runs plain transformers, on the checkpoint
as it was saved. A cell is a file of its own in benchmarks/engines, and one that is there is not made again: seconds for
stories260K, some minutes for SmolLM2-135M on one core.

    python benchmarks/engines.py MODELS TEXTS [CELL ...]

MODELS: folder with smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct) and stories260K.
TEXTS: folder with wikitext2/fit.txt and score.txt, tinystories/train.txt and valid.txt, documents separated by
<|endoftext|>. It takes `pip install 'rectilinear[gguf]' xllamacpp`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from gguf_file import NoPlaceError, write_gguf
from llama_cpp import Engine, system
from scoring import SMOLLM2, STORIES, Study, linearized, make_cells
from torch import Tensor
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from rectilinear import Affine, Bounded, Drop, Filter, Folded, Loading, Mean, Rows, Selection
from rectilinear.linearization.fit import Fit, Site
from rectilinear.linearization.kinds.base import Kind
from rectilinear.models.describe import count_parameters
from rectilinear.models.load import load_tokenizer
from rectilinear.models.origin import Origin

COMMAND = "python benchmarks/engines.py MODELS TEXTS"


class Matrix(Affine):
    """An affine map without a bias, as the linear attentions of llama.cpp are."""

    name: ClassVar[str] = "matrix"

    def module_options(self, target: Any) -> dict[str, Any]:
        """Those of an affine map, whose bias stays zero."""
        return {**super().module_options(target), "kind": "affine"}

    def fit(self, site: Site) -> Fit:
        """Least squares about zero, in sequence, with a ridge chosen by held-out folds."""
        new, context = site.stand_in(**self.module_options(site.target)), [site.block] if site.corrects else []

        def pairs(edited: Sequence[Any], original: Sequence[Any], batch: Any) -> tuple[Tensor, Tensor]:
            return edited[0].x.float(), site.aim(edited, original)

        first, last = site.spans[0], site.spans[-1]
        fitted, tokens = site.least_squares([first, *context], [last, *context], pairs, intercept=False)
        with torch.no_grad():
            new.map[0].weight.copy_(fitted.weight.T)
            new.map[0].bias.zero_()
        return Fit(site.placed(new), fitted, tokens)


@dataclass(frozen=True)
class Way:
    """What is replaced by what, and where that is not the usual, how it becomes a file.

    ``literal``: see `gguf_file.write_gguf`. ``stock``: saved as a Mistral first, whose attentions have windows.
    """

    kind: Kind | None = None
    selection: Selection = Selection()
    literal: bool = False
    stock: bool = False


_BLOCKS = Selection(count=2, select="influence")
_ATTENTIONS = Selection(target="attention", count=2)
_LEAST = Selection(target="attention", count=2, select="divergence")
_LATE = Selection(target="attention", blocks=[22, 24])
_MLPS = Selection(target="mlp", blocks=[1, 2])

STUDIES = [
    replace(
        STORIES,
        fitted=18_432,
        folder="engines",
        ways={
            "original": Way(),
            "drop-blocks": Way(Drop(), _BLOCKS),
            "folded-blocks": Way(Folded(), _BLOCKS),
            "mean-blocks": Way(Mean(), _BLOCKS),
            "drop-attentions": Way(Drop(), _LEAST),
            "matrix-attentions": Way(Matrix(), _ATTENTIONS),
            "affine-attentions": Way(Affine(), _ATTENTIONS),
            "mean-attentions": Way(Mean(), _LEAST),
            "drop-blocks-of-these-mlps": Way(Drop(), Selection(blocks=[1, 2])),
            "drop-mlps": Way(Drop(), _MLPS),
            "drop-mlps-no-width": Way(Drop(), _MLPS, literal=True),
            "affine-mlps": Way(Affine(), _MLPS),
            "affine-blocks": Way(Affine(), _BLOCKS),
            "filter-attentions": Way(Filter(), _ATTENTIONS),
            "bounded-attentions": Way(Bounded(window=16, sinks=0), Selection(target="attention", blocks=[*range(5)])),
            "window-attentions": Way(
                Bounded(window=16, sinks=0, far="none", uniform=True),
                Selection(target="attention", blocks=[*range(5)]),
                literal=True,
                stock=True,
            ),
        },
    ),
    replace(
        SMOLLM2,
        fitted=6_144,
        scored=8_192,
        folder="engines",
        ways={
            "original": Way(),
            "drop-blocks": Way(Drop(), _BLOCKS),
            "folded-blocks": Way(Folded(), _BLOCKS),
            "drop-attentions": Way(Drop(), _LATE),
            "matrix-attentions": Way(Matrix(), _LATE),
            "affine-attentions": Way(Affine(), _LATE),
        },
    ),
]


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    make_cells(STUDIES, measure, __doc__.splitlines()[0], COMMAND, lambda cell, study: describe(cell))


def measure(study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """A cell: the checkpoint, the file, and predictions by both on the same rows."""
    with tempfile.TemporaryDirectory() as folder:
        return measure_in(Path(folder), study, model, texts, way)


def measure_in(folder: Path, study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """The same, with a folder for the files."""
    found: dict[str, Any] = {"model": study.model, "seq_len": study.seq_len}
    checkpoint = model
    if way.kind:
        checkpoint, options = folder / "checkpoint", {"kind": way.kind.name, **way.kind.model_dump(mode="json")}
        plan = linearized(study, model, texts, way.kind, way.selection, batch_size=4, out=checkpoint).plan
        blocks = sorted({block for one in plan.replacements for block in one.blocks})
        found |= {"options": options, "target": way.selection.target or "block", "blocks": blocks}
    config = json.loads((checkpoint / "config.json").read_text())
    found["own_code"] = "auto_map" in config
    reference: Any = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=found["own_code"]
    ).eval()
    found["parameters"] = count_parameters([reference])
    ids = (
        Origin(model, Loading())
        .rows(texts / study.score, Rows(max_tokens=study.scored, seq_len=study.seq_len), load_tokenizer(model))
        .ids
    )
    if way.stock:
        checkpoint, found["stock"] = as_windows(checkpoint, reference, way.kind, ids, folder / "stock")
    found["versions_of_engines"] = {name: version(name) for name in ("xllamacpp", "gguf")} | {"system": system()}
    file = folder / "model.gguf"
    try:
        found["architecture"] = write_gguf(checkpoint, file, way.literal)
    except NoPlaceError as error:
        return {**found, "refused": str(error)}
    return {**found, "bytes": file.stat().st_size, **compare(reference, file, ids, model, texts / study.score)}


def as_windows(checkpoint: Path, reference: Any, kind: Any, ids: Tensor, folder: Path) -> tuple[Path, dict[str, Any]]:
    """The same weights as a Mistral, whose attentions have a window in the configuration, and how that compares."""
    old = json.loads((checkpoint / "config.json").read_text())
    kept = {
        key: value
        for key, value in old.items()
        if key not in ("architectures", "auto_map", "model_type", "rectilinear")
    }
    stock = MistralForCausalLM(MistralConfig(**kept, sliding_window=kind.window))
    stock.load_state_dict(reference.state_dict())
    stock.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        differences = [(loaded(row[None]).logits - reference(row[None]).logits).abs().max().item() for row in ids[:16]]
    return folder, {
        "architecture": type(loaded).__name__,
        "largest_difference": max(differences),
        "rows": len(differences),
    }


def compare(reference: Any, file: Path, ids: Tensor, model: Path, text: Path) -> dict[str, Any]:
    """Losses by row, and how far logits and log-probabilities are apart, with exact arithmetic and by default."""
    found: dict[str, Any] = {"rows": len(ids), "losses": {"transformers": []}}
    engines = {"exact": Engine(file, ids.shape[1]), "default": Engine(file, ids.shape[1], exact=False)}
    found |= {"layers": engines["exact"].layers, "parameters_in_file": engines["exact"].parameters}
    found["differences"] = {name: {"logits": 0.0, "log_probabilities": 0.0, "same_first": 0} for name in engines}
    for row in ids:
        with torch.no_grad():
            ours = reference(row[None], use_cache=False).logits[0]
        predicted = ours.log_softmax(-1)
        found["losses"]["transformers"].append(loss_of(predicted, row))
        for name, engine in engines.items():
            theirs, differences = torch.from_numpy(engine.logits(row.tolist())), found["differences"][name]
            logs = theirs.log_softmax(-1)
            found["losses"].setdefault(name, []).append(loss_of(logs, row))
            for what, apart in (("logits", theirs - ours), ("log_probabilities", logs - predicted)):
                differences[what] = max(differences[what], apart.abs().max().item())
            differences["same_first"] += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
    sample = text.read_text(encoding="utf-8")[:100_000]
    wanted = load_tokenizer(model)(sample).input_ids
    found["ids"] = {"of_characters": len(sample), "count": len(wanted), "same": engines["exact"].ids(sample) == wanted}
    for engine in engines.values():
        engine.close()
    return found


def loss_of(log_probabilities: Tensor, row: Tensor) -> float:
    """Sum of the losses of all tokens but the first, in nats."""
    return -log_probabilities[:-1].gather(1, row[1:, None]).double().sum().item()


def perplexities(cell: dict[str, Any]) -> dict[str, float]:
    """Of transformers and of llama.cpp, with exact arithmetic and by default."""
    tokens = cell["rows"] * (cell["seq_len"] - 1)
    return {name: math.exp(math.fsum(losses) / tokens) for name, losses in cell["losses"].items()}


def describe(cell: dict[str, Any]) -> str:
    """Its perplexities and differences."""
    if "refused" in cell:
        return f"refused: {cell['refused']}"
    words = [cell["architecture"], *(f"{name} {value:.5f}" for name, value in perplexities(cell).items())]
    return ", ".join([*words, json.dumps(cell["differences"]["exact"])])


if __name__ == "__main__":
    main()
