"""Pretraining: what is left in the folder, going on after a stop, and what cannot be."""

import copy
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import Dynamics, JobError, RequestError
from rectilinear.models.settings import Loading
from rectilinear.runs import Interrupted
from rectilinear.text.rows import pack_rows
from rectilinear.text.settings import Rows
from rectilinear.text.tokens import tokenize_with
from rectilinear.training import corpus
from rectilinear.training.corpus import Plan
from rectilinear.training.presets import fill_preset
from rectilinear.training.pretrain import pretrain
from rectilinear.training.results import Training
from rectilinear.training.settings import Corpus, Monitoring, Recipe
from rectilinear.training.trainer import last_checkpoint

STEPS = 8
SMALL = {"preset": "mistral-1m", "vocab_size": 300, "seq_len": 24, "batch_size": 4, "gradient_accumulation": 2}
BRIEF = {**SMALL, "max_steps": STEPS, "dtype": "float32", "device": "cpu"}


def run(text, out, monitoring=Monitoring(), *, without=(), resume=False, overwrite=False, progress=False, **changes):
    """A pretraining with changes to the options of a brief one."""
    options = {name: value for name, value in (BRIEF | changes).items() if name not in without}
    parts = [{name: value for name, value in options.items() if name in kind.model_fields} for kind in (Recipe, Corpus)]
    assert len(options) == sum(map(len, parts))
    recipe, corpus = Recipe(**parts[0]), Corpus(**parts[1])
    more = {"resume": resume, "overwrite": overwrite, "progress": progress}
    return pretrain(str(text), recipe, corpus, out=out, monitoring=monitoring, **more)


#: Points and checkpoints at every second step; neither points nor checkpoints but the last.
OFTEN, BLIND = Monitoring(probe_every=2, save_every=2), Monitoring(probe_every=0)


