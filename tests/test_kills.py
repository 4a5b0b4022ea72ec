"""Every command, killed at every step that it takes on disk: the old result or the new one, whole; then it succeeds.

``make faults`` tries every step and counts them; else a step of each command is tried, and of some with a full disk.
"""

import gc
import json
import os
import random
import re
import shutil
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path

import pytest

from rectilinear.cli.main import main
from tests import faults
from tests.conftest import build_llama
from tests.hostile import MANY
from tests.judges import serving
from tests.superglue import write_superglue

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
]

#: How many steps of each command to try; 0 for all.
SAMPLE = 0 if MANY else 1

#: What differs between two runs of the same command.
TIMES = re.compile(r"seconds|time|date|created|memory|per_second|cpu|uuid|flos|samples_per|steps_per")

TEXT = ("--text", "text.txt", "--max-tokens", 600, "--seq-len", 16, "--device", "cpu")
LINEARIZE = ("linearize", "dense", *TEXT, "--blocks", 1)
TRAIN = (
    *("pretrain", "--text", "text.txt", "--preset", "mistral-1m", "--vocab-size", 300, "--seq-len", 16),
    *("--max-tokens", 800),
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
    "explain": ("explain", "dense", *TEXT, "--blocks", 1),
    "report": ("report", "evaluated"),
    "probe": (
        *("probe", "dense", "--task", "cb", "--data", "superglue", "--seq-len", 64, "--folds", 2, "--device", "cpu"),
    ),
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
def _imported():
    """What commands import as they need it, which each of their forks would do again."""
    for name in ("matplotlib.pyplot", "openai", "sklearn.linear_model", "rectilinear.training.trainer"):
        import_module(name)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def place(_imported, tiny_checkpoint, tiny_tokenizer, text_file, tmp_path_factory):
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


def state(out, whole):
    """What a reader takes a folder for: nothing where what makes it a result is gone, of a checkpoint its config."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    results = {name for name in whole if name.endswith(".json")} - {"recipe.json", "request.json"}
    return described(out) if names & ({"config.json"} & results or results) else None


#: What publishes more than once, so that a part of the result may be there; what a stopped run can be gone on with.
BY_PARTS = {"pretrain", "finetune", "judge", "evaluate several"}
RESUMED = {"pretrain", "finetune", "judge"}

CASES = [(name, False) for name in COMMANDS] + [(name, True) for name in OVER]


@dataclass(frozen=True)
class Trial:
    """A command in a place, what was there before it, and what it makes when nothing goes wrong."""

    place: Path
    name: str
    over: bool
    arguments: tuple

    @property
    def out(self):
        return self.place / "work" / "out"

    def run(self, *more, at=None, act=faults.kill, arguments=None, after=None):
        program = started([*(arguments or self.arguments), "--out", self.out, *more])
        return faults.run(program, self.place / "work", self.place / "log", at, act, after)

    def again(self, *more):
        overwrite = ["--overwrite"] if self.over and not more else []
        return self.run(*overwrite, *more)

    def log(self):
        return (self.place / "log").read_text()

    def restore(self, name="earlier"):
        shutil.rmtree(self.place / "work")
        shutil.copytree(self.place / name, self.place / "work")

    def keep(self, name):
        shutil.rmtree(self.place / name, ignore_errors=True)
        shutil.copytree(self.place / "work", self.place / name)


@pytest.fixture
def trial(request, place, judge_server, reload_here):
    name, over = request.param
    more = ("--judge-url", judge_server.url, "--judge-model", "wise") if name == "judge" else ()
    made = Trial(place, name, over, (*COMMANDS[name], *more))
    shutil.rmtree(place / "work")
    (place / "work").mkdir()
    if over:
        assert made.run(arguments=(*OVER[name], *more))[0] == 0, made.log()
    made.keep("earlier")
    return made


def sample(steps):
    if not SAMPLE:
        return range(1, len(steps) + 1)
    return sorted({round(1 + (len(steps) - 1) * (place + 0.5) / SAMPLE) for place in range(SAMPLE)})


def each(cases):
    names = [f"{name}{' over another' * over}" for name, over in cases]
    return pytest.mark.parametrize("trial", cases, ids=names, indirect=True)


every = each(CASES)
over_some = each([("measure", False), ("linearize drop", False), ("judge", False)]) if SAMPLE else every


def undisturbed(trial):
    """What was there before a command, the steps that it takes, and all that it makes."""
    earlier = described(trial.out) if trial.over else None
    code, steps = trial.again()
    assert code == 0, trial.log()
    return earlier, steps, described(trial.out)


@every
def test_a_kill_at_a_step_of_a_command(trial):
    earlier, steps, whole = undisturbed(trial)
    assert os.listdir(trial.place / "work") == ["out"]
    for at in sample(steps):
        said = (at, steps[at - 1])
        trial.restore()
        code, _ = trial.run(*["--overwrite"] * trial.over, at=at)
        assert code == -9, (*said, code, trial.log())
        found = state(trial.out, whole)
        if found is not None and trial.name not in BY_PARTS:
            assert found in (earlier, whole), said
        trial.keep("killed")
        for more in [(), ("--resume",)] if trial.name in RESUMED and not trial.over else [()]:
            trial.restore("killed")
            assert trial.again(*more)[0] == 0, (*said, more, trial.log())
            assert described(trial.out) == whole, (*said, more)
            assert os.listdir(trial.place / "work") == ["out"], (*said, more)
    faults.report(command=trial.name, over=trial.over, steps=len(steps), kills=len(sample(steps)))


@each([(name, over) for name, over in CASES if not SAMPLE or name in ("measure", "linearize affine", "judge")])
def test_a_kill_at_a_random_moment_of_a_command(trial, monkeypatch):
    """Between two steps on disk as well, and with what earlier runs kept in the folder for caches."""
    cache = trial.place / "cache"
    monkeypatch.setenv("RECTILINEAR_CACHE", str(cache))
    shutil.rmtree(cache, ignore_errors=True)
    began = time.monotonic()
    earlier, _, whole = undisturbed(trial)
    took, draw, killed = time.monotonic() - began, random.Random(trial.name), 0
    for _ in range(20):  # some come after its end
        if killed == (SAMPLE or 5):
            break
        trial.restore()
        shutil.rmtree(cache, ignore_errors=True)
        after = draw.random() * took
        code, _ = trial.run(*["--overwrite"] * trial.over, after=after)
        assert code in (-9, 0), (after, code, trial.log())
        killed += code == -9
        found = state(trial.out, whole)
        if found is not None and trial.name not in BY_PARTS:
            assert found in (earlier, whole), after
        more = () if trial.over or trial.name not in RESUMED or not trial.out.exists() else ("--resume",)
        if code:
            assert trial.again(*more)[0] == 0, (after, trial.log())
        assert described(trial.out) == whole, after
        assert os.listdir(trial.place / "work") == ["out"], after
    assert killed
    faults.report(command=trial.name, over=trial.over, moments=killed)


@over_some
def test_a_disk_that_is_full_at_a_step_of_a_command(trial):
    earlier, steps, whole = undisturbed(trial)
    for at in sample(steps):
        said = (at, steps[at - 1])
        trial.restore()
        code, _ = trial.run(*["--overwrite"] * trial.over, at=at, act=faults.fill)
        assert code in (0, 1), (*said, code, trial.log())
        assert "Traceback" not in trial.log(), (*said, trial.log())
        if code:
            assert "No space left" in trial.log(), (*said, trial.log())
            if trial.name not in BY_PARTS:
                assert state(trial.out, whole) == earlier, said
            again = () if trial.over or trial.name not in RESUMED or not trial.out.exists() else ("--resume",)
            assert trial.again(*again)[0] == 0, (*said, trial.log())
        assert described(trial.out) == whole, said
    faults.report(command=trial.name, over=trial.over, steps=len(steps), full=len(sample(steps)))
