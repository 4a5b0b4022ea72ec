"""A healing run that is killed goes on where it was when the same command is run again."""

import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

import rectilinear
from rectilinear.models.series import steps_of
from rectilinear.training.trainer import last_checkpoint
from tests import conftest

STEPS = 200


def arguments(model, text, out, *more):
    size = ["--max-tokens", 2048, "--seq-len", 32, "--batch-size", 4, "--device", "cpu"]
    return ["linearize", model, "--text", text, "--blocks", 1, *size, "--out", out, *more]


@pytest.mark.slow
def test_killed(tiny_checkpoint, text_file, environment, command, reload_here, tmp_path):
    def line(out):
        return arguments(tiny_checkpoint, text_file, out, "--heal-steps", STEPS)

    out, folder, copy = tmp_path / "out", tmp_path / "out.heal", tmp_path / "copy.heal"
    running = subprocess.Popen([sys.executable, "-m", "rectilinear", *map(str, line(out))], env=environment)
    try:
        deadline = time.monotonic() + 120
        while last_checkpoint(folder) is None:
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        running.kill()
        running.wait()
    reached = steps_of(last_checkpoint(folder))
    assert 0 < reached < STEPS
    assert not out.exists()
    shutil.copytree(folder, copy)

    other = command(*line(out)[:-1], STEPS + 1)
    assert other.code == 2
    assert f"got another (heal_steps {STEPS} -> {STEPS + 1}); try the same options" in other.err
    again, whole = command(*line(out)), command(*line(tmp_path / "whole"))
    assert (again.code, whole.code) == (0, 0), again.err + whole.err
    assert again.err == ""
    assert f"Healed in {STEPS:,} steps: relative error of hidden states " in again.out
    resumed, uninterrupted = (load_file(place / "model.safetensors") for place in (out, tmp_path / "whole"))
    assert all((resumed[name] == tensor).all() for name, tensor in uninterrupted.items())
    assert (out / "plan.json").read_text() == (tmp_path / "whole" / "plan.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "copy.heal"}

    steps = []
    size = {"max_tokens": 2048, "seq_len": 32, "batch_size": 4, "device": "cpu"}
    conftest.linearize(
        str(tiny_checkpoint),
        str(text_file),
        blocks=[1],
        heal_steps=STEPS,
        out=tmp_path / "copy",
        progress=lambda stage, done, total: steps.append(done) if stage == "heal" else None,
        **size,
    )
    assert steps == [*range(reached + 1, STEPS + 1)]


def test_says_what_healing_did(command, tiny_checkpoint, text_file, tmp_path, reload_here):
    ran = command(*arguments(tiny_checkpoint, text_file, tmp_path / "out", "--heal-steps", 3, "--heal-logits", 0.5))
    assert (ran.code, ran.err) == (0, "")
    assert "Healed in 3 steps" in ran.out
    assert "train_runtime" not in ran.out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert rectilinear.Plan.load(tmp_path / "out").heal.logits_weight == 0.5


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--heal-steps", -1], "expected --heal-steps to be greater than or equal to 0, got '-1'"),
        (["--heal-steps", 1, "--heal-learning-rate", 0], "expected --heal-learning-rate to be greater than 0, got '0'"),
        (
            ["--heal-steps", 1, "--kind", "drop"],
            "expected stand-ins to train with --heal-steps, got only such that have none",
        ),
    ],
)
def test_refused(more, says, command, tiny_checkpoint, text_file, tmp_path):
    ran = command(*arguments(tiny_checkpoint, text_file, tmp_path / "out", *more))
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.strip() == f"rectilinear: error: {says}"
    assert not any(tmp_path.iterdir())


def test_stopped_by_hand(command, tiny_checkpoint, text_file, tmp_path, monkeypatch):
    from rectilinear.linearization.linearize import Linearized

    def interrupted(self, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(Linearized, "save", interrupted)
    ran = command(*arguments(tiny_checkpoint, text_file, tmp_path / "out", "--heal-steps", 3))
    assert ran.code == 130
    assert f"{tmp_path / 'out.heal'} keeps what was healed, to go on with the same command" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["out.heal"]
