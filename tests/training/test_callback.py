"""Watching a training tells the truth about it, and changes nothing of it."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import rectilinear
from rectilinear import Dynamics, JobError, LinearityCallback, RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.text.fingerprint import fingerprint
from tests.conftest import BLOCKS, build_llama
from tests.families import token_rows

TRAINED, WATCHED = token_rows(64, 24), token_rows(32, 24, seed=1)
SAVED = {"save_strategy": "steps", "save_steps": 5}


def make_trainer(folder, model=None, steps=10, **arguments):
    settings = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 0,
    }
    if model is None:
        model = build_llama()
        model.config.attention_dropout = 0.3
    data = [{"input_ids": row, "labels": row} for row in TRAINED]
    arguments = TrainingArguments(**{**settings, **arguments})
    return Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data[:8])


def train(folder, *, resume=None, model=None, steps=10, rows=WATCHED, watch=None, before=(), **arguments):
    """A trainer that has trained, and the callback that watched it every 4 steps."""
    trainer = make_trainer(folder, model, steps, **arguments)
    for callback in before:
        trainer.add_callback(callback)
    watcher = LinearityCallback(trainer, rows, **{"every": 4, **(watch or {})})
    trainer.add_callback(watcher)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watcher


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A watched training of ten steps that was saved each five, and evaluated each three."""
    return train(tmp_path_factory.mktemp("watched"), **SAVED, eval_strategy="steps", eval_steps=3)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same training, not watched."""
    trainer = make_trainer(tmp_path_factory.mktemp("alone"), **SAVED, eval_strategy="steps", eval_steps=3)
    trainer.train()
    return trainer


def states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


def test_training_is_the_same_to_the_bit(watched, alone):
    trainer, _ = watched
    pairs = zip(trainer.model.state_dict().items(), alone.model.state_dict().items(), strict=True)
    assert all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        logged = [
            [(entry["step"], entry[name]) for entry in each.state.log_history if name in entry]
            for each in (trainer, alone)
        ]
        assert logged[0] == logged[1]
        assert logged[0]


class Spy(TrainerCallback):
    """Takes down, around what another callback does at an event, what it must not change."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model, **kwargs):
        modes = [module.training for module in model.modules()]
        gradients = [parameter.requires_grad for parameter in model.parameters()]
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
        self.seen.append((states(), modes, gradients, hooks, control.should_log, vars(model).get("forward")))


class LaterSpy(Spy):
    """Of another class, or Trainer would complain."""


def test_random_states_modes_hooks_and_wishes_are_left_alone(tmp_path):
    model = build_llama()
    model.model.layers[1].mlp.gate_proj.weight.requires_grad_(False)
    # A block that draws random numbers even in evaluation mode.
    model.model.layers[0].register_forward_hook(lambda *_: torch.rand(1) and None)
    trainer = make_trainer(tmp_path, model, steps=4, bf16=True)
    before, after = Spy(), LaterSpy()
    for callback in (before, LinearityCallback(trainer, WATCHED, every=1), after):
        trainer.add_callback(callback)
    trainer.train()
    assert len(before.seen) == 4
    for one, two in zip(before.seen, after.seen, strict=True):
        assert torch.equal(one[0][0], two[0][0])
        assert one[0][1:] == two[0][1:]
        assert one[1:] == two[1:]
    assert [seen[4] for seen in after.seen] == [False, True, False, True]


def test_points_are_at_the_first_the_due_and_the_last_step(watched):
    trainer, watcher = watched
    assert [point.step for point in watcher.dynamics.points] == [0, 4, 8, 10]
    assert Dynamics.load(trainer.args.output_dir) == watcher.dynamics
    assert not list(Path(trainer.args.output_dir).glob(".dynamics*"))


@pytest.mark.parametrize("step", [0, 10])
def test_a_point_is_what_measuring_the_checkpoint_gives(step, watched):
    trainer, watcher = watched
    model = build_llama()
    if step:
        model = LlamaForCausalLM.from_pretrained(Path(trainer.args.output_dir) / f"checkpoint-{step}")
    profile = rectilinear.measure(model, list(WATCHED.split(8)))
    [point] = [point for point in watcher.dynamics.points if point.step == step]
    assert point.blocks == profile.blocks
    assert point.warnings == profile.warnings
    assert (point.source, point.revision, point.sha256) == ("training", None, None)
    found = watcher.dynamics
    assert (found.model.architecture, found.model.num_blocks, found.model.width) == ("LlamaForCausalLM", BLOCKS, 16)
    assert found.model.parameters == profile.model.parameters
    assert (found.data.rows, found.data.tokens, found.data.seq_len) == (32, 32 * 24, 24)
    assert found.data.fingerprint == fingerprint([WATCHED])
    assert found.environment == profile.environment
    assert found.settings == {key: profile.settings[key] for key in found.settings if key != "every"} | {"every": 4}


