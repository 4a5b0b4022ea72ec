"""How linear are decoders that people use, and what moves the answer? Profiles of SmolLM2-135M and Gemma-3-270M.

A cell is a model, a text and a way to measure it. Each is a file of its own in benchmarks/real, and one that is there is
not made again, so that a run which was stopped goes on. A cell of 100,000 tokens takes a quarter of an hour on one
core, all of them some two hours; benchmarks/real_page.py then writes docs/real.md.

    python benchmarks/real.py MODELS TEXTS

MODELS: folder with smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct) and gemma3-270m (google/gemma-3-270m).
TEXTS: folder with wikitext2/score.txt and tinystories/valid.txt, documents separated by <|endoftext|>, and
superglue/BoolQ/val.jsonl.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rectilinear
from rectilinear import Loading, Measurement, Profile, Rows
from rectilinear.models.load import load_tokenizer

CELLS = Path(__file__).parent / "real"
MODELS = ("smollm2-135m", "gemma3-270m")
TEXTS = {"wikitext": "wikitext2/score.txt", "tinystories": "tinystories/valid.txt", "chat": "superglue/BoolQ/val.jsonl"}
TARGETS = ("block", "attention", "mlp")
#: How each model is in its element: Gemma was trained on rows that all begin with BOS.
OWN_BOS = {"smollm2-135m": "document", "gemma3-270m": "row"}
LONG, SHORT = 100_000, 16_384
#: Hub ids.
NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "gemma3-270m": "google/gemma-3-270m"}
#: Blocks of the first model that are explained: the one that makes an outlier of the first token, and a usual one.
EXPLAINED = (11, 18)


EXPLANATION = CELLS / f"{MODELS[0]}-wikitext-{SHORT}-explained.json"


@dataclass(frozen=True)
class Cell:
    """What is measured: a model on a text, as usual but for some settings."""

    model: str
    text: str
    tokens: int = SHORT
    changes: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Of its file."""
        values = {name.replace("_", ""): "" if value is True else f"-{value}" for name, value in self.changes.items()}
        changed = "".join(f"-{name}{value}" for name, value in values.items())
        return f"{self.model}-{self.text}-{self.tokens}{changed}"

    @property
    def file(self) -> Path:
        """Where its profile is."""
        return CELLS / f"{self.name}.json"

    def measure(self, models: Path, text: Path) -> Profile:
        """The profile."""
        usual = {
            "seq_len": 512,
            "bos": OWN_BOS[self.model],
            "dtype": "float32",
            "convention": "block",
            "sink_ratio": 10.0,
            "pairs": False,
        }
        given: dict[str, Any] = usual | self.changes
        targets = ("block",) if {"convention", "sink_ratio", "pairs"} & {*self.changes} else TARGETS
        measurement = {name: given[name] for name in ("convention", "sink_ratio", "pairs")} | {"target": targets}
        return rectilinear.measure(
            models / self.model,
            text,
            Measurement(**measurement),
            rows=Rows(max_tokens=self.tokens, seq_len=given["seq_len"], bos=given["bos"]),
            loading=Loading(device="cpu", dtype=given["dtype"]),
        )


def cells() -> Iterator[Cell]:
    """The texts at length, then what moves a profile."""
    for model in MODELS:
        yield Cell(model, "wikitext")
        yield Cell(model, "wikitext", LONG)
        other = {"document": "row", "row": "document"}[OWN_BOS[model]]
        for changes in (
            {"bos": other},
            {"dtype": "bfloat16"},
            {"seq_len": 128},
            {"seq_len": 2048},
            {"convention": "paper"},
            {"sink_ratio": 3.0},
            {"sink_ratio": 30.0},
            {"pairs": True},
        ):
            yield Cell(model, "wikitext", SHORT, changes)
    for text in ("tinystories", "chat"):
        for model in MODELS:
            yield Cell(model, text, LONG)


def chat_turns(questions: Path, tokenizer: Any, folder: Path) -> Path:
    """Questions about a passage and their answers as conversations in a chat template, one a document."""
    file = folder / "chat.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for line in questions.read_text(encoding="utf-8").splitlines():
            asked = json.loads(line)
            turns = [
                {"role": "user", "content": f"{asked['passage']}\n\n{asked['question'].capitalize()}?"},
                {"role": "assistant", "content": "Yes." if asked["label"] else "No."},
            ]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            lines.write(json.dumps({"text": text}) + "\n")
    return file


def explain(models: Path, texts: Path) -> dict[str, Any]:
    """The record of what the maps of some blocks do."""
    found = rectilinear.explain(
        models / MODELS[0],
        texts / TEXTS["wikitext"],
        rectilinear.Explaining(blocks=EXPLAINED, depths=True),
        rows=Rows(max_tokens=SHORT, seq_len=512),
        loading=Loading(device="cpu", dtype="float32"),
    )
    return json.loads(found.explanation.to_json())


def write(file: Path, written: dict[str, Any], model: str, text: str) -> None:
    """Write a record: of what users can get, not of where it was here."""
    written = rounded(written)
    written["model"]["id"], written["data"]["source"] = NAMES[model], TEXTS[text]
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(written, separators=(",", ":")) + "\n", encoding="utf-8")
    partial.replace(file)
    print(f"wrote {file.name}", flush=True)


def rounded(found: Any) -> Any:
    """Numbers of a record to six significant digits, which the errors are far above."""
    if isinstance(found, dict):
        return {name: rounded(value) for name, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def main() -> None:
    """Make the cells that are not there."""
    models, texts = map(Path, sys.argv[1:])
    # Libraries that are imported later are to find the package coverage, not the benchmark of that name.
    sys.path.remove(str(Path(__file__).parent))
    CELLS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for cell in cells():
            if cell.file.exists():
                continue
            text = texts / TEXTS[cell.text]
            if cell.text == "chat":
                text = chat_turns(text, load_tokenizer(models / MODELS[0]), Path(scratch))
            write(cell.file, json.loads(cell.measure(models, text).to_json()), cell.model, cell.text)
    if not EXPLANATION.exists():
        write(EXPLANATION, explain(models, texts), MODELS[0], "wikitext")


if __name__ == "__main__":
    main()
