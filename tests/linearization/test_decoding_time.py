"""Decoding as something that a budget limits: truth is made by a clock that modules put forward as they decode."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rectilinear
from rectilinear import RequestError, Selection
from rectilinear.linearization import search as searching
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.decoding_time import DecodingTime
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.step_time import Decoder, StepTime, share_of_change
from tests.families import build
from tests.linearization.conftest import learn

BLOCKS = 4
#: Seconds that the MLP of each block takes, its attention, and all that is no block.
WAITS, ATTENTION, REST = (0.002, 0.006, 0.002, 0.004), 0.003, 0.005
ALL = sum(WAITS) + BLOCKS * ATTENTION + REST
NOW = [0.0]


def waiting(seconds):
    """A hook that takes so long for a single token, and now and then a hundred times as long."""

    def wait(module, args):
        if args[0].shape[1] == 1:
            NOW[1:] = [*NOW[1:], seconds]
            NOW[0] += seconds * (100 if len(NOW) % 37 == 0 else 1)

    return wait


@pytest.fixture(scope="module")
def trained(rows):
    model = learn(build("llama", num_hidden_layers=BLOCKS), rows, epochs=1)
    for layer, seconds in zip(model.model.layers, WAITS, strict=True):
        layer.mlp.register_forward_pre_hook(waiting(seconds))
        layer.self_attn.q_proj.register_forward_pre_hook(waiting(ATTENTION))
    model.lm_head.register_forward_pre_hook(waiting(REST))
    return model


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def test_the_time_of_a_step_is_taken():
    model = build("llama")
    found = Decoder(model, find_blocks(model), torch.arange(5, 25)[None]).time()
    assert 0 < min(found.blocks) < sum(found.blocks) < found.whole < 60


@pytest.mark.usefixtures("clock")
def test_what_delays_some_steps_is_in_no_time(model):
    decoder = Decoder(model, find_blocks(model), torch.arange(5, 25)[None])
    found = decoder.time()
    assert found.blocks == pytest.approx([wait + ATTENTION for wait in WAITS])
    assert found.whole == pytest.approx(ALL)
    model.model.layers[1].mlp.register_forward_pre_hook(waiting(0.02))  # what is changed afterwards is timed as it is
    assert decoder.time().blocks[1] == pytest.approx(WAITS[1] + ATTENTION + 0.02)


@pytest.fixture
def clock(monkeypatch):
    """Time goes on in modules that wait alone."""
    monkeypatch.setattr(Decoder, "_now", lambda decoder: NOW[0])


@pytest.mark.usefixtures("clock")
def test_costs_and_plans_are_of_what_waits(model, linearize):
    made = linearize(model, choices="drop", budget="decoding=70%", budget_tokens=30, sweep="decoding=85%")
    selection = made.plan.selection
    costs = {(cost.replacement.target, cost.replacement.blocks[0]): cost.decoding for cost in selection.costs}
    for index, wait in enumerate(WAITS):
        for target, saved in (("mlp", wait), ("attention", ATTENTION), ("block", wait + ATTENTION)):
            assert costs[target, index] == pytest.approx(-saved / ALL), (target, index)
    before, after = selection.decoding_seconds
    gone = {part for one in made.plan.replacements for part in one.parts}
    waited = ALL - sum(WAITS[index] if target == "mlp" else ATTENTION for index, target in gone)
    assert waited <= 0.7 * ALL
    assert after / before == pytest.approx(waited / ALL)
    assert (
        f"decoding a token after 29 others {1000 * before:.3g} -> {1000 * after:.3g} ms"
        in made.plan.tables()[0].caption
    )
    assert [(point.quantity, point.share) for point in selection.sweep] == [("decoding", 0.85), ("decoding", 0.7)]
    for point in selection.sweep:
        of_each = {cost.replacement.unfitted(): cost.decoding for cost in selection.costs}
        assert point.kept == pytest.approx(1 + sum(of_each[one] for one in point.replacements))
        assert point.kept <= point.share
    assert made.plan.charts()[0].panels[0].x.label.startswith("time to decode a token")
    table = made.plan.tables()[1]
    column = [column.name for column in table.columns].index("decoding")
    assert [row[column] for row in table.rows] == [1.0, *(point.kept for point in selection.sweep)]


@pytest.mark.usefixtures("clock")
def test_a_model_that_decodes_more_slowly_than_the_budget_is_warned_of(model, linearize, monkeypatch):
    monkeypatch.setattr(DecodingTime, "beside", lambda *given: (1.0, 0.93))
    plan = linearize(model, choices="drop", target="mlp", budget="decoding=90%", budget_tokens=30).plan
    assert any("takes 93.0% of the original's time, above the budget" in warning for warning in plan.warnings)


def test_nothing_is_timed_that_no_budget_is_of(model, linearize, monkeypatch):
    monkeypatch.setattr(rectilinear.linearization.decoding_time, "Decoder", lambda *given: pytest.fail("it was timed"))
    selection = linearize(model, choices="drop", budget="parameters=90%").plan.selection
    assert selection.decoding_seconds is None
    assert {cost.decoding for cost in selection.costs} == {None}


@pytest.mark.usefixtures("clock")
def test_a_share_of_decoding_that_no_choice_is_within_is_refused(model, linearize):
    with pytest.raises(RequestError, match="expected a `budget` of at least decoding="):
        linearize(model, choices="drop", target="mlp", budget="decoding=10%", budget_tokens=30)


def test_what_cannot_be_timed_is_refused(model, linearize):
    with pytest.raises(RequestError, match="expected `budget_tokens` of at least 2"):
        linearize(model, choices="drop", budget="decoding=70%", budget_tokens=1)
    slower = {"kind": "bounded", "target": "attention", "window": 4, "sinks": 1, "budget": "decoding=95%"}
    with pytest.raises(RequestError, match="expected choices that decode faster"):
        linearize(build("llama"), **slower, budget_tokens=30)


@pytest.mark.usefixtures("clock")
def test_times_are_taken_once_for_all_rounds(model, linearize, monkeypatch):
    timed = []
    change = DecodingTime.change
    monkeypatch.setattr(DecodingTime, "change", lambda *given: timed.append(given[2].replacement) or change(*given))
    solve, solved = searching.cheapest, []
    monkeypatch.setattr(searching, "cheapest", lambda costs, *given: solved.append(costs) or solve(costs, *given))
    linearize(model, choices="drop,affine", budget="decoding=70%", budget_tokens=30, rounds=2)
    first, later = ({cost.replacement.unfitted(): cost for cost in costs} for costs in (solved[0], solved[-1]))
    assert {one: cost.decoding for one, cost in later.items()} == {one: cost.decoding for one, cost in first.items()}
    assert any(later[one].divergence != first[one].divergence for one in first)
    assert len(timed) == len({*(one.unfitted() for one in timed)}) == 2 * 3 * BLOCKS


@pytest.mark.usefixtures("clock")
def test_one_kind_can_be_chosen_for_a_budget_of_decoding(model, linearize):
    plan = linearize(model, kind="drop", target="mlp", budget="decoding=80%,parameters=100%", budget_tokens=30).plan
    assert sum(WAITS[one.blocks[0]] for one in plan.replacements) >= 0.2 * ALL
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