def losses(training):
    return {entry["step"]: (entry["loss"], entry.get("penalty")) for entry in training.log if "loss" in entry}


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(text_file, tmp_path_factory):
    """A run that nothing stopped, its folder and result."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(text_file, out, OFTEN, regularizer="cosine")


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
    assert f"{training.held_out.loss:.4f} ± {training.held_out.stderr:.4f} nats per token" in card


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
    rows, loading = Rows(max_tokens=2048, seq_len=24), Loading(device="cpu")
    assert len(rectilinear.measure(str(out), text_file, rows=rows, loading=loading).blocks) == 8
    made = rectilinear.linearize(
        str(out),
        text_file,
        "drop",
        rectilinear.Selection(blocks=[3]),
        rows=rectilinear.CalibrationRows(max_tokens=2048, seq_len=24),
        loading=loading,
    )
    assert len(made.model.model.layers) == 7


def test_held_out_loss_is_that_of_the_rows_left_out(finished, documents, text_file):
    out, training = finished
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = pack_rows(documents, tokenize_with(tokenizer), 24, 10**6).ids
    # What comes after the rows of the steps: 20 tokens for each of 96 features.
    last = rows[STEPS * 8 :][:80]
    with torch.no_grad():
        loss = AutoModelForCausalLM.from_pretrained(out)(input_ids=last, labels=last).loss
    assert training.held_out.data.rows == len(last)
    assert training.held_out.loss == pytest.approx(loss.item(), rel=1e-5)
    assert training.data.rows == STEPS * 8


def test_another_text_can_be_held_out(text_file, documents, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("\n<|endoftext|>\n".join(documents[:9]), encoding="utf-8")
    training = run(text_file, tmp_path / "out", held_out=str(other), held_out_tokens=100, max_steps=1)
    assert (training.held_out.data.source, training.held_out.data.rows) == (str(other), 4)


def test_the_card_names_no_path_and_its_code_runs(finished, monkeypatch, capsys):
    out, training = finished
    text = (out / "README.md").read_text()
    assert not re.search(r"(?<!\w)/\w+/", text)
    data = ModelCard.load(out / "README.md").data
    assert (data.library_name, data.metrics, data.get("datasets")) == ("transformers", ["perplexity"], None)
    [result] = data.eval_results
    assert result.metric_value == pytest.approx(training.held_out.perplexity, abs=1e-4)
    assert result.dataset_name == "tales.txt, the last 80 rows"
    monkeypatch.chdir(out)
    exec(re.search(r"```python\n(.+?)```", text, re.DOTALL)[1], {})
    assert capsys.readouterr().out.strip().startswith("<|endoftext|>Once upon a time")


def test_the_task_loss_is_told_from_the_penalty(finished, text_file, tmp_path):
    _, training = finished
    logged = [entry for entry in training.log if "loss" in entry]
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + 0.5 * entry["penalty"], rel=1e-6)
    # The first step's weights are the same without the penalty, and so is what it adds to.
    plain = run(text_file, tmp_path / "plain", BLIND)
    assert logged[0]["task_loss"] == pytest.approx(losses(plain)[1][0], rel=1e-5)
    assert "task_loss" not in plain.log[0]


@pytest.mark.parametrize(
    ("changes", "held_out", "train"),
    [
        ({"max_steps": 8}, 80, 64),  # 20 tokens for each of 96 features, beside the rows of the steps
        ({"max_steps": 2, "seq_len": 120}, 16, 16),
        ({"max_tokens": 100 * 24}, 10, 88),  # of a text that is all trained on a tenth, and whole steps of the others
        ({"max_tokens": 100 * 24, "max_steps": 10}, 20, 80),  # what the steps do not need
    ],
)
def test_enough_is_held_out_for_the_width(changes, held_out, train, text_file, tmp_path):
    without = [] if "max_steps" in changes else ["max_steps"]
    training = run(text_file, tmp_path / "out", Monitoring(probe_every=1000), without=without, **changes)
    assert (training.held_out.data.rows, training.data.rows) == (held_out, train)
    few = held_out * training.data.seq_len < 20 * 96
    assert any("fewer than 20 x width 96" in warning for warning in training.warnings) == few
    assert Training.load(tmp_path / "out").warnings == training.warnings


@pytest.mark.parametrize(("train", "held_out"), [(50_000, 400), (3_200, 32), (1_000, 10)])
def test_what_was_enough_before_is_held_out_as_before(train, held_out):
    recipe = Recipe(batch_size=1, gradient_accumulation=1, max_steps=train)
    plan = Plan("text", recipe, Corpus(seq_len=960), fill_preset(recipe, Corpus(seq_len=960)))  # 4 rows are enough
    wanted = corpus._rows_wanted(plan)
    assert wanted == train + min(400, train // 99 + 1)
    assert corpus._count_held_out(plan, wanted) == held_out


def test_the_vocabulary_is_what_the_tokenizer_has(text_file, tmp_path):
    training = run(text_file, tmp_path / "out", BLIND, max_steps=1, vocab_size=100_000_000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert training.settings["vocabulary"] == training.settings["vocab_size"] == len(tokenizer) < 1000


def test_goes_on_for_longer(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    longer = run(text_file, out, OFTEN, resume=True, regularizer="cosine", max_steps=12)
    assert longer.steps == 12
    assert {step: loss for step, loss in losses(longer).items() if step <= STEPS} == losses(finished[1])
    assert sorted(losses(longer)) == list(range(1, 13))
    # The schedule is that of 12 steps: at the eighth it had not come to its end.
    rates = {entry["step"]: entry["learning_rate"] for entry in longer.log if "learning_rate" in entry}
    assert rates[8] < rates[9] > rates[12]
    assert [point.step for point in Dynamics.load(out).points] == [0, 2, 4, 6, 8, 10, 12]
    assert not (out / "rows.bin").exists()
    assert run(text_file, out, resume=True, regularizer="cosine", max_steps=12) == longer
    with pytest.raises(RequestError, match=r"got another \(max_steps 12 -> 8\)"):
        run(text_file, out, resume=True, regularizer="cosine")


def test_goes_on_with_the_same_text_alone(finished, text_file, tmp_path):
    out, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    run(text, out, BLIND)
    text.write_text(text_file.read_text()[100:])
    with pytest.raises(RequestError, match=r"expected the text that the run in .* was trained on, got another"):
        run(text, out, BLIND, resume=True, max_steps=12)
    assert not (out / "rows.bin").exists()


def test_goes_on_with_a_run_of_an_earlier_version(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    record = json.loads((out / "recipe.json").read_text())
    old = {"vocab_size": "vocabulary", "gradient_accumulation": "accumulation", "penalize_embedding": "embedding"}
    record["recipe"] = {old.get(name, name): value for name, value in record["recipe"].items() if name != "device"}
    (out / "recipe.json").write_text(json.dumps(record))
    assert run(text_file, out, resume=True, regularizer="cosine") == finished[1]
    with pytest.raises(RequestError, match=r"got another \(gradient_accumulation 2 -> 4, rows 8 -> 16\)"):
        run(text_file, out, resume=True, regularizer="cosine", gradient_accumulation=4)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_goes_on_where_it_was_stopped(finished, text_file, tmp_path, stop):
    whole, training = finished
    out = tmp_path / "out"

    def stopping(stage, done, total):
        if done == stop:
            raise Stop

    with pytest.raises(Stop):
        run(text_file, out, OFTEN, progress=stopping, regularizer="cosine")
    assert last_checkpoint(out).name == f"checkpoint-{stop // 2 * 2}"
    assert not (out / "model.safetensors").exists()
    # A checkpoint that was not written to its end is passed over, and what only looks like one is left alone.
    (out / "checkpoint-7").mkdir()
    (out / "checkpoint-notes.md").write_text("mine")

    with pytest.raises(RequestError, match=r"got another \(seed 0 -> 1\); try the same options"):
        run(text_file, out, resume=True, regularizer="cosine", seed=1)
    again = run(text_file, out, OFTEN, resume=True, regularizer="cosine")
    assert losses(again) == losses(training)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(out).items())
    assert Dynamics.load(out).points == Dynamics.load(whole).points
    left = {"checkpoint-6", "checkpoint-8", "checkpoint-notes.md"}
    assert {path.name for path in out.glob("checkpoint-*")} == left
    assert run(text_file, out, resume=True, regularizer="cosine") == again


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_leaves_a_checkpoint_of_its_step(number, code, finished, text_file, tmp_path):
    whole, training = finished
    out, handlers = tmp_path / "out", [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def interrupting(stage, done, total):
        if done == 3:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match="keeps the run up to step 3; to go on, add `resume`") as stopped:
        run(text_file, out, Monitoring(probe_every=2, save_every=100), progress=interrupting, regularizer="cosine")
    assert stopped.value.code == code
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    again = run(text_file, out, OFTEN, resume=True, regularizer="cosine")
    assert losses(again) == losses(training)
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(out).items())
    assert Dynamics.load(out).points == Dynamics.load(whole).points
    # What the run that went on was asked to keep counts, not what the first one was.
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-8"}


def test_probes_change_nothing(finished, text_file, tmp_path):
    out, _ = finished
    run(text_file, tmp_path / "out", BLIND, regularizer="cosine")
    assert not (tmp_path / "out" / "dynamics.json").exists()
    assert all(torch.equal(tensor, weights(out)[name]) for name, tensor in weights(tmp_path / "out").items())


@pytest.mark.slow
def test_seeds_and_strengths(finished, text_file, tmp_path):
    _, cosine = finished
    ran = {
        name: run(text_file, tmp_path / name, BLIND, **changes)
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
    training = run(text_file, tmp_path / "out", dtype="bfloat16", max_steps=2)
    assert training.settings["dtype"] == "bfloat16"
    assert all(tensor.dtype is torch.float32 for tensor in weights(tmp_path / "out").values())


def test_a_loss_that_is_not_finite(text_file, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(JobError, match=r"expected a finite [a-z ]+, got \w+ at step \d") as told:
        run(text_file, out, Monitoring(probe_every=0, save_every=1), learning_rate=1e25)
    last = last_checkpoint(out)
    assert f"the last checkpoint, {last}, is from before it; try a smaller `learning_rate` and `overwrite`" in str(
        told.value
    )
    assert all(tensor.isfinite().all() for tensor in weights(last).values())
    assert not (out / "model.safetensors").exists()


def test_rows_that_a_killed_run_left_beside_its_result_are_removed(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "rows.bin").write_bytes(b"rows")
    run(text_file, out, resume=True, regularizer="cosine")
    assert not (out / "rows.bin").exists()


def test_points_that_met_a_full_disk_are_there_in_the_end(finished, text_file, tmp_path, monkeypatch):
    saved = Dynamics.save

    def save(self, folder):
        if folder == tmp_path / "out":  # while it trains
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return saved(self, folder)

    monkeypatch.setattr(Dynamics, "save", save)
    run(text_file, tmp_path / "out", OFTEN, regularizer="cosine")
    assert Dynamics.load(tmp_path / "out").points == Dynamics.load(finished[0]).points


def test_rows_that_cannot_be_removed_are_a_line(finished, tmp_path, monkeypatch):
    def unlink(self, missing_ok=False):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(corpus.Path, "unlink", unlink)
    with pytest.raises(JobError, match=r"the run is over, but cannot remove .*rows.bin: Permission denied; .*`resume`"):
        corpus.discard_rows(tmp_path)


def test_a_text_shorter_than_one_step(text_file, tmp_path):
    out = tmp_path / "out"
    text = tmp_path / "short.txt"
    text.write_text("The cat saw a dog. " * 20)
    with pytest.raises(RequestError, match=r"at least one step of 8 rows of 24 tokens, got \d rows to train on"):
        run(text, out)
    assert not out.exists()


def test_a_folder_of_something_else(finished, text_file, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="is not empty; try another, or `overwrite`"):
        run(text_file, tmp_path)
    with pytest.raises(RequestError, match="is not empty; try `resume`, another, or `overwrite`"):
        run(text_file, finished[0])
    with pytest.raises(RequestError, match="holds no run to resume; try another, or `overwrite`"):
        run(text_file, tmp_path, resume=True)
    with pytest.raises(RequestError, match="expected a folder for `out`, got the file"):
        run(text_file, tmp_path / "mine.txt", overwrite=True)
    done = run(text_file, tmp_path, BLIND, overwrite=True, max_steps=1)
    assert done.steps == 1
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_overwriting_loses_nothing_until_there_is_something_new(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "checkpoint-best").mkdir()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(RequestError, match="no text at /nowhere"):
        run("/nowhere.txt", out, overwrite=True)
    with pytest.raises(RequestError, match="a vocabulary of at least 258"):
        run(text_file, out, overwrite=True, vocab_size=100)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    def stopping(stage, done, total):
        raise Stop

    with pytest.raises(Stop):
        run(text_file, out, BLIND, overwrite=True, progress=stopping)
    left = {"checkpoint-best", "README.md", "recipe.json", "rows.bin", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in out.iterdir()} == left


def test_a_run_that_is_not_whole_any_more(finished, text_file, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "training.json").unlink()
    with pytest.raises(RequestError, match=r"expected 144 rows in .*rows.bin, to resume the run, got another"):
        run(text_file, out, resume=True, regularizer="cosine")
    (out / "rows.bin").write_bytes(b"1234")
    with pytest.raises(RequestError, match=r"expected 144 rows in .*rows.bin"):
        run(text_file, out, resume=True, regularizer="cosine")
    (out / "recipe.json").write_text('{"recipe": []}')
    with pytest.raises(RequestError, match="holds no run to resume"):
        run(text_file, out, resume=True, regularizer="cosine")
    with pytest.raises(RequestError, match="expected `resume` or `overwrite`, got both"):
        run(text_file, out, resume=True, overwrite=True)


def test_a_tokenizer_without_padding(tiny_tokenizer, text_file, tmp_path):
    assert tiny_tokenizer.pad_token is None
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "max_steps": 2}
    training = run(text_file, tmp_path / "out", Monitoring(probe_every=1), without=["vocab_size"], **options)
    assert training.settings["vocabulary"] == training.settings["vocab_size"] == len(tiny_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tiny_tokenizer)


def test_a_tokenizer_without_bos(tiny_tokenizer, text_file, tmp_path):
    """Nothing tells where documents begin then, and errors are over rows."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {"tokenizer": str(tmp_path / "tokenizer"), "max_steps": 1}
    training = run(text_file, tmp_path / "out", BLIND, without=["vocab_size"], **options)
    assert training.held_out.stderr > 0


