"""``rectilinear linearize`` writes the checkpoint that the function makes, or nothing."""

import json
import os
import re
import resource
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from rectilinear import JobError
from rectilinear.cli.main import main
from rectilinear.models import released_code
from rectilinear.settings import in_flags
from tests import conftest, faults
from tests.conftest import build_llama

SIZE = ("--max-tokens", 1024, "--seq-len", 32, "--device", "cpu", "--batch-size", 8)
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "plan.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def as_a_function(checkpoint, text, **options):
    return conftest.linearize(
        str(checkpoint), str(text), max_tokens=1024, seq_len=32, device="cpu", batch_size=8, **options
    )


def same_weights(folder, model):
    """Whether a checkpoint holds a model's weights bit for bit."""
    saved, own = load_file(folder / "model.safetensors"), model.state_dict()
    return saved.keys() <= own.keys() and all(torch.equal(saved[name], own[name]) for name in saved)


@pytest.fixture(scope="module")
def linearized(process, tiny_checkpoint, text_file, tmp_path_factory):
    """What a real process printed, and the folder it wrote."""
    out = tmp_path_factory.mktemp("linearized") / "new" / "smaller"
    options = ("--blocks", "0,2", "--rank", 3, "--taps", 2, "--rates", "1,0.5")
    return process("linearize", tiny_checkpoint, "--text", text_file, *options, *SIZE, "--out", out), out


def test_it_writes_a_checkpoint_and_nothing_else(linearized):
    ran, out = linearized
    assert (ran.code, ran.err) == (0, "")
    assert {file.name for file in out.iterdir()} == {*FILES, *released_code.FILES}
    assert [file.name for file in out.parent.iterdir()] == ["smaller"]


def test_it_prints_a_table_and_no_terminal_codes(linearized):
    ran, out = linearized
    plan = json.loads((out / "plan.json").read_text())
    assert not re.search(r"[\x1b\r\x08]", ran.out)
    for replacement in plan["replacements"]:
        [line] = [
            x
            for x in ran.out.splitlines()
            if re.match(rf". {replacement['blocks'][0]} +. block +. filter, rank 3, 2 taps, rates 1, 0.5 ", x)
        ]
        assert f"{replacement['fit']['held_out']:.4f}" in line
    parameters, chosen = plan["parameters"], plan["selection"]
    assert f"parameters {parameters['before']:,} -> {parameters['after']:,} " in ran.out
    assert f"loss {chosen['loss_before']:.4f} -> {chosen['loss_after']:.4f} " in ran.out
    assert str(out) in "".join(ran.out.split("\n"))


def test_the_command_equals_the_function(linearized, tiny_checkpoint, text_file):
    _, out = linearized
    made = as_a_function(tiny_checkpoint, text_file, blocks=[0, 2], rank=3, taps=2, rates=[1, 0.5])
    assert json.loads((out / "plan.json").read_text()) == json.loads(made.plan.to_json())
    assert same_weights(out, made.model)


