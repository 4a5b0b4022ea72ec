"""Checkpoints that cannot be written or read: one line, with what to try, and nothing of the run is lost."""

import json
import re
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch

from rectilinear import JobError, RequestError
from tests.hostile import MANY
from tests.training.test_pretrain import BLIND, OFTEN, STEPS, losses, run

pytestmark = pytest.mark.faults


@contextmanager
def largest_file(size):
    """While open, a file that grows beyond some bytes meets the system's error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def halves(text_file, tmp_path_factory):
    """A run of four steps with a checkpoint at each second one, that goes on to eight."""
    out = tmp_path_factory.mktemp("halves") / "out"
    run(text_file, out, OFTEN, max_steps=4)
    return out


#: Files of a checkpoint, and what is there instead: nothing, a half, other bytes, other things of the same form.
DAMAGE = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"The cat sat.",
}
FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, way) for name in FILES for way in DAMAGE if MANY or way == "cut" or (name, way) == (FILES[-1], "empty")],
)
def test_a_damaged_checkpoint_is_one_line_and_the_one_before_is_gone_on_from(name, damage, halves, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(halves, out)
    file = out / "checkpoint-4" / name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.name != "recipe.json" and path.is_file()}
    if (name, damage) == ("trainer_state.json", "empty"):  # as a killed process leaves it, which is no damage
        run(text_file, out, BLIND, resume=True)
        return
    with pytest.raises((JobError, RequestError)) as told:
        run(text_file, out, BLIND, resume=True)
    assert "checkpoint-4" in str(told.value)
    assert "\n" not in str(told.value)
    assert "move" in str(told.value)
    assert all(path.read_bytes() == content for path, content in before.items())
    if damage == "cut":  # what is advised works
        shutil.rmtree(out / "checkpoint-4")
        assert run(text_file, out, BLIND, resume=True).steps == STEPS


def test_an_optimizer_of_other_shapes(halves, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(halves, out)
    file = out / "checkpoint-4" / "optimizer.pt"
    state = torch.load(file)
    for each in state["state"].values():
        each["exp_avg"] = each["exp_avg"].flatten()[:3]
    torch.save(state, file)
    with pytest.raises(JobError, match=r"cannot go on from .*checkpoint-4: .*move that folder away"):
        run(text_file, out, BLIND, resume=True)


@pytest.mark.parametrize("size", [2_000, 200_000, pytest.param(5_000_000, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_when_checkpoints_are_written(size, text_file, tmp_path):
    """Room for configurations alone, for the text but not for weights, for weights but not for the optimizer."""
    out = tmp_path / "out"
    with (
        largest_file(size),
        pytest.raises(JobError, match=rf"cannot (keep checkpoints in|write to) {re.escape(str(out))}: "),
    ):
        run(text_file, out, OFTEN)
    assert not [*out.glob("checkpoint-*")]
    assert run(text_file, out, OFTEN, resume=out.exists() and (out / "recipe.json").exists()).steps == STEPS


def test_a_disk_that_is_full_when_the_result_is_written(halves, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(halves, out)
    monitoring = BLIND.model_copy(update={"save_every": 1000})
    with largest_file(200_000), pytest.raises(JobError, match=r"cannot (write to|keep checkpoints in) .*out: "):
        run(text_file, out, monitoring, resume=True)
    assert {path.name for path in out.glob("checkpoint-*")} >= {"checkpoint-2", "checkpoint-4"}
    assert run(text_file, out, monitoring, resume=True).steps == STEPS


@pytest.mark.slow
def test_the_loss_of_a_resumed_run_is_that_of_the_whole(halves, text_file, tmp_path):
    whole = run(text_file, tmp_path / "whole", OFTEN)
    shutil.copytree(halves, tmp_path / "resumed")
    resumed = run(text_file, tmp_path / "resumed", OFTEN, resume=True)
    [mean] = [entry["train_loss"] for entry in whole.log if "train_loss" in entry]
    [again] = [entry["train_loss"] for entry in resumed.log if "train_loss" in entry]
    assert mean == pytest.approx(sum(loss for loss, _ in losses(whole).values()) / STEPS, rel=1e-6)
    last = [loss for step, (loss, _) in losses(resumed).items() if step > 4]
    assert abs(again - sum(last) / len(last)) > 0.01
    # The first half of the resumed one was made as a run of four steps, with another learning rate.
    assert again == pytest.approx(sum(loss for loss, _ in losses(resumed).values()) / STEPS, rel=1e-6)


def test_a_vocabulary_that_a_text_cannot_fill(text_file, tmp_path):
    training = run(text_file, tmp_path / "out", BLIND, max_steps=1, vocab_size=10**15)
    made = training.settings["vocab_size"]
    assert 258 < made == training.settings["vocabulary"] < 10_000
    assert any(f"a vocabulary of {made:,} tokens, not the 1,000,000,000,000,000" in each for each in training.warnings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == made
    assert not any("vocabulary" in each for each in run(text_file, tmp_path / "b", BLIND, max_steps=1).warnings)
