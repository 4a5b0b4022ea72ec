"""The command that a result says made it makes the same again, options that were not the defaults with it."""

import json
import re
import shlex
import shutil

import pytest

from rectilinear.report.page import make_report, result_kinds
from tests.conftest import build_llama
from tests.judges import serving
from tests.superglue import write_superglue

TEXT = ("--text", "text.txt", "--max-tokens", 600, "--seq-len", 16)
PRETRAIN = ("pretrain", "--text", "text.txt", "--preset", "mistral-1m", "--seq-len", 16, "--max-tokens", 800)

pytestmark = pytest.mark.slow

COMMANDS = {
    "measure": ("measure", "dense", *TEXT, "--target", "block,mlp", "--folds", 3, "--bos", "none", "--pairs"),
    "dynamics": ("dynamics", "dense", "other", *TEXT, "--sink-ratio", 5),
    "evaluate": ("evaluate", "other", *TEXT, "--against", "dense", "--no-speed", "--tasks", "cb,copa"),
    "compare": ("compare", "evaluated/dense", "evaluated/other"),
    "explain": ("explain", "dense", *TEXT, "--blocks", "0-1", "--deviating", 3, "--depths"),
    "probe": ("probe", "dense", "--task", "cb", "--data", "superglue", "--seq-len", 64),
    "linearize": ("linearize", "dense", *TEXT, "--kind", "filter", "--rank", 2, "--count", 1, "--select", "loss"),
    "linearize named": ("linearize", "dense", *TEXT, "--blocks", "0-1", "--merge"),
    "linearize healed": ("linearize", "dense", *TEXT, "--blocks", 1, "--heal-steps", 2, "--heal-logits", 0.5),
    "linearize without means": ("linearize", "dense", *TEXT, "--blocks", 1, "--rates", "none"),
    "linearize choosing": ("linearize", "dense", *TEXT, "--choices", "affine:rank=2,drop", "--budget", "10%"),
    "pretrain": (*PRETRAIN, "--vocab-size", 300, "--max-steps", 2, "--regularizer", "mse", "--spare-embedding"),
    "pretrain with a tokenizer": (*PRETRAIN, "--tokenizer", "dense", "--max-steps", 2, "--held-out", "more.txt"),
    "finetune": ("finetune", "dense", "--task", "cb", "--data", "superglue", *TEXT, "--seeds", 2, "--max-steps", 2),
    "judge": ("judge", "dense", "--text", "text.txt", "--count", 2, "--max-new-tokens", 8, "--beginning-words", 5),
}
MORE = {
    "evaluate": ("--data", "superglue", "--limit", 3),
    "linearize healed": ("--heal-batch-size", 2, "--heal-learning-rate", 0.01),
    "linearize choosing": ("--target", "block", "--sweep", "parameters=80%"),
    "probe": ("--pooling", "last", "--folds", 2),
    "judge": ("--judge-model", "mine", "--reference", "other"),
}

#: What differs between two runs of the same command.
TIMES = re.compile(r"seconds|time|memory|per_second")


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, text_file, tiny_checkpoint):
    """A folder with what commands read, by short names."""
    place = tmp_path_factory.mktemp("place")
    (place / "text.txt").write_bytes(text_file.read_bytes())
    (place / "more.txt").write_bytes(text_file.read_bytes()[:5000])
    for name, seed in (("dense", 0), ("other", 1)):
        save_checkpoint(build_llama(vocabulary=128, seed=seed)).rename(place / name)
    write_superglue(place / "superglue")
    return place


def without_times(found):
    if isinstance(found, dict):
        return {name: without_times(value) for name, value in found.items() if not TIMES.search(name)}
    return [without_times(value) for value in found] if isinstance(found, list) else found


def result_of(folder, command):
    """The result that a command is about, and what its file has but for times."""
    files = [file for file in folder.iterdir() if file.name in result_kinds()]
    file = next(file for file in files if len(files) == 1 or file.name != "dynamics.json")
    section = make_report(file).sections[0]
    assert section.command.split()[:2] == ["rectilinear", command] or "-m rectilinear" in section.command
    return section.command, without_times(json.loads(file.read_text()))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_a_result_makes_it_again(name, place, command, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    arguments = [*COMMANDS[name], *MORE.get(name, ())]
    with serving() as server:
        if name == "compare":
            for model in ("dense", "other"):
                assert command("evaluate", model, *TEXT, "--no-speed", "--out", f"evaluated/{model}").code == 0
        if name == "judge":
            arguments += ["--judge-url", server.url]
        folder = tmp_path / "result"
        first = command(*arguments, "--out", folder)
        assert first.code == 0, first.err
        line, found = result_of(folder, arguments[0])
        shutil.rmtree(folder)
        words = [str(folder) if word == "DIR" else word for word in shlex.split(line)[1:]]
        again = command(*words, *([] if "--out" in words else ["--out", folder]))
        assert again.code == 0, (line, again.err)
    assert result_of(folder, arguments[0]) == (line, found)
