"""The function as a whole: its requests, its results, and how good stand-ins of a real model are."""

import math
import re
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import RequestError
from tests.conftest import WIDTH
from tests.families import build
from tests.linearization.conftest import FITTED, loss_by_hand

WRONG = {
    "nothing": ({}, "expected one of --blocks, --count, --budget, --max-loss-increase, --plan, got none"),
    "blocks as text": ({"blocks": "1"}, r"expected blocks=\[2, 3\] \(indices, counted from 0\), got '1'"),
    "a number of blocks": ({"blocks": 1}, r"expected blocks=\[2, 3\] .*, got 1"),
    "half a block": ({"blocks": [0.5]}, r"expected blocks=\[2, 3\] .*, got \[0.5\]"),
    "count as text": ({"count": "2"}, "expected a whole number for count, got '2'"),
    "half a count": ({"count": 1.5}, "expected a whole number for count, got 1.5"),
    "budget as text": ({"budget": "20%"}, "expected a number for budget, got '20%'"),
    "loss as text": ({"max_loss_increase": "0.1"}, "expected a number for max_loss_increase, got '0.1'"),
    "rates as text": ({"blocks": [1], "rates": "1,0.8"}, "wrong rates: .*, got '1,0.8'"),
    "one rate": ({"blocks": [1], "rates": 1.0}, "wrong rates: .*, got 1.0"),
    "two": ({"blocks": [1], "count": 1}, "got --blocks and --count"),
    "budgets": ({"budget": 0.1, "max_loss_increase": 0.1}, "got --budget and --max-loss-increase"),
    "beyond": ({"blocks": [3]}, "blocks from 0 to 2, got 3"),
    "below": ({"blocks": [-1]}, "blocks from 0 to 2, got -1"),
    "twice": ({"blocks": [1, 1]}, "block 1 twice"),
    "twice, merged": ({"blocks": [1, 1], "merge": True}, "block 1 twice"),
    "rank": ({"blocks": [1], "rank": 24}, "rank below the width of 24"),
    "rank 0": ({"blocks": [1], "rank": 0}, "rank"),
    "taps": ({"blocks": [1], "taps": -1}, "taps"),
    "many taps": ({"blocks": [1], "taps": 65}, "taps"),
    "rate": ({"blocks": [1], "rates": [2.0]}, "rates above 0"),
    "kind": ({"blocks": [1], "kind": "magic"}, "kind"),
    "target": ({"blocks": [1], "target": "norm"}, "target"),
    "select": ({"count": 1, "select": "luck"}, "select"),
    "folded first": ({"blocks": [0], "kind": "folded"}, "needs a block before it"),
    "merged parts": ({"blocks": [0, 1], "target": "attention", "merge": True}, "only whole blocks merge"),
    "batch": ({"blocks": [1], "batch_size": 0}, "batch size"),
    "folds": ({"blocks": [1], "folds": 0}, "fold"),
    "count": ({"count": 4}, "--count from 1 to 3"),
    "loss": ({"max_loss_increase": 0.0}, "--max-loss-increase above 0"),
    "loss nan": ({"max_loss_increase": math.nan}, "--max-loss-increase above 0"),
    "long rows": ({"blocks": [1], "seq_len": 65}, "context of 64 tokens"),
    "text": ({"blocks": [1], "text": "/none.txt"}, "no text at /none.txt"),
}


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fail where a block is fitted or a loss is measured."""
    for name in ("choose.fit_all", "wish.fit_all", "wish.measure_perplexity", "choose.measure_perplexity"):
        monkeypatch.setattr(f"rectilinear.linearization.{name}", lambda *args, **options: pytest.fail("work was done"))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_requests_are_refused_before_any_work(name, linearize, nothing_runs):
    options, says = WRONG[name]
    with pytest.raises(RequestError, match=says) as raised:
        linearize(build("llama"), **options)
    assert "\n" not in str(raised.value)


WITHOUT_WEIGHTS = {
    "beyond": ({"blocks": [3]}, "blocks from 0 to 2, got 3"),
    "count": ({"count": 4}, "--count from 1 to 3"),
    "rank": ({"blocks": [1], "rank": WIDTH}, f"rank below the width of {WIDTH}"),
    "budget": ({"budget": 0.99}, "--budget above 0% and up to "),
    "folded first": ({"blocks": [0], "kind": "folded"}, "needs a block before it"),
    "stack": ({"blocks": [0], "stack": "model.nope"}, "model.layers"),
    "healing": ({"count": 1, "kind": "drop", "heal_steps": 1}, "got only dropped blocks"),
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


def test_the_model_card_says_how_to_load_it(linearized, exported):
    for blocks, options, trusted in (((0,), {}, True), ((1,), {"kind": "drop"}, False)):
        folder = exported("llama", blocks, **options)
        card = (folder / "README.md").read_text()
        code = re.search("```python\n(.*)```", card, re.DOTALL)[1].replace("path", repr(str(folder)))
        with (
            patch.object(AutoModelForCausalLM, "from_pretrained") as loads,
            patch.object(AutoTokenizer, "from_pretrained") as reads,
        ):
            exec(code, {})
        for called in (loads, reads):
            called.assert_called_once_with(str(folder), **({"trust_remote_code": True} if trusted else {}))
        assert card.startswith("---\n")
        plan = linearized("llama", blocks, **options).plan
        assert f"{plan.parameters.after:,}" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"kind": "affine", "blocks": [0]}, 11.3),
        ({"kind": "filter", "taps": 3, "blocks": [0]}, 7.4),
        ({"kind": "filter", "taps": 3, "target": "attention", "rank": 24, "blocks": [0, 1, 2, 3, 4]}, 11.6),
    ],
    ids=["affine", "filter", "attentions"],
)
def test_how_good_stand_ins_of_a_real_model_are(options, most, shared, tmp_path, load):
    stories, model = shared / "data/tinystories", shared / "models/stories260K"
    size = {"seq_len": 256, "device": "cpu"}
    made = rectilinear.linearize(model, stories / "train.txt", max_tokens=300_000, **options, **size)
    loaded = load(made.save(tmp_path / "saved"))
    scored = rectilinear.evaluate(
        loaded, stories / "valid.txt", tokenizer=made.tokenizer, max_tokens=100_000, speed=False, seq_len=256
    )
    assert scored.perplexity <= most
    dense = rectilinear.evaluate(model, stories / "valid.txt", max_tokens=100_000, speed=False, **size)
    assert dense.perplexity == pytest.approx(6.0, abs=0.05)
