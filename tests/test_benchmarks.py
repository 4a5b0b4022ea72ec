"""Scripts that are ready for machines which are not at hand."""

import ast
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

import rectilinear
from rectilinear import Affine, Fitting, Selection
from tests.conftest import ROOT


@pytest.mark.parametrize("script", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_scripts_import_what_there_is(script):
    """They are run by hand, long after what they import has moved."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rectilinear"):
            for name in node.names:
                assert hasattr(import_module(node.module), name.name), f"{node.module} has no {name.name}"


@pytest.mark.slow
def test_the_script_for_accelerators_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "tiny"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"check is_right +True", done.stdout)
    assert done.stdout.count("times a forward pass") == 3
    assert "failed" not in done.stdout


@pytest.fixture
def retraining(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return import_module("retraining")


@pytest.fixture
def edited(retraining, tiny_checkpoint, text_file):
    def make(blocks):
        study = replace(import_module("scoring").STORIES, fit=text_file.name, seq_len=32, fitted=2048, batch=8)
        selection = Selection(blocks=blocks, merge=True)
        return study, retraining.Edited.of(study, tiny_checkpoint, text_file.parent, Affine(), selection)

    return make


@pytest.mark.parametrize("goal", ["states", "states-logits"])
@pytest.mark.parametrize("blocks", [[1], [1, 2]], ids=str)
def test_the_comparison_of_healing_heals_as_linearize_does(
    retraining, edited, tiny_checkpoint, text_file, goal, blocks
):
    study, start = edited(blocks)
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    healed = retraining.train(start, retraining.Way(goal), retraining.Course(3, 1e-2, 4)).state_dict()
    wanted = rectilinear.linearize(
        tiny_checkpoint,
        text_file,
        Affine(),
        Selection(blocks=blocks, merge=True),
        rows=study.rows,
        loading=retraining.LOADING,
        fitting=Fitting(
            heal_steps=3, heal_learning_rate=1e-2, heal_batch_size=4, heal_logits=float(goal == "states-logits")
        ),
        batch_size=8,
        progress=False,
    ).model.state_dict()
    assert all(torch.equal(healed[name], wanted[name]) for name in wanted | healed)
    assert any(not torch.equal(healed[name], before[name]) for name in healed)
    assert all(torch.equal(value, before[name]) for name, value in start.model.state_dict().items())


@pytest.mark.parametrize(
    ("goal", "lora"), [("text", False), ("logits", False), ("text", True), ("logits", True)], ids=str
)
def test_the_comparison_of_healing_trains_what_it_says(retraining, edited, goal, lora):
    _, start = edited([1])
    way = retraining.Way(goal, lora)
    trained = retraining.train(start, way, retraining.Course(3, 1e-2, 4)).state_dict()
    before = start.model.state_dict()
    assert trained.keys() == before.keys()
    changed = {name for name in before if not torch.equal(trained[name], before[name])}
    stand_in = {name for name in before if ".layers.1." in name}
    assert changed == ({f"{path}.weight" for path in retraining.linear_layers(start.model)} if lora else stand_in)
    assert not lora or not stand_in & changed


def test_the_comparison_of_healing_counts_operations(retraining, edited):
    _, start = edited([1])
    cost = retraining.costs(start, retraining.Way("text"), rows=2)
    block, attention, stand_in, head = 2 * 2304, 4 * 32 * 16, 2 * 16 * 16, 2 * 16 * 128
    forward = 2 * (block + attention) + stand_in + head
    # The head and the last block pass gradients on; the stand-in has its weights', and the first block none. Some of
    # PyTorch's attentions compute their scores anew for it.
    backward = [head + block + factor * attention + stand_in for factor in (2, 2.5)]
    assert cost["step"] in [64 * (forward + each) for each in backward]
    assert cost["once"] == 0