def test_stories_are_held_out_from_stories(tiny_checkpoint, tmp_path):
    options = {"held_out": "stories", "held_out_tokens": 240, "max_steps": 1, "tokenizer": str(tiny_checkpoint)}
    training = run("stories", tmp_path / "out", BLIND, without=["vocab_size"], **options)
    assert training.held_out.data.rows == 10
    assert training.held_out.data.fingerprint != training.data.fingerprint


def test_gradients_whose_norm_overflows(text_file, tmp_path, monkeypatch):
    def huge(self, *args, **kwargs):
        loss = args[0].logits.float().sum() * 1e25
        return loss - loss.detach() + 1

    monkeypatch.setattr("rectilinear.training.regularizer.Regularizer.__call__", huge)
    out = tmp_path / "out"
    with pytest.raises(JobError, match="expected a finite gradient norm, got inf at step 1; there is no checkpoint"):
        run(text_file, out, BLIND, regularizer="cosine")


@pytest.mark.parametrize(("processes", "rows"), [(1, 32), (2, 32), (8, 32), (32, 32)])
def test_a_step_has_as_many_rows_however_many_processes_share_them(processes, rows):
    preset = fill_preset(Recipe(preset="mistral-4m"), Corpus(), processes)
    assert preset.rows == rows
    assert preset.rows % (preset.batch_size * processes) == 0


