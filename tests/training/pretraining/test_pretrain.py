"""Pretraining: what is left in the folder, going on after a stop, and what cannot be."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import Dynamics, JobError, RequestError
from rectilinear.text.rows import pack_rows
from rectilinear.training.checkpoints import last_checkpoint
from rectilinear.training.pretraining.pretrain import Upkeep, pretrain
from rectilinear.training.pretraining.recipe import Recipe
from rectilinear.training.pretraining.record import Training
from tests import conftest

STEPS = 8
SMALL = {"preset": "mistral-1m", "vocabulary": 300, "seq_len": 24, "batch_size": 4, "accumulation": 2}


def recipe_of(text, **changes):
    return Recipe(str(text), **{**SMALL, "max_steps": STEPS, "dtype": "float32", **changes})


def losses(training):
    return {entry["step"]: (entry["loss"], entry.get("penalty")) for entry in training.log if "loss" in entry}


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    """A run that nothing stopped, its folder and result."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    upkeep = Upkeep(probe_every=2, save_every=2)
    return out, pretrain(recipe_of(text_file, regularizer="cosine"), out, upkeep, device="cpu")


def test_what_is_left(finished):
    out, training = finished
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "checkpoint-6",
        "checkpoint-8",
        "config.json",
        "dynamics.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert Training.load(out) == training
    assert (training.steps, training.data.tokens) == (STEPS, STEPS * 8 * 24)
    assert sorted(losses(training)) == list(range(1, STEPS + 1))
    assert all(penalty > 0 for _, penalty in losses(training).values())
    assert [point.step for point in Dynamics.load(out).points] == [0, 2, 4, 6, 8]
    card = (out / "README.md").read_text()
    assert f"{training.held_out.loss:.4f} nats per token" in card
    assert str(out.parent) not in card


