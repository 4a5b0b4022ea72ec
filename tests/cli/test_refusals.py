"""A wrong request ends with exit code 2, one line on stderr and nothing written; a failed job with 1."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import ViTConfig

from tests.conftest import build_llama

SIZE = "--max-tokens 512 --seq-len 32 --device cpu"
MEASURE = f"measure {{model}} --text {{text}} {SIZE}"
EVALUATE = f"evaluate {{model}} --text {{text}} {SIZE}"
LINEARIZE = f"linearize {{model}} --text {{text}} {SIZE}"

#: What is asked for, and what the answer must say.
WRONG = {
    "no such folder": (f"measure {{here}}/none --text {{text}} {SIZE}", "no model at {here}/none"),
    "no such Hub id": (f"measure nobody/nothing --text {{text}} {SIZE}", "'nobody/nothing'"),
    "no such text": (f"measure {{model}} --text {{here}}/none.txt {SIZE}", "no text at {here}/none.txt"),
    "no such dataset": (f"measure {{model}} --text nobody/nothing {SIZE}", "no text 'nobody/nothing'"),
    "short text": (f"measure {{model}} --text {{short}} {SIZE}", "at least one row of 32 tokens, got "),
    "text without a word": (f"measure {{model}} --text {{empty}} {SIZE}", "there is no text in it"),
    "no plan": (
        f"linearize {{model}} --text {{text}} {SIZE} --plan {{model}}/config.json",
        "(expected 'model', got none)",
    ),
    "short max tokens": (f"{MEASURE} --max-tokens 31", "got 31 and 32"),
    "long rows": (f"{MEASURE} --max-tokens 650 --seq-len 65", "context of 64 tokens, got rows of 65; try --seq-len 64"),
    "no such column": (f"measure {{model}} --text {{jsonl}} {SIZE}", "no column 'text'; there are tale, title"),
    "no JSON": (f"measure {{model}} --text {{broken}} {SIZE}", "broken.jsonl, line 1"),
    "no such blocks": (f"{MEASURE} --blocks model.nope", "model.layers (3 x LlamaDecoderLayer)"),
    "no such device": (f"{MEASURE} --device gpu", "device 'gpu' is not to be had here"),
    "no such dtype": (f"{MEASURE} --dtype float31", "'float31'"),
    "no batch": (f"{MEASURE} --batch-size 0", "expected --batch-size to be greater than 0 or 'auto', got '0'"),
    "no number": (f"{MEASURE} --batch-size many", "expected --batch-size to be a valid integer or 'auto', got 'many'"),
    "no folds": (f"{MEASURE} --folds 0", "expected --folds to be greater than 0, got '0'"),
    "almost a choice": (f"{MEASURE} --dtype float15", "'bfloat16' or 'float16', got 'float15'; try float16"),
    "no such option": (f"{MEASURE} --quux 1", "got --quux; try --help"),
    "almost one of several": (
        f"{MEASURE} --target block,attn",
        "expected --target to be 'block', 'attention' or 'mlp', got 'attn'; try attention",
    ),
    "almost an option": (f"{MEASURE} --fold 1", "got --fold; try --folds"),
    "no value": (f"{MEASURE} --folds", "expected a value after --folds, got none"),
    "twice": (f"{MEASURE} --text {{here}}/none.txt", "no text at {here}/none.txt"),
    "two models": (f"{MEASURE} storyteller", "expected no further arguments, got storyteller"),
    "no text": ("measure {model}", "expected --text, got none"),
    "no model": ("measure --text {text}", "expected MODEL, got none"),
    "ids beyond the vocabulary": (f"measure {{small}} --text {{text}} {SIZE}", "vocabulary of 20, got "),
    "evaluate nothing": ("evaluate {model}", "expected --text, --tasks, --include or several of them, got none"),
    "evaluate no task": (f"{EVALUATE} --tasks ,", "expected --tasks a,b, got no name"),
    "evaluate idle options": (f"{EVALUATE} --limit 3", "expected no --limit without --tasks, where it changes nothing"),
    "evaluate idle BOS": (
        "evaluate {model} --tasks boolq --data {here} --bos row",
        "expected no --bos without --text, where it changes nothing",
    ),
    "evaluate no such task": ("evaluate {model} --tasks boolqq --data {here}", "got 'boolqq'; try boolq"),
    "evaluate no data": ("evaluate {model} --tasks boolq --data {here}", "expected data of boolq in "),
    "evaluate no Hub": ("evaluate {model} --tasks boolq", "cannot get the data of boolq from the Hub"),
    "evaluate rows of one token": (f"{EVALUATE} --seq-len 1", "at least 2 tokens, of which 1 is predicted"),
    "evaluate long rows": (f"{EVALUATE} --max-tokens 650 --seq-len 65", "try --seq-len 64"),
    "evaluate no batch": (
        f"{EVALUATE} --batch-size 0",
        "expected --batch-size to be greater than 0 or 'auto', got '0'",
    ),
    "evaluate against no such folder": (f"{EVALUATE} --against {{here}}/none", "no model at {here}/none"),
    "evaluate against fewer ids": (f"{EVALUATE} --against {{small}}", "vocabulary of 20, got "),
    "evaluate against another tokenizer": (f"{EVALUATE} --against storyteller", "over different tokens cannot be"),
    "evaluate no head": (f"evaluate {{headless}} --text {{text}} {SIZE}", "lm_head.weight among them"),
    "inspect no such folder": ("inspect {here}/none", "no model at {here}/none"),
    "inspect no such blocks": ("inspect {model} --blocks model.nope", "model.layers (3 x LlamaDecoderLayer)"),
    "inspect no decoder": ("inspect {vision}", "got vit"),
}


@pytest.fixture(scope="module")
def places(tiny_llama, tiny_checkpoint, text_file, save_checkpoint, tmp_path_factory):
    """Good and bad inputs, and an empty folder to run in."""
    inputs, here = tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("here")
    (inputs / "short.txt").write_text("The cat.")
    (inputs / "empty.txt").write_text(" \n\n")
    (inputs / "tales.jsonl").write_text('{"tale": "The cat.", "title": "Cat"}\n')
    (inputs / "broken.jsonl").write_text("The cat.\n")
    ViTConfig().save_pretrained(inputs / "vision")
    return {
        "model": tiny_checkpoint,
        "small": save_checkpoint(build_llama(vocabulary=20), "small"),
        "headless": save_checkpoint(tiny_llama.model, "headless"),
        "vision": inputs / "vision",
        "text": text_file,
        "short": inputs / "short.txt",
        "empty": inputs / "empty.txt",
        "jsonl": inputs / "tales.jsonl",
        "broken": inputs / "broken.jsonl",
        "here": here,
    }


@pytest.fixture(scope="module")
def nan_checkpoint(save_checkpoint):
    model = build_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    return save_checkpoint(model, "nan")


def check(ran, code, says):
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("rectilinear: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert says in ran.err


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request(name, command, places, monkeypatch):
    monkeypatch.chdir(places["here"])
    line, says = (text.format(**places) for text in WRONG[name])
    check(command(*line.split(), "--out", "out/new"), 2, says)
    assert list(places["here"].iterdir()) == []


@pytest.mark.parametrize("name", ["no such Hub id", "no such blocks", "no such option"])
def test_wrong_request_in_a_process_of_its_own(name, process, places, monkeypatch):
    monkeypatch.chdir(places["here"])
    line, says = (text.format(**places) for text in WRONG[name])
    check(process(*line.split(), "--out", "out/new"), 2, says)
    assert list(places["here"].iterdir()) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("bogus", "expected a command, got 'bogus'; try inspect, measure, dynamics"),
        ("mesure storyteller", "expected a command, got 'mesure'; try measure"),
        ("--quux", "got '--quux'"),
        ("measure --quux", "expected an option of the command, got --quux"),
    ],
)
def test_no_such_command(line, says, command):
    check(command(*line.split()), 2, says)


def test_no_command_shows_help_and_no_empty_error(command):
    ran = command()
    assert ran.code == 2
    assert "measure" in ran.out + ran.err
    assert "rectilinear: error: \n" not in ran.err


@pytest.mark.parametrize("name", ["measure", "evaluate", "inspect", "demo"])
def test_out_that_is_not_empty(name, command, places, tmp_path):
    (tmp_path / "notes.txt").write_text("old")
    text = ("--text", places["text"]) if name in ("measure", "evaluate") else ()
    model = () if name == "demo" else (places["model"],)
    check(command(name, *model, *text, "--out", tmp_path), 2, "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_out_that_is_a_file(overwrite, command, places, tmp_path):
    (tmp_path / "out").write_text("old")
    ran = command("inspect", places["model"], "--out", tmp_path / "out", *overwrite)
    check(ran, 2, f"got the file {tmp_path / 'out'}")
    assert (tmp_path / "out").read_text() == "old"


def test_out_under_a_file(command, places, tmp_path):
    (tmp_path / "file").write_text("old")
    check(command("inspect", places["model"], "--out", tmp_path / "file" / "out"), 2, str(tmp_path / "file"))


def test_activations_that_are_not_finite(process, nan_checkpoint, text_file, tmp_path):
    ran = process("measure", nan_checkpoint, "--text", text_file, *SIZE.split(), "--out", tmp_path / "out" / "new")
    check(ran, 1, "block 1")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite(process, nan_checkpoint, text_file, tmp_path):
    ran = process("evaluate", nan_checkpoint, "--text", text_file, *SIZE.split(), "--out", tmp_path / "out" / "new")
    check(ran, 1, "expected a finite loss, got nan at row 0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
    ],
    ids=["host", "device"],
)
def test_out_of_memory(error, command, places, monkeypatch, tmp_path):
    def collect_moments(*args, **options):
        raise error

    monkeypatch.setattr("rectilinear.measurement.measure.collect_moments", collect_moments)
    ran = command(*MEASURE.format(**places).split(), "--out", tmp_path / "out")
    check(ran, 1, "--batch-size")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write(command, places, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rectilinear.report.write.save", full)
    line = MEASURE.format(**places).split()
    ran = command(*line, "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err == f"rectilinear: error: cannot write to {tmp_path / 'out'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["runs[final]", "runs[/x]"])
@pytest.mark.parametrize("verb", ["measure", "evaluate"])
def test_names_with_square_brackets(verb, name, command, places, tmp_path):
    shutil.copytree(places["model"], tmp_path / name)
    ran = command(verb, tmp_path / name, "--text", places["text"], *SIZE.split())
    assert ran.code == 0
    assert Path(name).name in "".join(ran.out.split())  # a table has the end of a path
