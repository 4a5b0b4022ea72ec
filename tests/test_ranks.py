"""Several processes that share the rows of a job: the numbers of one, and an end when one of them ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectilinear.measurement.partners import Pairing, Partners, Schedule
from rectilinear.ranks import ALONE, Ranks, current, sharing
from tests.conftest import ROOT, build_llama
from tests.superglue import write_superglue


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.booleans(), st.integers(1, 5), st.integers(0, 3))
def test_each_batch_and_pair_belongs_to_one_process_that_has_what_it_takes(sizes, by_document, processes, first):
    rows, starts = sum(sizes), np.cumsum([0, *sizes])
    documents = torch.arange(rows)[:, None].expand(-1, 2)
    partners = Partners.of(documents) if by_document else Partners.by_half(rows)
    first = min(first, len(sizes))
    whole = Schedule.of(sizes, partners, first)
    parts = [Schedule.of(sizes, partners, first, Ranks(rank, processes)) for rank in range(processes)]
    assert sorted(batch for part in parts for batch in part.counted) == [*range(len(sizes))]
    assert sorted(pair for part in parts for pair in part.pairs) == sorted(whole.pairs)
    for part in parts:
        assert [batch for batch in whole.order if batch in part.order] == part.order
        assert part.order[:first] == [*range(first)]
        pairing = Pairing(part.pairs)
        taken = [pairing.take(range(starts[batch], starts[batch + 1])) for batch in part.order]
        assert sorted(pair for rows in taken if rows for pair in rows.pairs) == sorted(part.pairs)


def test_without_torchrun_nothing_is_shared():
    with sharing() as ranks:
        assert ranks is current() is ALONE
        assert (ranks.share(3), ranks.gather(1), ranks.from_first(lambda: 2)) == (range(3), [1], 2)


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_checkpoint, text_file):
    """A float64 model, a text and tasks."""
    place = tmp_path_factory.mktemp("shared")
    save_checkpoint(build_llama().double()).rename(place / "model")
    (place / "text.txt").write_bytes(text_file.read_bytes())
    write_superglue(place / "tasks")
    return place


def torchrun(processes, *command):
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", *map(str, command)]


def run(command, folder=ROOT):
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def differences(one, other, path=""):
    """Where two results differ, and by how much."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        return [found for key in one for found in differences(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, list):
        assert len(one) == len(other), path
        return [found for own, theirs in zip(one, other, strict=True) for found in differences(own, theirs, path)]
    if isinstance(one, float) and isinstance(other, float):
        return [(abs(one - other) / max(1, abs(one)), path)]
    assert one == other, path
    return []


@pytest.mark.slow
def test_two_and_three_processes_give_the_numbers_of_one(place):
    files = ["model", "text.txt", "tasks"]
    arguments = [place / name for name in files]
    run([sys.executable, "-m", "tests.shared_job", *map(str, arguments), str(place / "1.json")])
    alone = json.loads((place / "1.json").read_text())
    assert alone["by document"]["environment"]["dtype"] == "float64"
    for processes in (2, 3):
        run(torchrun(processes, "tests.shared_job", *arguments, place / f"{processes}.json"))
        shared = json.loads((place / f"{processes}.json").read_text())
        worst, where = max(differences(alone, shared))
        assert worst < 1e-9, where


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate launch"])
def test_the_first_process_alone_writes_and_prints(place, tmp_path, launcher):
    measure = ["measure", place / "model", "--text", place / "text.txt", "--seq-len", 32, "--max-tokens", 1500]
    command = torchrun(2, "rectilinear", *measure, "--out", tmp_path / "out")
    if launcher == "accelerate launch":
        start = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1"]
        more = ["--mixed_precision=no", "--dynamo_backend=no"]
        command = [sys.executable, *start, *more, *command[4:]]
    done = run(command)
    assert done.stdout.count("wrote profile.json") == 1
    assert done.stdout.count("3 blocks of width 16") == 1
    assert (tmp_path / "out" / "profile.json").is_file()