WAYS = {
    "count": (
        ("--count", 2, "--kind", "drop", "--select", "influence"),
        {"count": 2, "kind": "drop", "select": "influence"},
    ),
    "budget": (("--budget", "12%", "--kind", "affine"), {"budget": 0.12, "kind": "affine"}),
    "budget as a share": (("--budget", "0.12", "--kind", "drop"), {"budget": 0.12, "kind": "drop"}),
    "loss": (
        ("--max-loss-increase", 9.5, "--kind", "folded", "--select", "loss"),
        {"max_loss_increase": 9.5, "kind": "folded", "select": "loss"},
    ),
    "merge": (("--blocks", "0, 1", "--merge", "--folds", 2), {"blocks": [0, 1], "merge": True, "folds": 2}),
    "no rates": (("--blocks", 1, "--rates", ""), {"blocks": [1], "rates": []}),
    "attention": (
        ("--blocks", "0-1,2", "--target", "attention", "--stack", "model.layers", "--dtype", "bfloat16"),
        {"blocks": [0, 1, 2], "target": "attention", "stack": "model.layers", "dtype": "bfloat16"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_option_reaches_the_function(way, command, tiny_checkpoint, text_file, tmp_path, reload_here):
    flags, options = WAYS[way]
    ran = command("linearize", tiny_checkpoint, "--text", text_file, *SIZE, *flags, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    made = as_a_function(tiny_checkpoint, text_file, **options)
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == json.loads(made.plan.to_json())
    assert same_weights(tmp_path / "out", made.model)


def test_warnings_are_printed_and_written(command, tiny_checkpoint, text_file, tmp_path, reload_here):
    few = ("--blocks", 1, "--max-tokens", 64, "--seq-len", 32, "--folds", 1)
    ran = command("linearize", tiny_checkpoint, "--text", text_file, *few, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    warnings = json.loads((tmp_path / "out" / "plan.json").read_text())["warnings"]
    assert [warning.split(":")[0] for warning in warnings] == ["few tokens", "a single fold"]
    said = " ".join(ran.out.split())
    for warning in warnings:
        assert f"warning: {in_flags(warning)}" in said


def test_a_plan_is_edited_and_fed_back(command, linearized, tiny_checkpoint, text_file, tmp_path, reload_here):
    plan = json.loads((linearized[1] / "plan.json").read_text())
    plan["replacements"][1]["rank"] = 5
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    ran = command(
        "linearize",
        tiny_checkpoint,
        "--text",
        text_file,
        *SIZE,
        "--plan",
        tmp_path / "plan.json",
        "--out",
        tmp_path / "out",
    )
    assert (ran.code, ran.err) == (0, "")
    again = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert again["replacements"][0] == plan["replacements"][0]
    assert again["replacements"][1]["rank"] == 5


@pytest.mark.slow
def test_what_it_wrote_is_evaluated_and_measured(process, command, linearized, text_file, tmp_path):
    """In processes that know nothing of it yet, and need not trust the code beside it, which is this package's own."""
    for verb in ("evaluate", "measure", "inspect"):
        text = () if verb == "inspect" else ("--text", text_file, *SIZE)
        ran = process(verb, linearized[1], *text, "--out", tmp_path / verb)
        assert (ran.code, ran.err) == (0, ""), verb
        if verb == "evaluate":
            assert f"warning:{linearized[1]}wasfittedontheseveryrows" in "".join(ran.out.split())
    written = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    assert len(written["warnings"]) == 1
    plan = json.loads((linearized[1] / "plan.json").read_text())
    assert written["parameters"] == plan["parameters"]["after"]
    again = command("linearize", linearized[1], "--text", text_file, *SIZE, "--blocks", 1, "--out", tmp_path / "o")
    assert again.code == 2
    assert "got a linearized one" in again.err


@pytest.mark.slow
def test_code_beside_a_checkpoint_is_run_only_if_it_is_trusted(process, command, linearized, text_file, tmp_path):
    """Other code than this package's own; a line of it tells whether it ran."""
    shutil.copytree(linearized[1], tmp_path / "changed")
    code = tmp_path / "changed" / "modeling_rectilinear.py"
    code.write_text(code.read_text() + "\nprint('it runs')\n")
    refused = command("evaluate", linearized[1], tmp_path / "changed", "--text", text_file, *SIZE)
    assert refused.code == 2
    assert f"in '{tmp_path / 'changed'}', got other code, perhaps of a later version" in refused.err
    assert "if you trust what is there, try --trust-remote-code" in refused.err
    assert "it runs" not in refused.out
    trusted = process("evaluate", tmp_path / "changed", "--text", text_file, *SIZE, "--trust-remote-code")
    assert (trusted.code, trusted.err) == (0, "")
    assert "it runs" in trusted.out


# Refusals.

WRONG = {
    "no way": ("", "expected one of --blocks, --count, --budget, --max-loss-increase, --plan, got none"),
    "two ways": ("--blocks 1 --count 1", "got --blocks and --count"),
    "three ways": ("--plan {plan} --budget 5% --max-loss-increase 1", "--budget and --max-loss-increase and --plan"),
    "large budget": ("--budget 99%", "up to "),
    "no budget": ("--budget 0%", "--budget above 0%"),
    "negative budget": ("--budget=-5%", "--budget above 0%"),
    "nan budget": ("--budget nan%", "--budget to be a finite number, got nan"),
    "budget in words": ("--budget half", "expected --budget 25%, got 'half'"),
    "budget without %": ("--budget 20", "expected --budget 25% or 0.25, got '20'; try --budget 20%"),
    "stack as blocks": ("--blocks model.layers --count 1", "for a path try --stack"),
    "taps of no filter": (
        "--blocks 1 --kind affine --taps 3",
        "expected no --taps with --kind affine, where it changes",
    ),
    "rates of no filter": ("--count 1 --kind drop --rates 1", "expected no --rates with --kind drop"),
    "kind beside a plan": ("--plan {plan} --kind filter", "expected no --kind with --plan"),
    "rank beside a plan": ("--plan {plan} --rank 2", "expected no --rank with --plan"),
    "merge beside a plan": ("--plan {plan} --merge", "expected no --merge with --plan"),
    "an order of given blocks": ("--blocks 1 --select score", "expected no --select with --blocks"),
    "a rate of no healing": ("--blocks 1 --heal-learning-rate 0.001", "no --heal-learning-rate without --heal-steps"),
    "logits of no healing": ("--blocks 1 --heal-steps 0 --heal-logits 1", "no --heal-logits without --heal-steps"),
    "no percent": ("--budget %", "expected --budget 25%, got '%'"),
    "no loss": ("--max-loss-increase 0", "--max-loss-increase to be greater than 0"),
    "loss in words": ("--max-loss-increase some", "--max-loss-increase"),
    "no count": ("--count 0", "--count from 1 to 3, got 0"),
    "large count": ("--count 4", "--count from 1 to 3, got 4"),
    "all dropped": ("--count 3 --kind drop", "--count from 1 to 2, got 3"),
    "all dropped by name": ("--blocks 0,1,2 --kind drop", "at least one of 3 blocks to stay"),
    "folded first": ("--blocks 0 --kind folded", "a block before folded block 0 that stays"),
    "folded attention": ("--blocks 1 --kind folded --target attention", "try --target block"),
    "filter of an MLP": ("--blocks 1 --kind filter --target mlp", "try --kind affine"),
    "filter of MLPs": ("--count 1 --kind filter --target mlp", "try --kind affine"),
    "beyond": ("--blocks 3", "expected blocks from 0 to 2, got 3"),
    "negative": ("--blocks=-1", "expected --blocks 2-4,7"),
    "backwards": ("--blocks 4-2", "expected --blocks 2-4,7"),
    "twice": ("--blocks 1,1", "got block 1 twice"),
    "path": ("--blocks model.layers", "for a path try --stack"),
    "no such stack": (
        "--blocks 1 --stack model.nope",
        "(--stack to linearize; ",
    ),
    "other stacks": ("--blocks 1 --stack model.nope", "model.layers (3 x LlamaDecoderLayer)"),
    "rank": ("--blocks 1 --rank 16", "expected a --rank below the width of 16"),
    "no rank": ("--blocks 1 --rank 0", "--rank"),
    "rank of nothing": ("--blocks 1 --rank 2 --kind drop", "expected no --rank with --kind drop"),
    "many taps": ("--blocks 1 --taps 65", "--taps"),
    "rates in words": ("--blocks 1 --rates fast", "expected --rates 1,0.9, got 'fast'"),
    "rate": ("--blocks 1 --rates 1.5", "--rates above 0 and up to 1"),
    "kind": ("--blocks 1 --kind magic", "'magic'"),
    "another model": ("--plan {plan}", "expected a plan for this model"),
    "no plan": ("--plan {here}/none.json", "none.json"),
    "no JSON": ("--plan {text}", "rectilinear plan (expected JSON, got something else: "),
    "a profile": ("--plan {model}/config.json", "expected a rectilinear plan"),
    "long rows": ("--blocks 1 --seq-len 65", "try --seq-len 64"),
}


@pytest.fixture(scope="module")
def places(tiny_checkpoint, text_file, save_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    other = save_checkpoint(build_llama(seed=1), "other")
    as_a_function(other, text_file, blocks=[1], kind="drop").plan.save(folder)
    return {
        "model": tiny_checkpoint,
        "text": text_file,
        "plan": folder / "plan.json",
        "here": tmp_path_factory.mktemp("here"),
    }


def check(ran, code, says):
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("rectilinear: error: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert says in ran.err


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_anything_is_fitted(name, command, places, monkeypatch):
    monkeypatch.chdir(places["here"])
    for function in ("choose.Choice.make", "choose.fit_all"):
        monkeypatch.setattr(f"rectilinear.linearization.{function}", lambda *args: pytest.fail("work was done"))
    flags, says = (text.format(**places) for text in WRONG[name])
    ran = command("linearize", places["model"], "--text", places["text"], *SIZE, *flags.split(), "--out", "out/new")
    check(ran, 2, says)
    assert list(places["here"].iterdir()) == []


def test_a_folder_is_asked_for(command, places):
    check(command("linearize", places["model"], "--text", places["text"], "--blocks", 1), 2, "--out")


def test_a_folder_that_is_not_empty(command, places, tmp_path):
    (tmp_path / "notes.txt").write_text("old")
    line = ("linearize", places["model"], "--text", places["text"], "--blocks", 1, "--out", tmp_path)
    check(command(*line), 2, "--overwrite")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("kind", ["drop", "affine"])
def test_the_model_s_own_folder_is_no_place_for_the_result(kind, command, save_checkpoint, text_file, monkeypatch):
    folder = save_checkpoint(build_llama(), "mine")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.chdir(folder.parent)
    for name in (folder, f"./{folder.name}"):
        line = ("linearize", name, "--text", text_file, *SIZE, "--blocks", 1, "--kind", kind, "--out", folder)
        check(command(*line, "--overwrite"), 2, "expected another folder for --out than one that is read")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_overwriting(command, places, tmp_path, reload_here):
    (tmp_path / "notes.txt").write_text("old")
    (tmp_path / "plan.json").write_text("old")
    line = ("linearize", places["model"], "--text", places["text"], *SIZE, "--out", tmp_path, "--overwrite")
    assert command(*line, "--blocks", 1, "--kind", "drop").code == 0
    assert {file.name for file in tmp_path.iterdir()} == {*FILES, "notes.txt"}
    assert json.loads((tmp_path / "plan.json").read_text())["schema"] == "rectilinear.plan/1"


# Jobs that fail.


def run(command, places, out, *options):
    return command("linearize", places["model"], "--text", places["text"], *SIZE, *options, "--out", out)


def test_a_loss_that_no_block_keeps_to(command, places, tmp_path, monkeypatch):
    losses = iter([1.0, 1.5])
    monkeypatch.setattr(
        "rectilinear.linearization.choose.measure_perplexity",
        lambda *args, **options: SimpleNamespace(loss=next(losses)),
    )
    ran = run(command, places, tmp_path / "out", "--max-loss-increase", 0.4, "--kind", "drop")
    check(ran, 1, "alone raises the loss by 0.5000 nats per token, above the tolerated 0.4")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_fails_its_check(command, places, tmp_path, monkeypatch):
    def fails(*args):
        raise JobError("the checkpoint loads with other logits")

    monkeypatch.setattr("rectilinear.models.export.check_reload", fails)
    check(run(command, places, tmp_path / "deep" / "out", "--blocks", 1), 1, "loads with other logits")
    assert list(tmp_path.iterdir()) == []


ERRORS = {
    "python": OSError(28, "No space left on device"),
    "safetensors": Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    "tokenizers": Exception("No space left on device (os error 28)"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("kind", ["drop", "filter"])
def test_a_full_disk(name, kind, command, places, tmp_path, monkeypatch):
    def full(*args, **options):
        raise ERRORS[name]

    what = "tokenization_utils_base.PreTrainedTokenizerBase" if name == "tokenizers" else "PreTrainedModel"
    monkeypatch.setattr(f"transformers.{what}.save_pretrained", full)
    ran = run(command, places, tmp_path / "out", "--blocks", 1, "--kind", kind)
    check(ran, 1, f"cannot write to {tmp_path / 'out'}: No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("most", [8000, 30000])
def test_files_that_cannot_be_written_whole(most, places, tmp_path):
    """The system's own limit on the size of files, as near to a full disk as any user can get."""
    folder, log = tmp_path / "folder", tmp_path / "log"
    folder.mkdir()
    options = ("--blocks", "1", "--kind", "drop", "--out", folder / "out")

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        sys.argv = ["rectilinear", *map(str, ("linearize", places["model"], "--text", places["text"], *SIZE, *options))]
        main()

    code, _ = faults.run(limited, folder, log)
    assert code == 1
    assert log.read_text() == f"rectilinear: error: cannot write to {folder / 'out'}: {os.strerror(27)}\n"
    assert [*folder.iterdir()] == []
