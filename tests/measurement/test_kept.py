"""Scores of earlier runs are found again where everything is the same, and nowhere else."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rectilinear
from rectilinear import Loading, Measurement, Rows
from rectilinear.cli.main import main
from rectilinear.measurement import kept
from rectilinear.measurement.collect import collect_moments
from rectilinear.measurement.kept import KeptScores, kept_folder
from tests import faults
from tests.families import build, token_rows
from tests.hostile import MANY

_COUNTED = {faults.kill: "kills", faults.fill: "full"}

SIZE = {"rows": Rows(max_tokens=1024, seq_len=32), "progress": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where scores are kept."""
    monkeypatch.setenv("RECTILINEAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Blocks whose moments are collected."""
    found = []

    def noting(passes, blocks, *args, **options):
        found.extend(options["numbers"])
        return collect_moments(passes, blocks, *args, **options)

    monkeypatch.setattr("rectilinear.measurement.measure.collect_moments", noting)
    return found


def test_an_equal_measurement_is_found_again(tiny_checkpoint, text_file, measured):
    first = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    assert measured == [0, 1, 2]
    again = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    assert measured == [0, 1, 2]
    assert again.to_json() == first.to_json()


@pytest.mark.parametrize("reached", [1, 2])
def test_a_run_that_was_stopped_goes_on_at_its_block(tiny_checkpoint, text_file, measured, monkeypatch, reached):
    monkeypatch.setattr("rectilinear.measurement.needs._LONG", 0)
    usual = rectilinear.measure(str(tiny_checkpoint), text_file, Measurement(reuse=False), **SIZE)
    measured.clear()
    save, saved = kept.Kept.save, []

    def stopped(self, *args):
        save(self, *args)
        saved.append(args)
        if len(saved) == reached:
            raise KeyboardInterrupt

    monkeypatch.setattr(kept.Kept, "save", stopped)
    with pytest.raises(KeyboardInterrupt):
        rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    monkeypatch.setattr(kept.Kept, "save", save)
    measured.clear()
    found = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    assert measured == [*range(reached, 3)]
    assert found.to_json() == usual.to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {"measurement": Measurement(folds=3)},
        {"measurement": Measurement(sink_ratio=5)},
        {"measurement": Measurement(convention="paper")},
        {"measurement": Measurement(reuse=False)},
        {"rows": Rows(max_tokens=1024, seq_len=32, bos="row")},
        {"rows": Rows(max_tokens=512, seq_len=32)},
        {"loading": Loading(dtype="bfloat16")},
        {"batch_size": 3},
    ],
    ids=str,
)
def test_another_measurement_is_not(tiny_checkpoint, text_file, measured, changes):
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    measured.clear()
    rectilinear.measure(str(tiny_checkpoint), text_file, **{**SIZE, **changes})
    assert measured == [0, 1, 2]


def test_one_of_another_configuration_is_not(tiny_checkpoint, text_file, measured, tmp_path):
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    measured.clear()
    rectilinear.measure(str(other), text_file, **SIZE)
    assert measured == [0, 1, 2]


def test_one_of_other_weights_is_not(tiny_checkpoint, text_file, measured, tmp_path):
    first = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    weights = load_file(tiny_checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    measured.clear()
    assert rectilinear.measure(str(other), text_file, **SIZE).blocks != first.blocks
    assert measured == [0, 1, 2]


def test_arithmetic_of_another_kind_is_not(tiny_checkpoint, text_file, measured):
    first = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    measured.clear()
    with torch.autocast("cpu", torch.bfloat16):
        coarse = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    assert measured == [0, 1, 2]
    assert coarse.blocks != first.blocks


@pytest.mark.parametrize("setting", ["threads", "precision"])
def test_arithmetic_that_rounds_otherwise_is_not(tiny_checkpoint, text_file, measured, setting):
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    measured.clear()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads + (setting == "threads"))
        torch.set_float32_matmul_precision("high" if setting == "precision" else precision)
        rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert measured == [0, 1, 2]


def test_batches_that_hold_more_than_ids_are_always_measured(tiny_checkpoint, measured):
    ids = token_rows(40)
    for other in ("attention_mask", "position_ids"):
        batch = {"input_ids": ids, other: torch.ones_like(ids)}
        rectilinear.measure(str(tiny_checkpoint), [batch], progress=False)
    assert measured == [0, 1, 2] * 2


def test_what_code_makes_is_not(tiny_checkpoint, text_file, measured, monkeypatch):
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    measured.clear()
    monkeypatch.setattr(kept, "code_hash", lambda: "other")
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    assert measured == [0, 1, 2]


def test_a_model_in_memory_is_always_measured(text_file, tiny_tokenizer, measured):
    for _ in range(2):
        rectilinear.measure(build("llama"), text_file, tokenizer=tiny_tokenizer, **SIZE)
    assert measured == [0, 1, 2] * 2
    assert not kept_folder().exists()


def test_a_target_that_was_measured_is_taken_from_there(tiny_checkpoint, text_file, measured):
    rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    measured.clear()
    both = rectilinear.measure(str(tiny_checkpoint), text_file, Measurement(target=("block", "mlp")), **SIZE)
    assert measured == [0, 1, 2]
    assert [*both.scores] == ["block", "mlp"]


@pytest.mark.parametrize("content", ["", "{", "null", '{"block": {}, "width": 1, "tokens": 1}'])
def test_what_cannot_be_read_is_measured_anew(tiny_checkpoint, text_file, measured, content):
    first = rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE)
    [file] = kept_folder().rglob("block-1.json")
    file.write_text(content)
    measured.clear()
    assert rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE).to_json() == first.to_json()
    assert measured == [1]


def test_where_nothing_can_be_kept_nothing_is_lost(tiny_checkpoint, text_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RECTILINEAR_CACHE", str(tmp_path / "file"))
    assert len(rectilinear.measure(str(tiny_checkpoint), text_file, **SIZE).blocks) == 3


def test_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(kept, "MOST", 3)
    for number in range(5):
        kept.Kept({"number": number}).save("block-0", KeptScores(block=None, width=0, tokens=0))
    there = [number for number in range(5) if kept.Kept({"number": number}).load("block-0", KeptScores)]
    assert len(there) == 3
    assert 4 in there


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("act", [faults.kill, faults.fill])
def test_a_fault_at_any_step_of_what_is_kept(tiny_checkpoint, text_file, tmp_path, monkeypatch, cache, act):
    out = tmp_path / "out"
    monkeypatch.setattr("rectilinear.measurement.needs._LONG", 0)
    arguments = ["--text", text_file, "--max-tokens", 1024, "--seq-len", 32, "--device", "cpu", "--out", out]

    def run(at=None):
        def program():
            sys.argv = ["rectilinear", "measure", str(tiny_checkpoint), *map(str, arguments)]
            main()

        return faults.run(program, cache, tmp_path / "log", at, act)

    code, steps = run()
    assert code == 0, (tmp_path / "log").read_text()
    assert len(steps) >= 6  # a file and a move for each block
    usual = (out / "profile.json").read_text()
    tried = range(1, len(steps) + 1) if MANY else [len(steps) // 2]
    for at in tried:
        shutil.rmtree(cache)
        shutil.rmtree(out)
        code, _ = run(at)
        assert code == (-9 if act is faults.kill else 0), (at, steps[at - 1])
        shutil.rmtree(out, ignore_errors=True)
        assert run()[0] == 0, (at, steps[at - 1])
        assert (out / "profile.json").read_text() == usual, (at, steps[at - 1])
    faults.report(command="measure, what is kept", over=False, steps=len(steps), **{_COUNTED[act]: len(tried)})


@pytest.mark.slow
def test_runs_that_share_the_folder_do_not_disturb_each_other(tiny_checkpoint, text_file, tmp_path):
    arguments = ["--text", str(text_file), "--max-tokens", "1024", "--seq-len", "32", "--device", "cpu"]
    command = [sys.executable, "-m", "rectilinear", "measure", str(tiny_checkpoint), *arguments, "--out"]
    running = [subprocess.Popen([*command, str(tmp_path / str(number))]) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    texts = {(tmp_path / str(number) / "profile.json").read_text() for number in range(4)}
    assert len(texts) == 1
    assert {file.suffix for file in kept_folder().rglob("*-*")} == {".json"}