@pytest.mark.parametrize("place", [".", "checkpoint-6"])
def test_loads_and_generates_in_plain_transformers(finished, place):
    out, _ = finished
    model, tokenizer = (kind.from_pretrained(out / place) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("The cat", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == tokenizer.bos_token_id
    cached, uncached = (model.generate(ids, max_new_tokens=9, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)


def test_measures_and_linearizes(finished, text_file, tmp_path):
    out, _ = finished
    size = {"max_tokens": 2048, "seq_len": 24, "device": "cpu"}
    assert len(rectilinear.measure(str(out), text_file, **size).blocks) == 8
    made = conftest.linearize(str(out), text_file, kind="drop", blocks=[3], **size)
    assert len(made.model.model.layers) == 7


def test_held_out_loss_is_that_of_the_rows_left_out(finished, documents, text_file):
    out, training = finished
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = pack_rows(documents, lambda texts: tokenizer(texts)["input_ids"], 24, 10**6).ids
    # As many as the steps need, and one in a hundred beside them.
    read = rows[: STEPS * 8 + STEPS * 8 // 99 + 1]
    last = read[-max(1, len(read) // 100) :]
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(out)(input_ids=last, labels=last).loss
    assert training.held_out.data.rows == len(last)
    assert training.held_out.loss == pytest.approx(loss.item(), rel=1e-5)
    assert training.data.rows == STEPS * 8


def test_another_text_can_be_held_out(text_file, documents, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n<|endoftext|>\n".join(documents[:9]), encoding="utf-8")
    training = pretrain(
        recipe_of(text_file, held_out=str(other), held_out_tokens=100, max_steps=1), tmp_path / "out", device="cpu"
    )
    assert (training.held_out.data.source, training.held_out.data.rows) == (str(other), 4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [3, 5])
def test_goes_on_where_it_was_stopped(finished, text_file, tmp_path, stop):
    whole, training = finished
    out = tmp_path / "out"

    def stopping(stage, done, total):
        if done == stop:
            raise Stop

    recipe = recipe_of(text_file, regularizer="cosine")
    with pytest.raises(Stop):
        pretrain(recipe, out, Upkeep(probe_every=2, save_every=2, progress=stopping), device="cpu")
    assert last_checkpoint(out).name == f"checkpoint-{stop // 2 * 2}"
    assert not (out / "model.safetensors").exists()
    # A checkpoint that was not written to its end is passed over, and what only looks like one is left alone.
    (out / "checkpoint-7").mkdir()
    (out / "checkpoint-notes.md").write_text("mine")

    with pytest.raises(RequestError, match=r"got another \(seed 0 -> 1\); try the same options"):
        pretrain(recipe_of(text_file, regularizer="cosine", seed=1), out, resume=True, device="cpu")
    again = pretrain(recipe, out, Upkeep(probe_every=2, save_every=2), resume=True, device="cpu")
    assert losses(again) == losses(training)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(out).items())
    assert Dynamics.load(out).points == Dynamics.load(whole).points
    left = {"checkpoint-6", "checkpoint-8", "checkpoint-notes.md"}
    assert {path.name for path in out.glob("checkpoint-*")} == left
    assert pretrain(recipe, out, resume=True, device="cpu") == again


def test_probes_change_nothing(finished, text_file, tmp_path):
    out, _ = finished
    pretrain(recipe_of(text_file, regularizer="cosine"), tmp_path / "out", Upkeep(probe_every=0), device="cpu")
    assert not (tmp_path / "out" / "dynamics.json").exists()
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(tmp_path / "out").items())


def test_seeds_and_strengths(finished, text_file, tmp_path):
    _, cosine = finished
    ran = {
        name: pretrain(recipe_of(text_file, **changes), tmp_path / name, Upkeep(probe_every=0), device="cpu")
        for name, changes in {
            "none": {},
            "zero": {"regularizer": "mse", "strength": 0.0},
            "seed": {"regularizer": "cosine", "seed": 1},
            "strong": {"regularizer": "cosine", "strength": 20.0},
        }.items()
    }
    assert ran["none"].model.sha256 == ran["zero"].model.sha256
    assert losses(ran["none"]) == losses(ran["zero"])
    assert len({ran[name].model.sha256 for name in ran} | {cosine.model.sha256}) == 4
    assert losses(ran["strong"])[STEPS][1] < 0.8 * losses(cosine)[STEPS][1]


def test_bfloat16(text_file, tmp_path):
    training = pretrain(recipe_of(text_file, dtype="bfloat16", max_steps=2), tmp_path / "out", device="cpu")
    assert training.settings["dtype"] == "bfloat16"
    assert all(tensor.dtype is torch.float32 for tensor in weights(tmp_path / "out").values())


def test_a_loss_that_is_not_finite(text_file, tmp_path):
    out = tmp_path / "out"
    recipe = recipe_of(text_file, learning_rate=1e25)
    with pytest.raises(JobError, match=r"expected a finite [a-z ]+, got \w+ at step \d") as told:
        pretrain(recipe, out, Upkeep(probe_every=0, save_every=1), device="cpu")
    last = last_checkpoint(out)
    assert f"the last checkpoint, {last}, is from before it; try a smaller --learning-rate and --overwrite" in str(
        told.value
    )
    assert all(tensor.isfinite().all() for tensor in weights(last).values())
    assert not (out / "model.safetensors").exists()


def test_a_text_shorter_than_one_step(text_file, tmp_path):
    out = tmp_path / "out"
    text = tmp_path / "short.txt"
    text.write_text("The cat saw a dog. " * 20)
    with pytest.raises(RequestError, match=r"at least one step of 8 rows of 24 tokens, got \d rows to train on"):
        pretrain(recipe_of(text), out, device="cpu")
    assert not out.exists()


def test_a_folder_of_something_else(finished, text_file, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty; try --resume, another folder, or --overwrite"):
        pretrain(recipe_of(text_file), tmp_path, device="cpu")
    with pytest.raises(RequestError, match="holds no run to resume; try another folder, or --overwrite"):
        pretrain(recipe_of(text_file), tmp_path, resume=True, device="cpu")
    with pytest.raises(RequestError, match="expected a folder for --out, got the file"):
        pretrain(recipe_of(text_file), tmp_path / "mine.txt", overwrite=True, device="cpu")
    done = pretrain(recipe_of(text_file, max_steps=1), tmp_path, Upkeep(probe_every=0), overwrite=True, device="cpu")
    assert done.steps == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_overwriting_loses_nothing_until_there_is_something_new(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "checkpoint-best").mkdir()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(RequestError, match="no text at /nowhere"):
        pretrain(recipe_of("/nowhere.txt"), out, overwrite=True, device="cpu")
    with pytest.raises(RequestError, match="a vocabulary of at least 258"):
        pretrain(recipe_of(text_file, vocabulary=100), out, overwrite=True, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    def stopping(stage, done, total):
        raise Stop

    with pytest.raises(Stop):
        pretrain(recipe_of(text_file), out, Upkeep(probe_every=0, progress=stopping), overwrite=True, device="cpu")
    left = {"checkpoint-best", "README.md", "recipe.json", "rows.bin", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == left


def test_a_run_that_is_not_whole_any_more(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    recipe = recipe_of(text_file, regularizer="cosine")
    (out / "training.json").unlink()
    with pytest.raises(RequestError, match=r"expected 65 rows in .*rows.bin, to resume the run, got another"):
        pretrain(recipe, out, resume=True, device="cpu")
    (out / "rows.bin").write_bytes(b"1234")
    with pytest.raises(RequestError, match=r"expected 65 rows in .*rows.bin"):
        pretrain(recipe, out, resume=True, device="cpu")
    (out / "recipe.json").write_text('{"recipe": []}')
    with pytest.raises(RequestError, match="holds no run to resume"):
        pretrain(recipe, out, resume=True, device="cpu")
    with pytest.raises(RequestError, match="expected resume or overwrite, got both"):
        pretrain(recipe, out, resume=True, overwrite=True, device="cpu")


def test_a_tokenizer_without_padding(tiny_tokenizer, text_file, tmp_path):
    assert tiny_tokenizer.pad_token is None
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe = recipe_of(text_file, vocabulary=None, tokenizer=str(tmp_path / "tokenizer"), max_steps=2)
    training = pretrain(recipe, tmp_path / "out", Upkeep(probe_every=1), device="cpu")
    assert training.settings["vocabulary"] == 1024
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tiny_tokenizer)


def test_stories_are_held_out_from_stories(tmp_path):
    recipe = recipe_of("stories", held_out="stories", held_out_tokens=240, max_steps=1, vocabulary=260)
    training = pretrain(recipe, tmp_path / "out", Upkeep(probe_every=0), device="cpu")
    assert training.held_out.data.rows == 10
    assert training.held_out.data.fingerprint != training.data.fingerprint


def test_gradients_whose_norm_overflows(text_file, tmp_path, monkeypatch):
    def huge(self, *args, **kwargs):
        loss = args[0].logits.float().sum() * 1e25
        return loss - loss.detach() + 1

    monkeypatch.setattr("rectilinear.training.regularizer.Regularizer.__call__", huge)
    out = tmp_path / "out"
    with pytest.raises(JobError, match="expected a finite gradient norm, got inf at step 1; there is no checkpoint"):
        pretrain(recipe_of(text_file, regularizer="cosine"), out, Upkeep(probe_every=0), device="cpu")


@pytest.mark.parametrize(("processes", "rows"), [(1, 32), (2, 32), (8, 32), (32, 32)])
def test_a_step_has_as_many_rows_however_many_processes_share_them(processes, rows):
    recipe = Recipe("stories", "mistral-4m")
    preset = recipe.for_processes(processes)
    assert preset.rows == rows
    assert preset.rows % (preset.batch_size * processes) == 0


def test_processes_that_cannot_share_them():
    with pytest.raises(RequestError, match="divides the 32 rows of a step, got 3; try --batch-size"):
        Recipe("stories", "mistral-4m").for_processes(3)
    assert Recipe("stories", "mistral-4m", batch_size=2, accumulation=5).for_processes(3).rows == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"report_to": "nosuch"}, "which are installed, got 'nosuch'"),
        ({"save_every": 0}, "save_every of at least 1, got 0"),
        ({"probe_every": -1}, "probe_every of at least 0, got -1"),
        ({"keep": 0}, "keep of at least 1, got 0"),
    ],
)
def test_upkeep_that_cannot_be(text_file, tmp_path, changes, said):
    with pytest.raises(RequestError, match=said):
        pretrain(recipe_of(text_file), tmp_path / "out", Upkeep(**changes), device="cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seq_len": 1}, "at least 2 tokens"),
        ({"text": "a.txt", "held_out": "a.txt"}, "another text to hold out than the one to train on, got a.txt twice"),
        ({"strength": -1.0}, "strength of at least 0, got -1.0"),
        ({"strength": float("nan"), "regularizer": "mse"}, "strength of at least 0, got nan"),
        ({"regularizer": "l1"}, "expected regularizer 'cosine' or 'mse', got 'l1'"),
        ({"preset": "mistral"}, "expected --preset"),
        ({"max_steps": 0}, "max_steps above 0, got 0"),
        ({"learning_rate": float("inf")}, "learning_rate above 0, got inf"),
        ({"weight_decay": -0.1}, "weight decay of at least 0, got -0.1"),
        ({"dtype": "float16"}, "got float16"),
        ({"text": "stories", "max_steps": None}, "stories, which never end"),
        ({"tokenizer": "/nowhere"}, "no model at /nowhere"),
        ({"held_out": "/nowhere.txt"}, "no text at /nowhere.txt"),
    ],
)
def test_recipes_that_cannot_be(text_file, tmp_path, changes, said):
    changes = {"text": str(text_file), **changes}
    with pytest.raises(RequestError, match=said):
        pretrain(recipe_of(changes.pop("text"), **changes), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_devices_that_cannot_be(text_file, tmp_path):
    with pytest.raises(RequestError, match="device auto or cpu to train on, got 'cuda:1'"):
        pretrain(recipe_of(text_file), tmp_path / "out", device="cuda:1")


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_equal_one(finished, text_file, tmp_path, accumulation):
    _, alone = finished
    out = tmp_path / "out"
    options = {
        "--preset": "mistral-1m",
        "--text": text_file,
        "--vocab-size": 300,
        "--seq-len": 24,
        "--batch-size": 4 // accumulation,
        "--gradient-accumulation": accumulation,
        "--max-steps": STEPS,
        "--probe-every": 2,
        "--regularizer": "cosine",
        "--dtype": "float32",
        "--device": "cpu",
        "--out": out,
    }
    words = [str(word) for pair in options.items() for word in pair]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, "-m", "rectilinear", "pretrain", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote the checkpoint") == 1
    training = Training.load(out)
    assert training.processes == 2
    for step, (loss, penalty) in losses(alone).items():
        assert losses(training)[step] == (pytest.approx(loss, rel=1e-5), pytest.approx(penalty, rel=1e-4))
    assert training.held_out.loss == pytest.approx(alone.held_out.loss, rel=1e-5)
    assert json.loads((out / "recipe.json").read_text())["recipe"]["rows"] == 8
