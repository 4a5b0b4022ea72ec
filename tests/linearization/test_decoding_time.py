"""Decoding as something that a budget limits: truth is made by modules that wait while a token is decoded."""

import copy
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rectilinear
from rectilinear import RequestError, Selection
from rectilinear.linearization.budget import Budget
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.step_time import Decoder, StepTime, share_of_change
from tests.families import build
from tests.linearization.conftest import learn

BLOCKS = 4
#: Seconds that the MLP of each block waits for, and its attention.
WAITS, ATTENTION = (0.002, 0.006, 0.002, 0.004), 0.003
ALL = sum(WAITS) + BLOCKS * ATTENTION


def waiting(seconds):
    """A hook that takes so long for a single token."""

    def wait(module, args):
        if args[0].shape[1] == 1:
            time.sleep(seconds)

    return wait


@pytest.fixture(scope="module")
def trained(rows):
    model = learn(build("llama", num_hidden_layers=BLOCKS), rows, epochs=1)
    for layer, seconds in zip(model.model.layers, WAITS, strict=True):
        layer.mlp.register_forward_pre_hook(waiting(seconds))
        layer.self_attn.q_proj.register_forward_pre_hook(waiting(ATTENTION))
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def test_each_block_is_timed_as_often_as_it_runs(model):
    decoder = Decoder(model, find_blocks(model), torch.arange(5, 25)[None])
    found = decoder.time()
    assert sum(found.blocks) < found.whole
    for seconds, wait in zip(found.blocks, WAITS, strict=True):
        assert wait + ATTENTION < seconds < 3 * (wait + ATTENTION)
    model.model.layers[1].mlp.register_forward_pre_hook(waiting(0.02))  # what is changed afterwards is timed as it is
    assert decoder.time().blocks[1] > 0.02


def test_costs_and_plans_are_of_what_waits(model, linearize):
    made = linearize(model, choices="drop", budget="decoding=70%", budget_tokens=30, sweep="decoding=85%")
    selection = made.plan.selection
    costs = {(cost.replacement.target, cost.replacement.blocks[0]): cost.decoding for cost in selection.costs}
    for index, wait in enumerate(WAITS):
        for target, saved in (("mlp", wait), ("attention", ATTENTION), ("block", wait + ATTENTION)):
            assert costs[target, index] == pytest.approx(-saved / ALL, rel=0.3, abs=0.03), (target, index)
    before, after = selection.decoding_seconds
    gone = {part for one in made.plan.replacements for part in one.parts}
    waited = ALL - sum(WAITS[index] if target == "mlp" else ATTENTION for index, target in gone)
    assert waited <= 0.75 * ALL
    assert after / before == pytest.approx(waited / ALL, rel=0.15)
    assert (
        f"decoding a token after 30 others {1000 * before:.3g} -> {1000 * after:.3g} ms"
        in made.plan.tables()[0].caption
    )
    assert [(point.quantity, point.share) for point in selection.sweep] == [("decoding", 0.85), ("decoding", 0.7)]
    for point in selection.sweep:
        of_each = {cost.replacement.unfitted(): cost.decoding for cost in selection.costs}
        assert point.kept == pytest.approx(1 + sum(of_each[one] for one in point.replacements))
        assert point.kept <= point.share
    assert made.plan.charts()[0].panels[0].x.label == "time to decode a token kept, %"


def test_a_model_that_decodes_more_slowly_than_the_budget_is_warned_of(model, linearize, monkeypatch):
    monkeypatch.setattr(rectilinear.linearization.decoding_time.DecodingTime, "beside", lambda *given: (1.0, 0.93))
    plan = linearize(model, choices="drop", target="mlp", budget="decoding=90%", budget_tokens=30).plan
    assert any("takes 93.0% of the original's time, above the budget" in warning for warning in plan.warnings)


def test_nothing_is_timed_that_no_budget_is_of(model, linearize, monkeypatch):
    monkeypatch.setattr(rectilinear.linearization.decoding_time, "Decoder", lambda *given: pytest.fail("it was timed"))
    selection = linearize(model, choices="drop", budget="parameters=90%").plan.selection
    assert selection.decoding_seconds is None
    assert {cost.decoding for cost in selection.costs} == {None}


def test_a_share_of_decoding_that_no_choice_is_within_is_refused(model, linearize):
    with pytest.raises(RequestError, match="expected a `budget` of at least decoding="):
        linearize(model, choices="drop", target="mlp", budget="decoding=10%", budget_tokens=30)


def test_one_kind_can_be_chosen_for_a_budget_of_decoding(model, linearize):
    plan = linearize(model, kind="drop", target="mlp", budget="decoding=80%,parameters=100%", budget_tokens=30).plan
    assert sum(WAITS[one.blocks[0]] for one in plan.replacements) >= 0.15 * ALL
    assert plan.settings["budget"] == "parameters=100%,decoding=80%"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("decoding=70%", Budget(decoding=0.7)),
        ("decoding=0.7,parameters=80%", Budget(saving=0.2, decoding=0.7)),
        ("cache=25%,decoding=70%,parameters=100%", Budget(saving=0.0, cache=0.25, decoding=0.7)),
    ],
)
def test_a_budget_of_decoding_is_recorded_as_it_is_read(given, expected):
    budget = Selection(budget=given, choices="drop").budget
    assert budget == expected
    assert Budget.parse(budget.settings()) == budget
    assert budget.limits({"parameters": 100.0, "cache": 100.0, "decoding": 1.0})["decoding"] == pytest.approx(-0.3)


def test_decoding_can_be_swept():
    selection = Selection(choices="drop", budget="decoding=70%,parameters=90%", sweep="decoding=90%,50%")
    assert [budget.decoding for budget in selection.budgets] == [0.9, 0.7, 0.5]
    assert {budget.saving for budget in selection.budgets} == {0.1}


_SECONDS = st.floats(1e-5, 1.0)


@given(st.lists(_SECONDS, min_size=2, max_size=6), _SECONDS, st.floats(0.1, 10.0), st.data())
def test_a_change_is_the_same_however_fast_the_machine_is_meanwhile(blocks, new, speed, data):
    changed = data.draw(st.integers(0, len(blocks) - 1))
    whole = sum(blocks)
    after = [new if index == changed else seconds for index, seconds in enumerate(blocks)]
    slower = StepTime(0.0, tuple(speed * seconds for seconds in after))
    share = share_of_change(StepTime(whole, tuple(blocks)), slower, [changed])
    assert share == pytest.approx((new - blocks[changed]) / whole, abs=1e-9)