@pytest.mark.slow
def test_a_checkpoint_and_kept_scores_of_several_processes(place, tmp_path, monkeypatch):
    monkeypatch.setenv("RECTILINEAR_CACHE", str(tmp_path / "cache"))
    text = ["--text", place / "text.txt", "--seq-len", 32, "--max-tokens", 1500]
    linearize = ["linearize", place / "model", *text, "--kind", "affine", "--target", "attention", "--count", 1]
    done = run(torchrun(2, "rectilinear", *linearize, "--out", tmp_path / "smaller"))
    assert done.stdout.count("loaded again in a fresh process, it agrees") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    profiles = []
    for name in ("first", "again", "some"):
        run(torchrun(2, "rectilinear", "measure", tmp_path / "smaller", *text, "--out", tmp_path / name))
        profiles.append((tmp_path / name / "profile.json").read_bytes())
        kept = sorted((tmp_path / "cache" / "measured").glob("*/block-*.json"))
        assert len(kept) == 3
        kept[1].unlink() if name == "again" else None
    assert profiles[0] == profiles[1] == profiles[2]


@pytest.mark.slow
def test_what_is_wrong_is_one_line_of_a_process_and_ends_all(place, tmp_path):
    missing = torchrun(2, "rectilinear", "measure", "nowhere", "--text", place / "text.txt")
    done = subprocess.run(missing, capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "rectilinear: error: " in done.stderr
    refused = torchrun(2, "rectilinear", "explain", place / "model", "--text", place / "text.txt", "--blocks", 1)
    done = subprocess.run(refused, capture_output=True, text=True, timeout=120)
    assert "expected one process for explain, got 2" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    command = torchrun(2, "rectilinear", "measure", place / "model", "--text", place / "text.txt")
    done = subprocess.run([*command, "--out", tmp_path / "full"], capture_output=True, text=True, timeout=120)
    assert done.returncode
    assert "is not empty" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_ends_the_job(place, tmp_path):
    out = tmp_path / "out"
    measure = ["measure", "storyteller", "--text", "stories", "--max-tokens", 2_000_000, "--out", out]
    job = subprocess.Popen(torchrun(2, "rectilinear", *measure), stderr=subprocess.PIPE, text=True)
    try:
        workers = []
        for _ in range(600):
            children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
            workers = [int(pid) for pid in children if b"RANK=1" in _read_if_there(f"/proc/{pid}/environ").split(b"\0")]
            if workers and _has_joined(workers[0]):
                break
            time.sleep(0.1)
        assert workers
        time.sleep(3)  # into its rows
        os.kill(workers[0], signal.SIGKILL)
        began = time.monotonic()
        _, said = job.communicate(timeout=60)
        assert time.monotonic() - began < 60
    finally:
        job.kill()
    assert job.returncode
    assert "Signal 9" in said or "exitcode  : -9" in said
    assert not out.exists()


def _has_joined(pid):
    """Whether a process has joined the others: it has a connection of gloo's."""
    with suppress(FileNotFoundError):  # a process opens and closes files while they are listed
        return any("socket" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _read_if_there(path):
    """The bytes of a file of another process, none where that process has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(path).read_bytes()
    return b""


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(place, tmp_path):
    tune = [
        "finetune",
        place / "model",
        "--task",
        "cb",
        "--data",
        place / "tasks",
        "--seq-len",
        64,
        "--dtype",
        "float32",
    ]
    tune += ["--text", place / "text.txt", "--max-tokens", 1500, "--seeds", 1, "--epochs", 2, "--batch-size", 8]
    run([sys.executable, "-m", "rectilinear", *map(str, tune), "--out", str(tmp_path / "1")])
    done = run(torchrun(2, "rectilinear", *tune, "--save-models", "--out", tmp_path / "2"))
    assert done.stdout.count("wrote finetuning.json") == 1
    alone, shared = (json.loads((tmp_path / name / "finetuning.json").read_text())["runs"][0] for name in "12")
    losses = [[entry["loss"] for entry in run["log"] if "loss" in entry] for run in (alone, shared)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert alone["metrics"] == shared["metrics"]
    assert (tmp_path / "2" / "seed-0" / "model.safetensors").is_file()
    odd = subprocess.run(
        torchrun(2, "rectilinear", *tune, "--batch-size", 7), capture_output=True, text=True, timeout=120
    )
    assert "expected a --batch-size that 2 processes can share, got 7" in odd.stderr


@pytest.mark.slow
def test_processes_that_have_met_already_are_left_together(tmp_path):
    script = tmp_path / "own_group.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from rectilinear import sharing\n"
        "dist.init_process_group('gloo')\n"
        "for _ in range(2):\n"
        "    with sharing() as ranks:\n"
        "        assert ranks.gather(ranks.rank) == [0, 1]\n"
        "    dist.barrier()\n"
        "dist.destroy_process_group()\n"
    )
    run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(script)])