def test_processes_that_cannot_share_them():
    with pytest.raises(RequestError, match="divides the 32 rows of a step, got 3; try `batch_size`"):
        fill_preset(Recipe(preset="mistral-4m"), Corpus(), 3)
    assert fill_preset(Recipe(batch_size=2, gradient_accumulation=5), Corpus(), 3).rows == 30


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"report_to": "nosuch"}, "which are installed, got 'nosuch'"),
        ({"save_every": 0}, "`save_every` to be greater than 0, got 0"),
        ({"probe_every": -1}, "`probe_every` to be greater than or equal to 0, got -1"),
        ({"keep": -1}, "`keep` to be greater than or equal to 0, got -1"),
    ],
)
def test_monitoring_that_cannot_be(text_file, tmp_path, changes, said):
    with pytest.raises(RequestError, match=said):
        run(text_file, tmp_path / "out", Monitoring(**changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seq_len": 1}, "`seq_len` to be greater than or equal to 2, got 1"),
        ({"text": "a.txt", "held_out": "a.txt"}, "another text to hold out than the one to train on, got a.txt twice"),
        ({"strength": -1.0}, "`strength` to be greater than or equal to 0, got -1.0"),
        ({"strength": float("nan"), "regularizer": "mse"}, "`strength` to be a finite number, got nan"),
        ({"regularizer": "l1"}, "`regularizer` to be 'none', 'mse' or 'cosine', got 'l1'"),
        ({"strength": 0.5}, "expected no `strength` without `regularizer`"),
        ({"preset": "mistral"}, "expected `preset` to be one of mistral-1m, "),
        ({"max_steps": 0}, "`max_steps` to be greater than 0, got 0"),
        ({"epochs": 2.0}, "expected no `epochs` with `max_steps`"),
        ({"learning_rate": float("inf")}, "`learning_rate` to be a finite number, got inf"),
        ({"weight_decay": -0.1}, "`weight_decay` to be greater than or equal to 0, got -0.1"),
        ({"dtype": "float16"}, "`dtype` to be 'auto', 'float32' or 'bfloat16', got 'float16'"),
        ({"text": "stories", "max_steps": None}, "stories, which never end"),
        ({"tokenizer": "/nowhere", "without": ["vocab_size"]}, "no model at /nowhere"),
        ({"tokenizer": "gpt2"}, "expected no `vocab_size` with `tokenizer`"),
        ({"held_out": "/nowhere.txt"}, "no text at /nowhere.txt"),
        ({"device": "cuda:1"}, "`device` to be 'auto' or 'cpu', got 'cuda:1'"),
    ],
)
def test_recipes_that_cannot_be(text_file, tmp_path, changes, said):
    with pytest.raises(RequestError, match=said):
        run(**{"text": text_file, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


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
