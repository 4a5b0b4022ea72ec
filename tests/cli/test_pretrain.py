"""``rectilinear pretrain``: whole, stopped and killed in real processes, resumed, refused."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from rectilinear.training.pretrain import pretrain
from rectilinear.training.results import Training
from rectilinear.training.settings import Corpus, Monitoring, Recipe
from rectilinear.training.trainer import last_checkpoint

STEPS = 24


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
        preset="mistral-1m",
        batch_size=4,
        gradient_accumulation=2,
        max_steps=STEPS,
        regularizer="cosine",
        dtype="float32",
        device="cpu",
    )
    corpus, monitoring = Corpus(vocab_size=300, seq_len=24), Monitoring(probe_every=10, save_every=3)
    return out, pretrain(str(text_file), recipe, corpus, out=out, monitoring=monitoring)


def stopped(number, text, out, environment, *more, ready="checkpoint-*/trainer_state.json"):
    """A process that is sent a signal once it has left some file; its exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rectilinear", *arguments(text, out, *more)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not any(out.glob(ready)):
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
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=lambda value: str(value),
)
def test_stopped_and_resumed(number, code, alone, text_file, tmp_path, environment, command):
    out = tmp_path / "out"
    ended, said = stopped(number, text_file, out, environment)
    assert ended == code
    if number is signal.SIGKILL:
        assert said == ""
    else:  # the step that it was at is kept
        step = last_checkpoint(out).name.removeprefix("checkpoint-")
        kept = f"{out} keeps the run up to step {step}; to go on, add --resume"
        assert said.strip() == f"rectilinear: interrupted, {kept}"
    assert not (out / "model.safetensors").exists()
    before = {path.name for path in out.iterdir()}

    if number is not signal.SIGKILL:  # after which the same command begins anew: tests/test_kills.py
        refused = command(*arguments(text_file, out))
        assert refused.code == 2
        assert "is not empty; try --resume, another, or --overwrite" in refused.err
    other = command(*arguments(text_file, out, "--resume", "--strength", 0.4))
    assert other.code == 2
    assert "got another (strength 0.5 -> 0.4); try the same options" in other.err
    assert {path.name for path in out.iterdir()} == before

    done = command(*arguments(text_file, out, "--resume"))
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
    row = f"{STEPS} │ {training.data.tokens:,} │ "
    loss = f"│ {held_out.loss:.4f} ± {held_out.stderr:.4f} │ {held_out.perplexity:.2f} │"
    said = " ".join(done.out.split())
    assert row in said
    assert loss in said
    assert f"on {held_out.data.tokens:,} held-out tokens" in said
    assert training.warnings
    assert all(f"warning: {warning}" in said for warning in training.warnings)
    dynamics = [json.loads((place / "dynamics.json").read_text())["points"] for place in (out, folder)]
    assert dynamics[0] == dynamics[1]
    assert (out / "recipe.json").read_text() == (folder / "recipe.json").read_text()


@pytest.mark.slow
def test_a_step_that_was_interrupted_is_not_lost(alone, text_file, tmp_path, environment):
    """Without a checkpoint that was due before."""
    out = tmp_path / "out"
    ended, said = stopped(signal.SIGINT, text_file, out, environment, "--save-every", 1000, ready="dynamics.json")
    assert ended == 130
    step = int(re.search(r"up to step (\d+); to go on, add --resume", said)[1])
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{step}"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--strength", "-1"], "expected --strength to be greater than or equal to 0, got "),
        (["--strength", "nan"], "expected --strength to be a finite number, got "),
        (
            ["--preset", "mistral-5m"],
            "expected --preset to be one of mistral-1m, mistral-4m, mistral-150m, mistral-650m",
        ),
        (["--text", "/nowhere.txt"], "no text at /nowhere.txt"),
        (["--max-tokens", "100"], "at least one step of 8 rows of 24 tokens, got 3 rows"),
        (["--vocab-size", "100"], "expected a vocabulary of at least 258, got 100"),
        (["--dtype", "float16"], "float16"),
        (["--device", "cuda:0"], "cuda:0"),
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