def test_what_is_logged(watched):
    trainer, watcher = watched
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "linearity/mean" in entry}
    assert list(logged) == [0, 4, 8, 10]
    for point in watcher.dynamics.points:
        entry = logged[point.step]
        assert entry["linearity/probe_seconds"] > 0
        for score in ("linearity", "update_linearity"):
            values = [getattr(block, score).held_out for block in point.blocks]
            assert [entry[f"{score}/block_{index:02d}"] for index in range(BLOCKS)] == values
            assert entry[f"{score}/mean"] == pytest.approx(sum(values) / BLOCKS)


def test_tensorboard_has_it(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, watcher = train(tmp_path, steps=4, report_to="tensorboard")
    [folder] = (tmp_path / "runs").iterdir()
    read = events.EventAccumulator(str(folder))
    read.Reload()
    told = [(event.step, event.value) for event in read.Scalars("train/update_linearity/block_02")]
    assert [step for step, _ in told] == [0, 4]
    wanted = [point.blocks[2].update_linearity.held_out for point in watcher.dynamics.points]
    assert [value for _, value in told] == pytest.approx(wanted)
    assert len(read.Scalars("train/loss")) == 2


def test_resumed_equals_uninterrupted(watched, tmp_path):
    trainer, watcher = watched
    shutil.copytree(trainer.args.output_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    settings = {"eval_strategy": "steps", "eval_steps": 3, **SAVED}
    resumed, again = train(tmp_path / "run", resume=True, **settings)
    assert again.dynamics.points == watcher.dynamics.points
    assert Dynamics.load(tmp_path / "run") == again.dynamics
    steps = [entry["step"] for entry in resumed.state.log_history if "linearity/mean" in entry]
    assert steps == [0, 4, 8, 10]


def test_resumed_with_nothing_left_to_do_logs_nothing_again(tmp_path):
    an_epoch = {"steps": 2, "per_device_train_batch_size": 32, "save_strategy": "steps", "save_steps": 2}
    _, watcher = train(tmp_path, **an_epoch)
    resumed, again = train(tmp_path, resume=True, **an_epoch)
    assert again.dynamics.points == watcher.dynamics.points
    assert [entry["step"] for entry in resumed.state.log_history if "linearity/mean" in entry] == [0, 2]


def test_resumed_drops_what_came_after_the_checkpoint(watched, tmp_path):
    trainer, watcher = watched
    shutil.copytree(trainer.args.output_dir, tmp_path / "run")
    file = tmp_path / "run" / "dynamics.json"
    written = json.loads(file.read_text())
    for point in written["points"][2:]:  # steps 8 and 10, after checkpoint-5
        point["source"] = "a future that did not happen"
    file.write_text(json.dumps({**written, "warnings": ["step 8 is left out: no", "step 4 is left out: no"]}))
    _, again = train(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-5"), steps=7, **SAVED)
    assert [point.step for point in again.dynamics.points] == [0, 4, 7]
    assert again.dynamics.points[:2] == watcher.dynamics.points[:2]
    assert again.dynamics.warnings == ("step 4 is left out: no",)


def test_resumed_without_a_file_starts_one(watched, tmp_path):
    trainer, _ = watched
    _, again = train(tmp_path, resume=str(Path(trainer.args.output_dir) / "checkpoint-5"))
    assert [point.step for point in again.dynamics.points] == [8, 10]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rows": token_rows(32, 24, seed=2)}, "expected points of the same rows in "),
        ({"watch": {"measurement": Measurement(folds=2)}}, "expected points of the same settings in "),
    ],
)
def test_resumed_on_something_else_is_refused(options, says, watched, tmp_path):
    trainer, _ = watched
    shutil.copytree(trainer.args.output_dir, tmp_path / "run")
    before = (tmp_path / "run" / "dynamics.json").read_bytes()
    with pytest.raises(RequestError, match=says) as caught:
        train(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-5"), **options)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "dynamics.json").read_bytes() == before


def test_another_model_s_points_are_refused(watched, tmp_path):
    trainer, watcher = watched
    model = watcher.dynamics.model.model_copy(update={"num_blocks": 7})
    watcher.dynamics.model_copy(update={"model": model}).save(tmp_path)
    with pytest.raises(RequestError, match="expected points of the same model in "):
        train(tmp_path, resume=str(Path(trainer.args.output_dir) / "checkpoint-5"))


def test_a_run_from_the_start_replaces_the_file(watched, tmp_path):
    watched[1].dynamics.save(tmp_path)
    _, watcher = train(tmp_path, steps=2, rows=token_rows(8, 24, seed=5))
    assert [point.step for point in Dynamics.load(tmp_path).points] == [0, 2]
    assert Dynamics.load(tmp_path) == watcher.dynamics


class Breaks(TrainerCallback):
    """Makes the weights of a block NaN at some steps; the other half of it comes after the watcher."""

    def __init__(self):
        self.kept = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        weight = model.model.layers[1].mlp.down_proj.weight
        if state.global_step in (4, 6):
            self.kept[weight] = weight.detach().clone()
            weight.data.fill_(float("nan"))


class Mends(TrainerCallback):
    """Puts back what another took."""

    def __init__(self, breaks):
        self.kept = breaks.kept

    def on_step_end(self, args, state, control, model, **kwargs):
        for weight, before in self.kept.items():
            weight.data.copy_(before)
        self.kept.clear()


def test_weights_that_are_not_finite_do_not_stop_training(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("rectilinear.training.callback._logger.warning", warned.append)
    trainer = make_trainer(tmp_path, steps=8)
    breaks = Breaks()
    watcher = LinearityCallback(trainer, WATCHED, every=2)
    for callback in (breaks, watcher, Mends(breaks)):
        trainer.add_callback(callback)
    trainer.train()
    assert [point.step for point in watcher.dynamics.points] == [0, 2, 8]
    assert len(warned) == 1
    assert warned[0].startswith("linearity could not be measured at step 4, which is left out: block 1: ")
    assert [warning[:19] for warning in watcher.dynamics.warnings] == ["step 4 is left out:", "step 6 is left out:"]
    assert Dynamics.load(tmp_path) == watcher.dynamics


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr("rectilinear.training.callback._logger.warning", warned.append)
    (tmp_path / "file").write_text("")
    trainer, watcher = train(tmp_path, steps=4, watch={"out": tmp_path / "file" / "out"})
    assert trainer.state.global_step == 4
    assert [point.step for point in watcher.dynamics.points] == [0, 4]
    assert len(warned) == 2
    assert "cannot write" in warned[0]


def test_a_write_that_fails_leaves_the_last_points(watched, tmp_path, monkeypatch):
    dynamics = watched[1].dynamics
    dynamics.save(tmp_path)
    before = (tmp_path / "dynamics.json").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        dynamics.model_copy(update={"points": ()}).save(tmp_path)
    assert (tmp_path / "dynamics.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["dynamics.json"]


class Stops(TrainerCallback):
    """Stops training after an evaluation, as early stopping does."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop = True


def test_the_last_step_of_a_training_that_is_stopped(tmp_path):
    _, watcher = train(tmp_path, before=[Stops()], eval_strategy="steps", eval_steps=3)
    assert [point.step for point in watcher.dynamics.points] == [0, 3]


def test_the_best_model_is_not_taken_for_the_last(tmp_path):
    """Its weights are those of an earlier step when training ends."""
    trainer, watcher = train(
        tmp_path,
        **SAVED,
        eval_strategy="steps",
        eval_steps=5,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the worst, which is the first
    )
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-5")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-10")
    assert watcher.dynamics.points[-1].step == 10
    assert watcher.dynamics.points[-1].blocks == rectilinear.measure(model, list(WATCHED.split(8))).blocks


class Plain(nn.Module):
    """No model of transformers: its own forward is what accelerate wraps for mixed precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(128, 12)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(12, 128)

    def forward(self, input_ids, labels=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        logits = self.head(x)
        return {
            "loss": torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), (labels if labels is not None else input_ids).flatten()
            ),
            "logits": logits,
        }


@pytest.mark.parametrize("make", [build_llama, Plain])
def test_mixed_precision_measures_in_the_weights_own(make, tmp_path):
    model = make()
    watch = {} if make is build_llama else {"measurement": Measurement(blocks="layers")}
    _, watcher = train(tmp_path, model=model, steps=2, bf16=True, watch=watch)
    blocks = watcher.dynamics.points[-1].blocks
    before = vars(model).pop("forward")  # of accelerate, in bfloat16
    assert blocks == rectilinear.measure(model, list(WATCHED.split(8)), **watch).blocks
    model.forward = before
    with torch.autocast("cpu", torch.bfloat16):
        assert blocks != rectilinear.measure(model, list(WATCHED.split(8)), **watch).blocks
    assert watcher.dynamics.environment.dtype == "float32"


def test_recomputed_activations(tmp_path):
    options = {"steps": 4, "watch": {"every": 2}}
    _, plain = train(tmp_path / "plain", **options)
    trainer, watcher = train(tmp_path / "checkpointing", **options, activation_checkpointing=True)
    assert trainer.model.model.layers[0].gradient_checkpointing
    assert [point.step for point in watcher.dynamics.points] == [0, 2, 4]
    assert watcher.dynamics.points[0] == plain.dynamics.points[0]


def test_batches_with_padding(tmp_path):
    rows = WATCHED.clone()
    mask = (torch.arange(24) < 20).long().expand(len(rows), -1)
    batches = [
        {"input_ids": ids, "attention_mask": part} for ids, part in zip(rows.split(8), mask.split(8), strict=True)
    ]
    _, watcher = train(tmp_path, steps=1, rows=batches)
    assert watcher.dynamics.data.tokens == 32 * 20
    assert watcher.dynamics.data.source == "batches"


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (WATCHED, {"every": 0}, "got every=0"),
        (WATCHED, {"batch_size": 0}, "batch size of at least 1"),
        (WATCHED, {"measurement": Measurement(blocks="model.nope")}, "model.layers"),
        (WATCHED[0], {}, "token ids"),
        (WATCHED.float(), {}, "token ids"),
        (WATCHED[:0], {}, "at least one row"),
        ([], {}, "at least one row"),
        (WATCHED + 100, {}, "vocabulary of 128"),
        (token_rows(4, 65), {}, "context of 64"),
        ({"input_ids": WATCHED}, {}, "got one batch"),
    ],
)
def test_requests_that_cannot_be_met(rows, options, says, tmp_path):
    with pytest.raises(RequestError, match=says) as caught:
        LinearityCallback(make_trainer(tmp_path), rows, **options)
    assert "\n" not in str(caught.value)


def test_memory_that_does_not_suffice_is_a_point_left_out(tmp_path, monkeypatch):
    def exhausted(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("rectilinear.training.callback._logger.warning", lambda said: None)
    monkeypatch.setattr("rectilinear.measurement.measure.collect_moments", exhausted)
    trainer, watcher = train(tmp_path, steps=2)
    assert trainer.state.global_step == 2
    assert watcher.dynamics is None
    assert not (tmp_path / "dynamics.json").exists()


def test_a_failure_waits_for_the_end_of_the_pass():
    """A pass that is cut short would leave a sharded model in pieces."""
    model, ended = build_llama(), []
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.model.norm.register_forward_hook(lambda *_: ended.append(True))
    with pytest.raises(JobError, match=r"^block 0: "):
        rectilinear.measure(model, [WATCHED])
    assert ended == [True] * 3  # two of a few tokens, to see how hidden states lie, and the pass


def watch_in_two_processes(tiny_checkpoint, folder, how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    script = Path(__file__).with_name("train_watched.py")
    root = script.parents[2]
    done = subprocess.run(
        [*command, str(script), str(tiny_checkpoint), str(folder), how],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_processes(how, tiny_checkpoint, tmp_path):
    """Replicated (DDP) and sharded (FSDP2) over two processes: as many points, as one process measures them."""
    done = watch_in_two_processes(tiny_checkpoint, tmp_path, how)
    assert done.stdout.count("linearity/mean") == 6  # each process logs 3 points once
    dynamics = Dynamics.load(tmp_path)
    assert [point.step for point in dynamics.points] == [0, 2, 4]
    model = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    profile = rectilinear.measure(model, list(WATCHED.split(8)))
    assert dynamics.points[0].blocks == profile.blocks
    assert dynamics.points[2].blocks != profile.blocks
    assert dynamics.model.architecture == "LlamaForCausalLM"
    assert dynamics.model.parameters == profile.model.parameters


@pytest.mark.slow
def test_two_processes_with_weights_that_are_not_finite(tiny_checkpoint, tmp_path):
    done = watch_in_two_processes(tiny_checkpoint, tmp_path, "broken")
    assert done.stderr.count("linearity could not be measured at step 0") == 1
    assert not (tmp_path / "dynamics.json").exists()
