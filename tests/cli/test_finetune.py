"""The command gives what the function gives, or says in one line why not."""

import json
import re
import shutil

import pytest

import rectilinear
from rectilinear.text.tasks import TASKS
from rectilinear.training import finetune as module
from rectilinear.training.settings import Profiling, Tuning
from tests.conftest import without_time
from tests.superglue import write_lines, write_superglue

SIZE = (
    "--seq-len",
    48,
    "--max-tokens",
    480,
    "--batch-size",
    8,
    "--max-steps",
    3,
    "--dtype",
    "float32",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_superglue(tmp_path_factory.mktemp("superglue"))


@pytest.fixture(scope="module")
def finetuned(process, tiny_checkpoint, data, tmp_path_factory):
    """What a real process printed, and the folder it wrote."""
    out = tmp_path_factory.mktemp("finetuned") / "new" / "out"
    ran = process("finetune", tiny_checkpoint, "--task", "cb", "--data", data, "--seeds", 2, *SIZE, "--out", out)
    return ran, out


def test_writes_what_the_function_gives(finetuned, tiny_checkpoint, data):
    (code, _, err), out = finetuned
    assert (code, err) == (0, "")
    assert [path.name for path in out.iterdir()] == ["finetuning.json"]
    written = rectilinear.Finetuning.load(out)
    tuning = Tuning(data=str(data), seeds=2, batch_size=8, max_steps=3, dtype="float32", device="cpu")
    given = rectilinear.finetune(str(tiny_checkpoint), "cb", tuning, Profiling(seq_len=48, max_tokens=480))
    assert without_time(written) == without_time(given)


def test_the_file_has_the_keys_that_others_read(finetuned):
    told = json.loads((finetuned[1] / "finetuning.json").read_text(encoding="utf-8"))
    assert told["schema"] == "rectilinear.finetuning/1"
    assert {"model", "task", "data", "text", "settings", "environment", "before", "runs", "summary"} <= told.keys()
    assert told["summary"]["update_linearity"]["in_sample"].keys() == {"mean", "deviation", "n"}
    assert told["runs"][1]["metrics"]["macro_f1"].keys() == {"value", "stderr", "baseline"}
    assert told["runs"][1]["change"]["update_linearity"].keys() == {"in_sample", "held_out"}


def test_prints_a_table(finetuned):
    (_, out, _), folder = finetuned
    summary = rectilinear.Finetuning.load(folder).summary
    for spread, form in (
        (summary.update_linearity.in_sample, "+.4f"),
        (summary.update_linearity.held_out, "+.4f"),
        (summary.metrics["macro_f1"], ".4f"),
    ):
        assert f"{spread.mean:{form}} ± {spread.deviation:.4f}" in out
    assert "standard deviation over 2 seeds" in out
    assert out.rstrip().endswith(f"wrote finetuning.json to {folder}")


def test_one_seed_is_printed_without_a_deviation(command, tiny_checkpoint, data):
    pairs = data / "pairs.jsonl"
    ran = command("finetune", tiny_checkpoint, "--task", "reward", "--data", pairs, "--seeds", 1, *SIZE)
    assert (ran.code, ran.err) == (0, "")
    assert "one seed: no deviation" in ran.out
    assert not re.search(r"\d ± \d", ran.out)


def test_resumes(command, tiny_checkpoint, data, tmp_path, monkeypatch):
    run_seed = module._run_seed

    def interrupted(*arguments):
        if arguments[2] == 1:
            raise KeyboardInterrupt
        return run_seed(*arguments)

    line = ["finetune", tiny_checkpoint, "--task", "cb", "--data", data, "--seeds", 2, *SIZE, "--out", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr(module, "_run_seed", interrupted)
        ran = command(*line)
    assert ran.code == 130
    assert f"{tmp_path / 'out'} keeps the seeds that are done; to go on, add --resume" in ran.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["seed-0.json"]
    kept = rectilinear.Finetuning.load(tmp_path / "out" / "seed-0.json").runs
    again = command(*line, "--resume")
    assert (again.code, again.err) == (0, "")
    result = rectilinear.Finetuning.load(tmp_path / "out")
    assert result.runs[0] == kept[0]
    assert len(result.runs) == 2


def test_help_has_an_example_and_every_task(command):
    ran = command("finetune", "--help")
    assert (ran.code, ran.err) == (0, "")
    assert "Example: rectilinear finetune" in ran.out
    assert all(re.search(rf"\b{name}\b", ran.out) for name in TASKS)


LINE = "finetune {model} --task cb --data {data}"

#: What is asked for, and what the answer must say.
WRONG = {
    "no such task": ("finetune {model} --task cd --data {data}", "got 'cd'; try cb"),
    "no task": ("finetune {model} --data {data}", "--task"),
    "no such model": ("finetune {here}/none --task cb --data {data}", "no model at {here}/none"),
    "no such data": ("finetune {model} --task cb --data {here}/none", "no data at {here}/none"),
    "no such Hub id": ("finetune {model} --task cb --data nobody/nothing", "no data 'nobody/nothing'"),
    "no pairs": ("finetune {model} --task reward", "expected --data for --task reward"),
    "no folder of the task": ("finetune {model} --task cb --data {bad}/BoolQ", "expected a folder CB in {bad}/BoolQ"),
    "no split": ("finetune {model} --task wsc --data {bad}", "expected val.jsonl in {bad}/WSC, got train.jsonl"),
    "no column": (
        "finetune {model} --task boolq --data {bad}",
        "BoolQ/train.jsonl, line 2: expected a column 'passage', got question, label",
    ),
    "no JSON": ("finetune {model} --task rte --data {bad}", "RTE/train.jsonl, line 1: expected JSON, got 'premise'"),
    "empty file": ("finetune {model} --task cb --data {bad}", "expected at least one line in {bad}/CB/train.jsonl"),
    "unknown label": (
        "finetune {model} --task wic --data {bad}",
        'WiC/val.jsonl, line 1: expected label false, true, got "yes"',
    ),
    "no rejected": (
        "finetune {model} --task reward --data {bad}/pairs.jsonl",
        "expected a column 'rejected', got chosen",
    ),
    "long rows": (LINE + " --seq-len 65", "try --seq-len 64"),
    "no text": (LINE + " --seq-len 32 --text {here}/none.txt", "no text at {here}/none.txt"),
    "short text": (LINE + " --max-examples 1 --seq-len 64", "at least one row of 64 tokens, got "),
    "no seeds": (LINE + " --seeds 0", "--seeds"),
    "no rate": (LINE + " --learning-rate 0", "expected --learning-rate to be greater than 0, got "),
    "no such penalty": (LINE + " --regularizer l2", "'l2'"),
    "idle strength": (LINE + " --strength 2", "expected no --strength without --regularizer"),
    "idle epochs": (LINE + " --max-steps 3 --epochs 1", "expected no --epochs with --max-steps"),
    "no such strength": (
        LINE + " --regularizer mse --strength -1",
        "expected --strength to be greater than or equal to 0, got ",
    ),
    "no such blocks": (LINE + " --seq-len 32 --blocks model.nope", "model.layers (3 x LlamaDecoderLayer)"),
}


@pytest.fixture(scope="module")
def places(tiny_checkpoint, data, tmp_path_factory):
    """Good and bad inputs, and an empty folder to run in."""
    bad, here = tmp_path_factory.mktemp("bad"), tmp_path_factory.mktemp("here")
    shutil.copytree(data, bad, dirs_exist_ok=True)
    asked = {"question": "is it", "passage": "It is.", "label": True}
    write_lines(bad / "BoolQ" / "train.jsonl", [asked, {"question": "is it", "label": True}])
    write_lines(bad / "CB" / "train.jsonl", [])
    (bad / "RTE" / "train.jsonl").write_text("premise\n")
    write_lines(bad / "WiC" / "val.jsonl", [{"word": "a", "sentence1": "a", "sentence2": "a", "label": "yes"}])
    (bad / "WSC" / "val.jsonl").unlink()
    write_lines(bad / "pairs.jsonl", [{"chosen": "a"}] * 2)
    return {"model": tiny_checkpoint, "data": data, "bad": bad, "here": here}


def check(ran, code, says):
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("rectilinear: error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request(name, command, places, monkeypatch):
    monkeypatch.chdir(places["here"])
    line, says = (text.format(**places) for text in WRONG[name])
    check(command(*line.split(), "--device", "cpu", "--out", "out/new"), 2, says)
    assert list(places["here"].iterdir()) == []


def test_out_that_is_not_empty(command, places, tmp_path):
    (tmp_path / "notes.txt").write_text("old")
    line = LINE.format(**places).split()
    check(command(*line, "--out", tmp_path), 2, "--overwrite")
    check(command(*line, "--out", tmp_path, "--resume"), 2, "holds no run to resume")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_job_that_diverges(command, places, tmp_path):
    line = [*LINE.format(**places).split(), *SIZE, "--learning-rate", "1e30", "--seeds", 1]
    check(command(*line, "--out", tmp_path / "out"), 1, "seed 0: expected ")
    assert list(tmp_path.iterdir()) == []
