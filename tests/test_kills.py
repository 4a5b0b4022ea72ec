"""Every command, killed at every step that it takes on disk: the old result or the new one, whole; then it succeeds.

``make faults`` tries every step and counts them; without ``RECTILINEAR_FAULTS`` a few steps of each command are tried.
"""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from rectilinear.cli.main import main
from tests import faults
from tests.conftest import build_llama
from tests.judges import serving
from tests.superglue import write_superglue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
]

#: How many steps of each command to try; 0 for all.
SAMPLE = 0 if os.environ.get("RECTILINEAR_FAULTS") == "all" else 3

#: What differs between two runs of the same command.
TIMES = re.compile(r"seconds|time|date|created|memory|per_second|cpu|uuid|flos|samples_per|steps_per")

TEXT = ("--text", "text.txt", "--max-tokens", 600, "--seq-len", 16, "--device", "cpu")
LINEARIZE = ("linearize", "dense", *TEXT, "--blocks", 1)
TRAIN = (
    *("pretrain", "--text", "text.txt", "--preset", "mistral-1m", "--vocab-size", 300, "--seq-len", 16),
    *("--batch-size", 4, "--gradient-accumulation", 1, "--max-steps", 4, "--save-every", 2, "--probe-every", 2),
    *("--dtype", "float32", "--device", "cpu"),
)
TUNE = ("finetune", "dense", "--task", "cb", "--data", "superglue", "--seeds", 2, "--epochs", 1, "--save-models")
TUNE = (*TUNE, "--text", "text.txt", "--max-tokens", 600, "--seq-len", 64, "--device", "cpu")
JUDGE = ("judge", "dense", "--text", "text.txt", "--count", 3, "--max-new-tokens", 8, "--beginning-words", 5)

#: Each command, and one over an earlier result of another request.
COMMANDS = {
    "inspect": ("inspect", "dense"),
    "measure": ("measure", "dense", *TEXT),
    "dynamics": ("dynamics", "dense", "other", *TEXT),
    "evaluate": ("evaluate", "dense", *TEXT, "--no-speed"),
    "evaluate several": ("evaluate", "dense", "other", *TEXT, "--no-speed"),
    "compare": ("compare", "evaluated/dense", "evaluated/other"),
    "probe": ("probe", "dense", "--task", "cb", "--data", "superglue", "--seq-len", 64, "--device", "cpu"),
    "linearize drop": (*LINEARIZE, "--kind", "drop"),
    "linearize affine": (*LINEARIZE, "--kind", "affine"),
    "linearize healed": (*LINEARIZE, "--kind", "affine", "--heal-steps", 2, "--heal-batch-size", 2),
    "pretrain": TRAIN,
    "finetune": TUNE,
    "judge": JUDGE,
}
OVER = {
    "measure": ("measure", "other", *TEXT),
    "linearize affine": ("linearize", "dense", *TEXT, "--blocks", 0, "--kind", "filter", "--rank", 4),
    "linearize drop": ("linearize", "other", *TEXT, "--blocks", 0, "--kind", "affine"),
    "pretrain": (*TRAIN, "--seed", 1),
    "finetune": (*TUNE, "--seed", 3),
    "judge": (*JUDGE, "--seed", 1),
}


@dataclass
class Tally:
    """What was tried, for docs/reliability.md."""

    rows: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name, at):
        self.rows.setdefault(name, []).append(at)


def started(arguments):
    """A program that runs a command."""

    def program():
        sys.argv = ["rectilinear", *map(str, arguments)]
        main()

    return program


def described(folder):
    """All that a folder holds, but for times: by name, what can be compared."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if not path.is_dir()}


def _content(path):
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return sorted(json.dumps(without_times(json.loads(line)), sort_keys=True) for line in path.open())
    if path.suffix in {".svg", ".png", ".pdf"}:
        return "a figure"
    if path.suffix in {".bin", ".pth", ".pt"}:  # pickled with times and paths
        return "a state of training"
    return sha256(path.read_bytes()).hexdigest()


def without_times(found):
    if isinstance(found, dict):
        return {name: without_times(value) for name, value in found.items() if not TIMES.search(name)}
    if isinstance(found, list):
        return [without_times(value) for value in found]
    return found


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tiny_tokenizer, text_file, tmp_path_factory):
    """A folder with two models, a text, tasks and evaluations, and the folder below it that commands write into."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_checkpoint, folder / "dense")
    build_llama(seed=4).save_pretrained(folder / "other")
    tiny_tokenizer.save_pretrained(folder / "other")
    shutil.copy(text_file, folder / "text.txt")
    write_superglue(folder / "superglue", train=40, validation=8)
    (folder / "work").mkdir()
    before = Path.cwd()
    os.chdir(folder)
    for name in ("dense", "other"):
        code, _ = faults.run(
            started(["evaluate", name, *TEXT, "--no-speed", "--out", f"evaluated/{name}"]), folder, "log"
        )
        assert code == 0, Path("log").read_text()
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def judge_server():
    with pytest.MonkeyPatch.context() as patch, serving() as server:
        patch.setenv("OPENAI_API_KEY", "none")
        yield server


def state(out):
    """What a reader takes a folder for: nothing where what makes it a result is not there."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    marked = any(name.endswith(".json") and name not in {"recipe.json", "request.json"} for name in names)
    return described(out) if marked else None


CASES = [(name, False) for name in COMMANDS] + [(name, True) for name in OVER]


@pytest.mark.parametrize(("name", "over"), CASES, ids=[f"{name}{' over another' * over}" for name, over in CASES])
def test_a_kill_at_a_step_of_a_command(name, over, place, judge_server, record_property):
    root, out, log = place / "work", place / "work" / "out", place / "log"
    more = ["--judge-url", judge_server.url, "--judge-model", "wise"] if name == "judge" else []
    program = started([*COMMANDS[name], *more, "--out", out, *(["--overwrite"] if over else [])])

    def prepare():
        shutil.rmtree(root)
        root.mkdir()
        if over:
            shutil.copytree(place / "earlier", out)

    if over:
        shutil.rmtree(root)
        root.mkdir()
        assert faults.run(started([*OVER[name], *more, "--out", out]), root, log)[0] == 0, log.read_text()
        shutil.rmtree(place / "earlier", ignore_errors=True)
        shutil.copytree(out, place / "earlier")
    prepare()
    earlier = state(out)
    code, steps = faults.run(program, root, log)
    assert code == 0, log.read_text()
    whole = described(out)
    assert os.listdir(root) == ["out"]
    tried = range(1, len(steps) + 1)
    if SAMPLE:
        tried = sorted({round(1 + (len(steps) - 1) * (place + 0.5) / SAMPLE) for place in range(SAMPLE)})
    for at in tried:
        prepare()
        code, _ = faults.run(program, root, log, at)
        assert code == -9, (at, code, log.read_text())
        found = state(out)
        if found is not None and name not in {"pretrain", "finetune", "judge", "evaluate several"}:
            assert found in (earlier, whole), (at, steps[at - 1])
        code, _ = faults.run(program, root, log)
        assert code == 0, (at, steps[at - 1], log.read_text())
        assert described(out) == whole, (at, steps[at - 1])
        assert os.listdir(root) == ["out"], (at, steps[at - 1])
    record_property("steps", len(steps))
    record_property("kills", len(tried))
