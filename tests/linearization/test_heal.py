"""Healing trains the stand-ins and nothing else, by the loss that it says, and goes on where it was stopped."""

import copy
import errno
import json
import os
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rectilinear.errors import JobError, RequestError
from rectilinear.linearization import heal as healing
from rectilinear.linearization.fit import fit_all, merge_edits
from rectilinear.linearization.heal import _Pupil, heal, healing_folder
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.settings import Fitting
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.series import steps_of
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.training.trainer import last_checkpoint
from tests import conftest
from tests.conftest import VOCABULARY, build_llama

ROWS, LENGTH, BLOCKS = 24, 16, 4
FILTER = {"kind": "filter", "taps": 2, "rates": (1.0,)}
SMALL = {"max_tokens": 1024, "seq_len": 32, "device": "cpu", "batch_size": 4}

#: What is replaced, and after which blocks states are then compared.
CASES = {
    "block": ([Replacement(blocks=(1,), **FILTER)], [1]),
    "attention": ([Replacement(blocks=(b,), target="attention", rank=4, **FILTER) for b in (1, 2)], [1, 2]),
    "mlp": ([Replacement(blocks=(2,), target="mlp", kind="affine")], [2]),
    "merged": ([Replacement(blocks=(1, 2), **FILTER)], [2]),
    "folded": ([Replacement(blocks=(2,), kind="folded")], [2]),
    "dropped before": ([Replacement(blocks=(1,), kind="drop"), Replacement(blocks=(2,), **FILTER)], [2]),
    "dropped after": ([Replacement(blocks=(1,), **FILTER), Replacement(blocks=(2,), kind="drop")], [1, 2]),
}
BLOCK = CASES["block"][0]


@pytest.fixture
def ids():
    return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def fitted(ids):
    """A function that fits replacements in a fresh model and returns the bench and the fits."""

    def fit(replacements, model=None):
        model = model or build_llama(blocks=BLOCKS)
        bench = workbench(model, torch.split(ids, 8))
        return bench, fit_all(bench, replacements)

    return fit


def workbench(model, batches, **options):
    stack = find_blocks(model)
    return Workbench(model, stack, probe_parts(model, stack, batches[0]), PaddingMask(), batches, **options)


def perturb(fits, scale=0.2):
    """Add noise to all that is trained."""
    generator = torch.Generator().manual_seed(2)
    for module in merge_edits(fits).values():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data += (scale * noise).to(parameter.dtype)


def weights(fits):
    """Copies of all that is trained, in order."""
    return [p.detach().clone() for module in merge_edits(fits).values() for p in module.parameters()]


def same(one, two):
    return len(one) == len(two) and all(map(torch.equal, one, two))


def test_finds_its_way_back(fitted, ids):
    # The original's own block 1 is linear: the stand-in can be without error.
    bench, fits = fitted(BLOCK)
    (path, planted), *_ = merge_edits(fits).items()
    bench.model.set_submodule(path, copy.deepcopy(planted))
    bench, fits = workbench(bench.model, bench.batches), fits
    perturb(fits, 0.02)
    record = heal(bench, fits, ids[:4], Fitting(heal_steps=300, heal_learning_rate=1e-2, heal_logits=0.0))
    assert record.mse_before > 1e-3
    assert record.mse_after < record.mse_before / 1000
    assert (record.steps, record.learning_rate, record.batch_size) == (300, 1e-2, 8)


@pytest.mark.parametrize("case", CASES)
def test_of_every_kind(case, fitted, ids):
    replacements, compared = CASES[case]
    bench, fits = fitted(replacements)
    assert _Pupil(bench, fits, 0.0).blocks == [f"model.layers.{index}" for index in compared]
    perturb(fits)
    before = weights(fits)
    record = heal(bench, fits, ids[:4], Fitting(heal_steps=30, heal_learning_rate=1e-2))
    assert record.mse_after < record.mse_before / 1.2
    assert not any(map(torch.equal, before, weights(fits)))


