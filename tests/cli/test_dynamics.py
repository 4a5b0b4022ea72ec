"""``rectilinear dynamics``: what the function gives, as a table and as files that are whole or not there."""

import json
import os
import re
import shutil

import pytest
import torch

import rectilinear
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.report.write import write_result
from rectilinear.text.settings import Rows
from tests.conftest import build_llama

SIZE = ("--max-tokens", 2050, "--seq-len", 32, "--device", "cpu", "--batch-size", 16)
OPTIONS = {
    "rows": Rows(max_tokens=2050, seq_len=32),
    "loading": Loading(device="cpu"),
    "batch_size": 16,
}
FILES = ["dynamics.json", "dynamics.png", "dynamics.svg"]


@pytest.fixture(scope="module")
def run(tiny_tokenizer, tmp_path_factory):
    """A folder of two checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    for step in (0, 1500):
        build_llama(seed=step).save_pretrained(folder / f"checkpoint-{step}")
        tiny_tokenizer.save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture(scope="module")
def measured(process, run, text_file, tmp_path_factory):
    """What a real process printed, and the folder it wrote."""
    out = tmp_path_factory.mktemp("measured") / "new" / "dynamics"
    return process("dynamics", run, "--text", text_file, *SIZE, "--out", out), out


@pytest.fixture(scope="module")
def cache(run, tmp_path_factory):
    """A Hub cache with a model of two revisions."""
    folder = tmp_path_factory.mktemp("hub") / "models--org--model"
    for place, step in enumerate((0, 1500)):
        commit = f"{place}" * 40
        shutil.copytree(run / f"checkpoint-{step}", folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / f"step{step}").write_text(commit)
    return folder.parent


def test_it_writes_three_files_and_nothing_else(measured):
    ran, out = measured
    assert (ran.code, ran.err) == (0, "")
    assert sorted(file.name for file in out.iterdir()) == FILES
    assert [file.name for file in out.parent.iterdir()] == ["dynamics"]


def test_the_command_equals_the_function(measured, run, text_file, tmp_path):
    dynamics = rectilinear.dynamics(str(run), str(text_file), **OPTIONS)
    assert (measured[1] / "dynamics.json").read_text() == dynamics.to_json()
    write_result(dynamics, tmp_path)
    assert (tmp_path / "dynamics.svg").read_bytes() == (measured[1] / "dynamics.svg").read_bytes()


def test_it_prints_a_table_and_no_terminal_codes(measured):
    ran, out = measured
    assert not re.search(r"[\x1b\r\x08]", ran.out)
    assert "3 blocks of width 16 at 2 steps, 2,048 tokens" in " ".join(ran.out.split())
    for point in rectilinear.Dynamics.load(out).points:
        [line] = [line for line in ran.out.splitlines() if re.match(rf"│ +{point.step:,} │", line)]
        values = [block.update_linearity.held_out for block in point.blocks]
        assert f" {sum(values) / 3:.4f} ± " in line
        assert f" ({values.index(min(values))}) {min(values):.3f} " in line
        assert f" ({values.index(max(values))}) {max(values):.3f} " in line
    assert str(out) in ran.out


def test_revisions(command, cache, run, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    revisions = ("--revisions", "step1500, step0")
    ran = command("dynamics", "org/model", *revisions, "--text", text_file, *SIZE, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    found = rectilinear.Dynamics.load(tmp_path / "out")
    assert [(point.step, point.source, point.revision) for point in found.points] == [
        (0, "org/model@step0", "0" * 40),
        (1500, "org/model@step1500", "1" * 40),
    ]
    alike = rectilinear.dynamics(run, text_file, **OPTIONS)
    assert [point.blocks for point in found.points] == [point.blocks for point in alike.points]
    assert found.model.id == "org/model"


def test_every_option_reaches_the_function(command, run, documents, tiny_checkpoint, tmp_path):
    source = tmp_path / "tales.jsonl"
    source.write_text("".join(json.dumps({"text": "no", "tale": text}) + "\n" for text in documents))
    options = {
        "folds": 3,
        "blocks": "model.layers",
        "column": "tale",
        "convention": "paper",
        "products": "float64",
        "dtype": "bfloat16",
        "seed": 5,
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    more = ("--sink-ratio", 9, "--tokenizer", tiny_checkpoint, "--out", tmp_path / "out")
    assert command("dynamics", run, "--text", source, *SIZE, *flags, *more).code == 0
    options |= {"sink_ratio": 9.0, "max_tokens": 2050, "seq_len": 32}
    measurement, rows = (
        settings(**{name: options[name] for name in settings.model_fields.keys() & options})
        for settings in (Measurement, Rows)
    )
    function = rectilinear.dynamics(
        str(run), str(source), measurement, rows=rows, loading=Loading(device="cpu", dtype="bfloat16"), batch_size=16
    )
    assert (tmp_path / "out" / "dynamics.json").read_text() == function.to_json()


def test_several_checkpoints(command, run, text_file, tmp_path):
    named = [run / "checkpoint-1500", run / "checkpoint-0"]
    assert command("dynamics", *named, "--text", text_file, *SIZE, "--out", tmp_path / "out").code == 0
    assert [point.step for point in rectilinear.Dynamics.load(tmp_path / "out").points] == [0, 1500]


def test_warnings_are_printed_once(command, run, text_file):
    few = ("--max-tokens", 64, "--seq-len", 32, "--device", "cpu")
    ran = command("dynamics", run, "--text", text_file, *few)
    assert ran.code == 0
    assert " ".join(ran.out.split()).count("warning: rows of text: 2, fewer than the 4 folds asked for") == 1


WRONG = {
    "no such folder": ("dynamics {run} {here}/none --text {text}", "no model at {here}/none"),
    "no such text": ("dynamics {run} --text {here}/none.txt", "no text at {here}/none.txt"),
    "no checkpoint": ("dynamics --text {text}", "CHECKPOINT"),
    "no text": ("dynamics {run}", "--text"),
    "revisions of a folder": (
        "dynamics {run} --revisions a,b --text {text}",
        "expected a Hub id with a revision, got {run}",
    ),
    "revisions and a revision": (
        "dynamics org/model --revisions a,b --revision c --text {text}",
        "expected no --revision with --revisions",
    ),
    "no revisions": ("dynamics org/model --revisions , --text {text}", "expected --revisions a,b,c, got ','"),
    "another model": ("dynamics {run} {other} --text {text}", "expected checkpoints of one model"),
    "twice": ("dynamics {run} {run} --text {text}", "expected one checkpoint a step"),
    "no such tokenizer": ("dynamics {run} --tokenizer {here}/none --text {text}", "no model at {here}/none"),
    "no batch": (
        "dynamics {run} --text {text} --batch-size 0",
        "expected --batch-size to be greater than 0 or 'auto', got '0'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request(name, command, run, text_file, save_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = save_checkpoint(build_llama(blocks=2), "other-5") if name == "another model" else None
    places = {"run": run, "here": tmp_path, "text": text_file, "other": other}
    line, says = (text.format(**places) for text in WRONG[name])
    ran = command(*line.split(), "--max-tokens", 512, "--seq-len", 32, "--out", "out/new")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("rectilinear: error: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_not_empty(command, run, text_file, tmp_path):
    (tmp_path / "notes.txt").write_text("old")
    ran = command("dynamics", run, "--text", text_file, *SIZE, "--out", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "--overwrite" in ran.err
    assert command("dynamics", run, "--text", text_file, *SIZE, "--out", tmp_path, "--overwrite").code == 0
    assert sorted(os.listdir(tmp_path)) == [*FILES, "notes.txt"]


def test_a_checkpoint_that_is_not_finite_is_a_failed_job(command, run, text_file, tiny_tokenizer, tmp_path):
    model = build_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    broken = tmp_path / "checkpoint-2000"
    model.save_pretrained(broken)
    tiny_tokenizer.save_pretrained(broken)
    ran = command("dynamics", run, broken, "--text", text_file, *SIZE, "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert "checkpoint-2000: block 1: " in ran.err
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2000"]


def test_a_failed_write(command, run, text_file, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rectilinear.report.write.save", full)
    ran = command("dynamics", run, "--text", text_file, *SIZE, "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err == f"rectilinear: error: cannot write to {tmp_path / 'out'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []
