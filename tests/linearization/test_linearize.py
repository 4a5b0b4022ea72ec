"""The function as a whole: its requests, its results, and how good stand-ins of a real model are."""

import math
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import rectilinear
from rectilinear import RequestError
from rectilinear.linearization.card import model_card
from tests import conftest
from tests.conftest import WIDTH
from tests.families import build
from tests.linearization.conftest import FITTED, loss_by_hand

WRONG = {
    "nothing": ({}, "expected one of `blocks`, `count`, `budget`, `max_loss_increase`, `plan`, got none"),
    "blocks as a path": ({"blocks": "model.layers"}, r"expected `blocks=2-4,7` \(indices, counted from 0\), got 'mod"),
    "a number of blocks": ({"blocks": 1}, "expected `blocks` to be a valid tuple, got 1"),
    "half a block": ({"blocks": [0.5]}, "expected `blocks.0` to be a valid integer, .*, got 0.5"),
    "count in words": ({"count": "two"}, "expected `count` to be a valid integer, got 'two'"),
    "half a count": ({"count": 1.5}, "expected `count` to be a valid integer, .*, got 1.5"),
    "budget in words": ({"budget": "half"}, "expected `budget=25%`, got 'half'"),
    "loss in words": (
        {"max_loss_increase": "some"},
        "`max_loss_increase` to be a valid number, got 'some'",
    ),
    "rates in words": ({"blocks": [1], "rates": "fast"}, "expected `rates=1,0.9`, got 'fast'"),
    "one rate": ({"blocks": [1], "rates": 1.0}, "expected `rates` to be a valid tuple, got 1.0"),
    "two": ({"blocks": [1], "count": 1}, "got `blocks` and `count`"),
    "budgets": ({"budget": 0.1, "max_loss_increase": 0.1}, "got `budget` and `max_loss_increase`"),
    "beyond": ({"blocks": [3]}, "blocks from 0 to 2, got 3"),
    "below": ({"blocks": [-1]}, "indices, counted from 0.*, got .*-1"),
    "twice": ({"blocks": [1, 1]}, "block 1 twice"),
    "twice, merged": ({"blocks": [1, 1], "merge": True}, "block 1 twice"),
    "rank": ({"blocks": [1], "rank": 24}, "`rank` below the width of 24"),
    "rank 0": ({"blocks": [1], "rank": 0}, "rank"),
    "taps": ({"blocks": [1], "taps": -1}, "taps"),
    "many taps": ({"blocks": [1], "taps": 65}, "taps"),
    "rate": ({"blocks": [1], "rates": [2.0]}, "`rates` above 0"),
    "kind": ({"blocks": [1], "kind": "magic"}, "kind"),
    "target": ({"blocks": [1], "target": "norm"}, "target"),
    "select": ({"count": 1, "select": "luck"}, "select"),
    "folded first": ({"blocks": [0], "kind": "folded"}, "a block before folded block 0 that stays"),
    "merged parts": ({"blocks": [0, 1], "target": "attention", "merge": True}, "only whole blocks merge"),
    "batch": ({"blocks": [1], "batch_size": 0}, "batch size"),
    "folds": ({"blocks": [1], "folds": 0}, "`folds` to be greater than 0"),
    "count": ({"count": 4}, "`count` from 1 to 3"),
    "loss": ({"max_loss_increase": 0.0}, "`max_loss_increase` to be greater than 0"),
    "loss nan": ({"max_loss_increase": math.nan}, "`max_loss_increase` to be a finite number, got nan"),
    "long rows": ({"blocks": [1], "seq_len": 65}, "context of 64 tokens"),
    "text": ({"blocks": [1], "text": "/none.txt"}, "no text at /none.txt"),
}


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail where a block is fitted or a loss is measured."""
    for name in ("choose.fit_all", "choose.measure_perplexity"):
        monkeypatch.setattr(f"rectilinear.linearization.{name}", lambda *args, **options: pytest.fail("work was done"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_any_work(name, linearize, nothing_runs):
    options, says = WRONG[name]
    with pytest.raises(RequestError, match=says) as raised:
        linearize(build("llama"), **options)
    assert "\n" not in str(raised.value)


WITHOUT_WEIGHTS = {
    "beyond": ({"blocks": [3]}, "blocks from 0 to 2, got 3"),
    "count": ({"count": 4}, "`count` from 1 to 3"),
    "rank": ({"blocks": [1], "rank": WIDTH}, f"`rank` below the width of {WIDTH}"),
    "budget": ({"budget": 0.99}, "`budget` above 0% and up to "),
    "folded first": ({"blocks": [0], "kind": "folded"}, "a block before folded block 0 that stays"),
    "stack": ({"blocks": [0], "stack": "model.nope"}, "model.layers"),
    "healing": ({"count": 1, "kind": "drop", "heal_steps": 1}, "got only such that have none"),
    "rows": ({"count": 1, "select": "loss", "max_tokens": 32}, "at least two rows to choose by loss"),
}


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_what_needs_no_weights_is_refused_before_they_are_loaded(name, linearize, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr("rectilinear.models.origin.load_model", lambda *args, **options: pytest.fail("weights loaded"))
    options, says = WITHOUT_WEIGHTS[name]
    with pytest.raises(RequestError, match=says):
        linearize(tiny_checkpoint, **options)


@pytest.mark.parametrize("options", [{"max_tokens": 32}, {"max_tokens": 64}])
@pytest.mark.parametrize("way", [{"blocks": [1]}, {"count": 1}, {"count": 1, "kind": "drop", "select": "influence"}])
def test_as_little_text_as_there_can_be(way, options, linearize):
    made = linearize(build("llama"), **way, **options)
    selection = made.plan.selection
    assert selection.budget == ("1 block" if "count" in way else None)
    if options["max_tokens"] == 32:
        assert (selection.loss_before, selection.loss_after, selection.tokens) == (None, None, 0)
    else:
        assert selection.tokens == 31
    assert made.model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3).shape[1] > 3


@pytest.mark.parametrize("options", [{"count": 1, "select": "loss"}, {"max_loss_increase": 1.0}])
def test_a_loss_needs_rows_to_measure_it_on(options, linearize, nothing_runs):
    with pytest.raises(RequestError, match="rows"):
        linearize(build("llama"), max_tokens=32, **options)


def test_progress_is_reported(linearize):
    seen = []
    linearize(build("llama"), blocks=[0, 1], batch_size=10, progress=lambda *args: seen.append(args))
    for stage in ("block 0", "block 1"):
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert steps == [(10, 58), (20, 58), (30, 58), (40, 58), (50, 58), (58, 58)]


def test_losses_in_the_plan_are_of_the_rows_held_out(linearize, rows):
    model = build("llama")
    made = linearize(model, blocks=[1], kind="affine")
    assert made.plan.selection.loss_before == pytest.approx(loss_by_hand(model, rows[FITTED:]), abs=1e-5)
    assert made.plan.selection.loss_after == pytest.approx(loss_by_hand(made.model, rows[FITTED:]), abs=1e-5)


def test_indices_may_be_an_array(linearize):
    plan = linearize(build("llama"), blocks=torch.tensor([2, 1]).numpy(), kind="drop").plan
    assert [one.blocks for one in rectilinear.Plan.model_validate_json(plan.to_json()).replacements] == [
        (1,),
        (2,),
    ]


def test_running_twice_gives_the_same_bits(linearize):
    one, two = (linearize(build("gpt2"), count=2, kind="filter", rank=5) for _ in range(2))
    assert one.plan.replacements == two.plan.replacements
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"blocks": (0,)}, {"blocks": (1,), "kind": "drop"}], ids=["filter", "drop"])
def test_the_model_card_s_snippet_runs_when_pasted(options, linearized, exported, tmp_path):
    folder = exported("llama", **options)
    card = (folder / "README.md").read_text()
    code = re.search("```python\n(.*)```", card, re.DOTALL)[1]
    assert ("trust_remote_code=True" in code) == ("kind" not in options)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Once upon a time" in done.stdout
    assert f"{linearized('llama', **options).plan.parameters.after:,}" in card


def test_the_model_card_has_what_the_hub_reads_and_no_paths(tiny_checkpoint, text_file, tmp_path):
    source = tmp_path / "private" / "tiny"
    shutil.copytree(tiny_checkpoint, source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    shutil.copy(text_file, tmp_path / "private" / "tales.txt")
    plan = conftest.linearize(source, tmp_path / "private" / "tales.txt", blocks=[1], max_tokens=640, seq_len=32).plan
    text = model_card(plan, "")
    assert "private" not in text
    data = ModelCard(text).data
    assert (data.license, data.base_model, data.datasets) == ("mit", None, None)
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["loss"] == pytest.approx(plan.selection.loss_after, abs=1e-4)
    assert results["loss of the original"] == pytest.approx(plan.selection.loss_before, abs=1e-4)

    hub = plan.model_copy(
        update={
            "model": plan.model.model_copy(update={"id": "someone/tiny"}),
            "data": plan.data.model_copy(update={"source": "someone/tales"}),
        }
    )
    data = ModelCard(model_card(hub, "")).data
    assert (data.base_model, data.datasets) == ("someone/tiny", ["someone/tales"])
    for unnamed in ("storyteller", plan.model.architecture, str(tmp_path)):
        other = hub.model_copy(update={"model": plan.model.model_copy(update={"id": unnamed})})
        assert ModelCard(model_card(other, "")).data.base_model is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"kind": "affine", "blocks": [0]}, 9.75),
        ({"kind": "filter", "taps": 3, "blocks": [0]}, 6.25),
        ({"kind": "filter", "taps": 3, "target": "attention", "rank": 24, "blocks": [0, 1, 2, 3, 4]}, 9.35),
    ],
    ids=["affine", "filter", "attentions"],
)
def test_how_good_stand_ins_of_a_real_model_are(options, most, shared, tmp_path, load, reload_here):
    model, train = shared / "models/stories260K", shared / "data/tinystories/train.txt"
    made = conftest.linearize(model, train, max_tokens=300_000, seq_len=256, device="cpu", **options)
    assert perplexity(load(made.save(tmp_path / "saved")), shared, made.tokenizer) <= most


@pytest.mark.slow
def test_how_good_the_real_model_is(shared):
    assert perplexity(shared / "models/stories260K", shared) == pytest.approx(5.036, abs=0.001)


def perplexity(model, shared, tokenizer=None):
    """On stories that nothing was fitted on."""
    asked, loading = rectilinear.Evaluating(speed=False), rectilinear.Loading(device="cpu")
    valid = shared / "data/tinystories/valid.txt"
    return rectilinear.evaluate(model, valid, asked, tokenizer=tokenizer, loading=loading).perplexity


def test_what_was_seen_as_the_model_was_loaded_is_in_the_plan(save_checkpoint, text_file):
    folder = save_checkpoint(build("llama"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "value_head.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    made = conftest.linearize(folder, text_file, kind="drop", blocks=[1], max_tokens=640, seq_len=32, device="cpu")
    assert "(1, value_head.weight among them)" in made.plan.warnings[0]