def test_leaves_everything_else_as_it_was(fitted, ids):
    bench, fits = fitted(BLOCK)
    frozen = bench.model.get_input_embeddings().weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    modules = dict(bench.model.named_modules())
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    heal(bench, fits, ids[:4], Fitting(heal_steps=5, heal_logits=0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.model.state_dict().items())
    assert dict(bench.model.named_modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules.values())
    everything = [*bench.model.parameters(), *(p for m in merge_edits(fits).values() for p in m.parameters())]
    assert all(p.grad is None and p.requires_grad == (p is not frozen) for p in everything)
    assert not any(module.training for module in modules.values())
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_dropout_is_off(ids):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=16, n_layer=3, n_head=4))
    model.train()
    training = []

    def report(*what):
        training.append([what[0], any(module.training for module in model.modules())])

    bench = workbench(model, [ids], progress=report)
    heal(bench, fit_all(bench, BLOCK), ids, Fitting(heal_steps=2, heal_learning_rate=1e-6))
    assert training[-2:] == [["heal", False]] * 2
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("logits_weight", [0.0, 0.7])
def test_gradient_by_hand(logits_weight, padded, fitted, ids):
    bench, fits = fitted(CASES["attention"][0], build_llama(blocks=BLOCKS).double())
    perturb(fits)
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, :5] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    bench = replace(bench, batches=[batch])
    with noting_padding(bench):
        pupil = _Pupil(bench, fits, logits_weight)
        loss = pupil(**batch)
        gradients = torch.autograd.grad(loss, [*pupil.weights])

    student = copy.deepcopy(bench.model)
    for path, module in merge_edits(fits).items():
        student.set_submodule(path, copy.deepcopy(module))
        stand_in = student.get_submodule(path)
        stand_in.padding.mask = mask
    trained = [p for path in merge_edits(fits) for p in student.get_submodule(path).parameters()]
    real = mask.bool()
    options = {"attention_mask": mask, "output_hidden_states": True, "use_cache": False}
    with torch.no_grad():
        wanted = bench.model(ids, **options)
    said = student(ids, **options)
    expected = torch.zeros((), dtype=torch.float64)
    for depth in (2, 3):  # the states that go into blocks 2 and 3
        goal = wanted.hidden_states[depth][real]
        variance = goal.var(0, correction=0).mean()
        expected = expected + (said.hidden_states[depth][real] - goal).square().mean() / variance / 2
    p, q = log_softmax(wanted.logits[real], -1), log_softmax(said.logits[real], -1)
    expected = expected + logits_weight * (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


def test_nothing_is_in_memory_twice(fitted, ids):
    bench, fits = fitted(BLOCK)
    pupil = _Pupil(bench, fits, 0.0)  # what Trainer moves, saves and gives to the optimizer
    untouched = bench.model.model.layers[0].mlp.up_proj
    seen = []
    handle = untouched.register_forward_pre_hook(lambda module, args: seen.append(module.weight.data_ptr()))
    with handle:
        pupil.original(ids)
        pupil.edited(ids)
    assert seen == [untouched.weight.data_ptr()] * 2
    assert sum(p.numel() for p in pupil.parameters()) == sum(p.numel() for p in pupil.trained)


def test_bfloat16_keeps_small_steps(fitted, ids):
    bench, fits = fitted(BLOCK, build_llama(blocks=BLOCKS).bfloat16())
    perturb(fits)
    record = heal(bench, fits, ids[:4], Fitting(heal_steps=100, heal_learning_rate=1e-3))
    assert record.mse_after < record.mse_before / 1.2
    assert {p.dtype for p in weights(fits)} == {torch.bfloat16}


def test_logits_alone_lower_the_divergence(fitted, ids):
    bench, fits = fitted(BLOCK)
    perturb(fits)
    heavy = copy.deepcopy(fits)
    light = heal(bench, fits, ids, Fitting(heal_steps=60, heal_learning_rate=1e-2, heal_logits=0.0))
    weighty = heal(bench, heavy, ids, Fitting(heal_steps=60, heal_learning_rate=1e-2, heal_logits=10.0))
    assert weighty.mse_after > light.mse_after  # it minds something else

    def divergence(of):
        pupil = _Pupil(bench, of, 0.0)
        with torch.no_grad():
            p, q = (log_softmax(logits, -1) for _, logits in (pupil.original(ids, True), pupil.edited(ids, True)))
        return float((p.exp() * (p - q)).sum(-1).mean())

    assert divergence(heavy) < divergence(fits)


class Stopped(Exception):
    pass


def stop_after(step):
    """Progress that stops the run."""

    def report(stage, done, total):
        if stage == "heal" and done == step:
            raise Stopped

    return report


def with_progress(bench, progress):
    return replace(bench, progress=progress)


@pytest.mark.parametrize("stop", [7, 25, 29])  # epochs have 3 steps, checkpoints are every 3
def test_goes_on_where_it_was_stopped(stop, fitted, ids, tmp_path):
    healing = Fitting(heal_steps=30, heal_learning_rate=1e-2, heal_logits=0.1)
    bench, fits = fitted(CASES["attention"][0])
    perturb(fits)
    whole, halves = copy.deepcopy(fits), copy.deepcopy(fits)
    heal(bench, whole, ids[:4], healing, 3)
    folder = tmp_path / "heal"
    with pytest.raises(Stopped):
        heal(with_progress(bench, stop_after(stop)), copy.deepcopy(fits), ids[:4], healing, 3, folder)
    assert steps_of(last_checkpoint(folder)) == stop // 3 * 3
    assert len(list((tmp_path / "heal").glob("checkpoint-*"))) == 1
    # One that was not written to its end does not count.
    shutil.copytree(last_checkpoint(folder), tmp_path / "heal" / "checkpoint-30")
    (tmp_path / "heal" / "checkpoint-30" / "trainer_state.json").write_text("{")
    steps = []
    heal(with_progress(bench, lambda *what: steps.append(what)), halves, ids[:4], healing, 3, folder)
    assert [done for stage, done, _ in steps if stage == "heal"] == [*range(stop // 3 * 3 + 1, 31)]
    assert same(weights(halves), weights(whole))
    # Stopped after the last step, too.
    again = copy.deepcopy(fits)
    heal(bench, again, ids[:4], healing, 3, folder)
    assert same(weights(again), weights(whole))


def test_checkpoints_hold_what_is_trained(fitted, ids, tmp_path):
    bench, fits = fitted(BLOCK)
    folder = tmp_path / "heal"
    heal(bench, fits, ids[:4], Fitting(heal_steps=2), 0, folder)
    size = sum(file.stat().st_size for file in last_checkpoint(folder).glob("*.safetensors"))
    trained = 4 * sum(p.numel() for p in weights(fits))
    assert trained <= size < trained + 2000


def test_stopped_before_a_checkpoint_leaves_nothing(fitted, ids, tmp_path):
    bench, fits = fitted(BLOCK)
    with pytest.raises(Stopped), healing_folder(tmp_path / "out", {"a": 1}, False) as folder:
        heal(with_progress(bench, stop_after(1)), fits, ids, Fitting(heal_steps=20), 0, folder)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Exception("I/O error: (os error 28)")],
    ids=["python", "safetensors"],
)
def test_a_checkpoint_that_cannot_be_written(error, fitted, ids, tmp_path, monkeypatch):
    def full(*args, **options):
        raise error

    monkeypatch.setattr("transformers.Trainer.save_model", full)
    bench, fits = fitted(BLOCK)
    with (
        pytest.raises(JobError, match=r"cannot keep checkpoints in .*out.heal: No space left on device"),
        healing_folder(tmp_path / "out", {}, False) as folder,
    ):
        heal(bench, fits, ids, Fitting(heal_steps=2), 0, folder)
    assert not any(tmp_path.iterdir())


def test_an_error_while_training_is_not_one_of_checkpoints(fitted, ids, tmp_path):
    def unreadable(*what):
        if what[0] == "heal":
            raise OSError(5, "Input/output error")

    bench, fits = fitted(BLOCK)
    with pytest.raises(OSError, match="Input/output error"):
        heal(with_progress(bench, unreadable), fits, ids, Fitting(heal_steps=2), 0, tmp_path / "heal")


def test_other_seeds_order_rows_otherwise(fitted, ids):
    bench, fits = fitted(BLOCK)
    ended = []
    for seed in (0, 0, 1):
        some = copy.deepcopy(fits)
        heal(bench, some, ids, Fitting(heal_steps=4, heal_learning_rate=1e-2), seed)
        ended.append(weights(some))
    assert same(ended[0], ended[1])
    assert not same(ended[0], ended[2])


def test_a_loss_that_is_not_finite(fitted, ids):
    bench, fits = fitted(BLOCK)
    with pytest.raises(JobError, match=r"got (nan|inf) at step 2; .*try a smaller `heal_learning_rate`"):
        heal(bench, fits, ids, Fitting(heal_steps=5, heal_learning_rate=1e38))
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heal_steps": -1}, "`heal_steps` to be greater than or equal to 0, got -1"),
        ({"heal_steps": 1, "heal_learning_rate": 0.0}, "`heal_learning_rate` to be greater than 0, got 0.0"),
        ({"heal_steps": 1, "heal_learning_rate": float("nan")}, "`heal_learning_rate` to be .*, got nan"),
        ({"heal_steps": 1, "heal_logits": -0.5}, "`heal_logits` to be greater than or equal to 0, got -0.5"),
        ({"heal_steps": 1, "heal_batch_size": 0}, "`heal_batch_size` to be greater than 0, got 0"),
    ],
)
def test_refused_before_any_work(options, says):
    with pytest.raises(RequestError, match=says):
        conftest.linearize("no/such/model", "no such text", count=1, **options)


