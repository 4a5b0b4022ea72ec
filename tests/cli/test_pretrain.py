"""``rectilinear pretrain`` in real processes: whole, stopped, killed, refused."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from rectilinear.training.checkpoints import last_checkpoint
from rectilinear.training.pretraining.pretrain import Upkeep, pretrain
from rectilinear.training.pretraining.recipe import Recipe
from rectilinear.training.pretraining.record import Training

STEPS = 40


def arguments(text, out, *more):
    size = ["--preset", "mistral-1m", "--vocab-size", 300, "--seq-len", 24, "--batch-size", 4]
    penalty = ["--regularizer", "cosine", "--strength", 0.5, "--dtype", "float32", "--device", "cpu"]
    steps = ["--max-steps", STEPS, "--gradient-accumulation", 2, "--save-every", 3, "--probe-every", 10]
    return [str(word) for word in ["pretrain", "--text", text, *size, *penalty, *steps, "--out", out, *more]]


@pytest.fixture(scope="module")
def alone(text_file, tmp_path_factory):
    """The same by the function."""
    out = tmp_path_factory.mktemp("alone") / "out"
    recipe = Recipe(
        text=str(text_file),
        preset="mistral-1m",
        vocabulary=300,
        seq_len=24,
        batch_size=4,
        accumulation=2,
        max_steps=STEPS,
        regularizer="cosine",
        dtype="float32",
    )
    return out, pretrain(recipe, out, Upkeep(probe_every=10, save_every=3), device="cpu")


def stopped(number, text, out, environment):
    """A process that is sent a signal once it has left a checkpoint; its exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rectilinear", *arguments(text, out)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (out.exists() and last_checkpoint(out)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGKILL, -9, ""),
        (
            signal.SIGINT,
            130,
            "rectilinear: interrupted, {out} keeps what there is of the run; to go on, add --resume",
        ),
        (signal.SIGTERM, 143, ""),
    ],
    ids=["SIGKILL", "SIGINT", "SIGTERM"],
)
def test_stopped_and_resumed(number, code, says, alone, text_file, tmp_path, environment, process):
    out = tmp_path / "out"
    ended, said = stopped(number, text_file, out, environment)
    assert (ended, said.strip()) == (code, says.format(out=out))
    assert not (out / "model.safetensors").exists()
    before = {path.name for path in out.iterdir()}

    refused = process(*arguments(text_file, out))
    assert refused.code == 2
    assert "is not empty; try --resume, another folder, or --overwrite" in refused.err
    other = process(*arguments(text_file, out, "--resume", "--strength", 0.4))
    assert other.code == 2
    assert "got another (strength 0.5 -> 0.4); try the same options" in other.err
    assert {path.name for path in out.iterdir()} == before

    done = process(*arguments(text_file, out, "--resume"))
    assert (done.code, done.err) == (0, "")
    folder, whole = alone
    again = Training.load(out)
    losses = [[(e["step"], e["loss"], e["penalty"]) for e in t.log if "loss" in e] for t in (again, whole)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    ours, theirs = (load_file(place / "model.safetensors") for place in (out, folder))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_the_command_equals_the_function(alone, text_file, tmp_path, command):
    folder, training = alone
    out = tmp_path / "out"
    done = command(*arguments(text_file, out))
    assert (done.code, done.err) == (0, "")
    assert Training.load(out).model.sha256 == training.model.sha256
    held_out = training.held_out
    assert (
        f"loss on {held_out.data.tokens:,} held-out tokens {held_out.loss:.4f} ± {held_out.stderr:.4f}, perplexity"
        in done.out
    )
    dynamics = [json.loads((place / "dynamics.json").read_text())["points"] for place in (out, folder)]
    assert dynamics[0] == dynamics[1]
    assert (out / "recipe.json").read_text() == (folder / "recipe.json").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--strength", "-1"], "expected a regularizer strength of at least 0, got -1.0"),
        (["--strength", "nan"], "expected a regularizer strength of at least 0, got nan"),
        (["--preset", "mistral-5m"], "expected --preset mistral-1m, mistral-4m, mistral-150m, mistral-650m"),
        (["--text", "/nowhere.txt"], "no text at /nowhere.txt"),
        (["--text", "stories", "--max-tokens", "100"], "at least one step of 8 rows of 24 tokens, got 3 rows"),
        (["--vocab-size", "100"], "expected a vocabulary of at least 258, got 100"),
        (["--dtype", "float16"], "to train with, got float16"),
        (["--device", "cuda:0"], "expected device auto or cpu to train on, got 'cuda:0'"),
        (["--epochs", "2"], "expected no --epochs with --max-steps, where it changes nothing"),
        (["--trust-remote-code"], "expected no --trust-remote-code without --tokenizer"),
        (["--regularizer", "none"], "expected no --strength without --regularizer"),
        (["--tokenizer", "gpt2"], "expected no --vocab-size with --tokenizer"),
        (["--report-to", "nosuch"], "which are installed, got 'nosuch'"),
    ],
)
def test_requests_that_cannot_be_met(more, says, text_file, tmp_path, command):
    out = tmp_path / "out"
    ran = command(*arguments(text_file, out, *more))
    assert ran.code == 2
    assert ran.err.startswith("rectilinear: error: ")
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not out.exists()


def test_a_loss_that_is_not_finite(text_file, tmp_path, command):
    out = tmp_path / "out"
    ran = command(*arguments(text_file, out, "--learning-rate", "1e25"))
    assert ran.code == 1
    assert ran.err.startswith("rectilinear: error: expected a finite ")
    assert "try a smaller --learning-rate" in ran.err
    assert not (out / "model.safetensors").exists()