def test_refused_before_the_fit(tiny_checkpoint, text_file):
    def report(*what):
        raise AssertionError(what)

    with pytest.raises(RequestError, match="got only such that have none"):
        conftest.linearize(tiny_checkpoint, text_file, kind="drop", count=1, heal_steps=1, progress=report, **SMALL)


class TestLinearize:
    @pytest.fixture
    def linearize(self, tiny_checkpoint, text_file):
        def run(**options):
            given = {**SMALL, "blocks": [1], "heal_steps": 4, "heal_batch_size": 4, **options}
            return conftest.linearize(tiny_checkpoint, text_file, **given)

        return run

    def test_checkpoints_of_another_request(self, linearize, tmp_path):
        out, folder = tmp_path / "out", tmp_path / "out.heal"
        with pytest.raises(Stopped):
            linearize(out=out, progress=stop_after(3))
        for options, what in [
            ({"heal_steps": 5}, "heal_steps 4 -> 5"),
            ({"heal_learning_rate": 1e-2}, "heal_learning_rate 0.001 -> 0.01"),
            ({"blocks": [2]}, "replacements"),
            ({"max_tokens": 960}, "text"),
            ({"seed": 1, "heal_logits": 0.0}, "heal_logits 1.0 -> 0.0, seed 0 -> 1"),
        ]:
            with pytest.raises(RequestError, match=rf"the run in .*out.heal to resume it, got another \({what}"):
                linearize(out=out, **options)
        with pytest.raises(Stopped):
            linearize(out=out, overwrite=True, heal_steps=5, progress=stop_after(3))
        assert json.loads((folder / "heal.json").read_text())["heal_steps"] == 5
        assert [path.name for path in tmp_path.iterdir()] == ["out.heal"]

    def test_a_folder_of_something_else(self, linearize, tmp_path, reload_here):
        out, folder = tmp_path / "out", tmp_path / "out.heal"
        folder.mkdir()
        (folder / "note.txt").write_text("mine")
        with pytest.raises(RequestError, match=r"out.heal is not empty; try another, or `overwrite`"):
            linearize(out=out)
        linearize(out=out, overwrite=True)
        assert [path.name for path in folder.iterdir()] == ["note.txt"]
        shutil.rmtree(folder)
        folder.write_text("mine")
        with pytest.raises(RequestError, match=r"expected a folder for `out`, got the file .*out.heal"):
            linearize(out=out, overwrite=True)

    def test_it_goes_on_and_leaves_nothing(self, linearize, tmp_path, reload_here):
        out = tmp_path / "out"
        with pytest.raises(Stopped):
            linearize(out=out, progress=stop_after(3))
        steps = []
        again = linearize(out=out, progress=lambda stage, done, total: steps.append((stage, done)))
        assert [done for stage, done in steps if stage == "heal"] == [3, 4]
        assert same([*again.model.parameters()], [*linearize().model.parameters()])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize(("logits", "losses"), [(0.0, [2.0, 1.0]), (1.0, [1.0, 2.0])])
    def test_healing_that_makes_it_worse_is_no_success(self, linearize, monkeypatch, logits, losses):
        """Hidden states that are far worse, and no less loss where predictions are trained for."""
        monkeypatch.setattr(healing, "measure_perplexity", lambda *_, **__: SimpleNamespace(loss=losses.pop(0)))
        with pytest.raises(JobError, match=r"healing made it worse.*try a smaller `heal_learning_rate`"):
            linearize(heal_steps=10, heal_learning_rate=30.0, heal_logits=logits)

    def test_hidden_states_may_be_given_up_for_predictions(self, linearize, monkeypatch):
        losses = [2.0, 1.0]
        monkeypatch.setattr(healing, "measure_perplexity", lambda *_, **__: SimpleNamespace(loss=losses.pop(0)))
        record = linearize(heal_steps=10, heal_learning_rate=30.0).plan.heal
        assert record.mse_after > 2 * record.mse_before
        assert (record.loss_before, record.loss_after) == (2.0, 1.0)

    def test_the_checkpoint_loads(self, linearize, tmp_path, reload_here):
        healed = linearize(blocks=None, count=2, merge=True, heal_steps=20)
        record = healed.plan.heal
        assert record.loss_before == healed.plan.selection.loss_after
        assert (record.steps, record.seed) == (20, 0)
        assert record.loss_after != record.loss_before
        assert record.mse_after != record.mse_before
        healed.save(tmp_path)
        assert json.loads((tmp_path / "plan.json").read_text())["heal"] == record.model_dump()
        card = (tmp_path / "README.md").read_text()
        assert f"before, {record.loss_before:.4f} after the fit. Stand-ins" in card
        assert f"Healed in 20 steps: relative error of hidden states {record.mse_before:.4g} -> " in card
        assert f"-> {record.loss_after:.4f} nats per token" in card
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
        assert all(map(torch.equal, loaded.state_dict().values(), healed.model.state_dict().values()))
        torch.testing.assert_close(
            loaded(healed.rows, use_cache=False).logits, healed.model(healed.rows, use_cache=False).logits
        )

    def test_no_held_out_rows(self, linearize):
        healed = linearize(heal_steps=1, max_tokens=32, folds=1)
        assert healed.plan.heal.mse_before is None
        assert healed.plan.heal.loss_after is None
        assert str(healed.plan.heal) == "Healed in 1 step"


def test_checkpoints_that_cannot_be_removed_do_not_spoil_the_result(tmp_path, monkeypatch):
    def discard(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    said = r"could not remove .*out\.heal, which nothing needs now: Permission denied"
    with pytest.warns(UserWarning, match=said), healing_folder(tmp_path / "out", {"seed": 0}, overwrite=False):
        monkeypatch.setattr("rectilinear.linearization.heal._discard", discard)
