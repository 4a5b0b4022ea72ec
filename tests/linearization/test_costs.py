"""Choosing from several kinds within a budget: what each costs alone, the integer program, the plan from it."""

import copy
import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import rectilinear
from rectilinear import (
    Affine,
    Bounded,
    CalibrationRows,
    Drop,
    Filter,
    Folded,
    JobError,
    Loading,
    RequestError,
    Selection,
)
from rectilinear.linearization import candidates as pricing
from rectilinear.linearization import costs as measuring
from rectilinear.linearization import search as searching
from rectilinear.linearization.budget import Budget
from rectilinear.linearization.choose import Choice
from rectilinear.linearization.fit import fit_all
from rectilinear.linearization.kinds import make_kind, parse_kinds
from rectilinear.linearization.plan import CostRecord, Plan
from rectilinear.linearization.program import cheapest, exchanges
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.request import Request
from rectilinear.measurement.perplexity import Losses
from rectilinear.models.logits import next_logits
from tests.families import build
from tests.linearization.conftest import FITTED, ROWS, SEQ_LEN, divergence_by_hand, learn, losses_by_hand
from tests.matrix.configurations import build as build_type

BLOCKS = 4


@pytest.fixture(scope="module")
def trained(rows):
    return learn(build("llama", num_hidden_layers=BLOCKS), rows, epochs=4)


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


@pytest.fixture
def checkpoint(trained, tiny_tokenizer, tmp_path):
    trained.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


SIZE = {"rows": CalibrationRows(max_tokens=ROWS * SEQ_LEN, seq_len=SEQ_LEN), "loading": Loading(device="cpu")}


def made_of(model, text, progress=False, out=None, **selection):
    return rectilinear.linearize(model, text, None, Selection(**selection), **SIZE, progress=progress, out=out)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("25%", Budget(saving=0.25)),
        (0.25, Budget(saving=0.25)),
        ("parameters=80%", Budget(saving=0.2)),
        ("cache=0.25", Budget(cache=0.25)),
        ("parameters=80%, cache=25%", Budget(saving=0.2, cache=0.25)),
    ],
)
def test_a_budget_is_what_is_saved_or_what_is_kept_and_is_recorded_as_it_is_read(given, expected):
    found = Selection(budget=given, choices="drop").budget
    assert found == expected
    again = Budget.parse(found.settings())
    assert again.cache == found.cache
    assert again.saving == pytest.approx(found.saving, abs=1e-9)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"budget": "speed=80%"}, "expected `budget=parameters=80%,cache=25%,decoding=70%`"),
        ({"budget": "cache=25%,cache=30%"}, "each once"),
        ({"budget": "cache=120%"}, "above 0% and below 100% to keep of cache"),
        ({"choices": "drop"}, "expected a `budget` with `choices`"),
        ({"choices": "drop", "budget": 0.1, "sweep": "90%,80%"}, "expected `sweep=parameters=90%,75%,60%`"),
        ({"choices": "drop", "budget": 0.1, "sweep": "parameters=90%,cache=8%"}, "shares of one quantity to keep"),
        ({"choices": "drop", "budget": 0.1, "sweep": "parameters=9%,150%"}, "above 0% and below 100%"),
        ({"choices": "drop", "budget": 0.1, "sweep": "parameters=95,90%"}, "try shares such as 75%"),
        ({"choices": "drop", "budget": 0.1, "sweep": "cache=9%"}, "limits, parameters=90%, got cache=9%; try `budget="),
        ({"choices": "drop", "budget": 0.1, "sweep": [0.9, 0.8]}, "expected `sweep=parameters=90%,75%,60%`"),
        ({"count": 1, "sweep": "parameters=9%"}, "expected no `sweep` without `choices`"),
        ({"choices": "dorp", "budget": 0.1}, "expected `kind` to be one of"),
        ({"choices": "bounded:windows=3", "budget": 0.1}, "expected no `windows` with `kind=bounded`"),
        ({"choices": "bounded:window", "budget": 0.1}, "got 'window' in 'bounded:window'"),
        ({"choices": "drop", "budget": 0.1, "select": "loss"}, "expected no `select`"),
        ({"choices": "drop", "budget": 0.1, "target": "mlp", "span": 2}, "expected no `span` with `target=mlp`"),
        ({"choices": "drop", "budget": "0%"}, "above 0% and below 100%"),
        ({"choices": "drop", "budget": "parameters=100%"}, "above 0% and below 100%"),
        ({"choices": "drop", "budget": "cache=100%"}, "above 0% and below 100%"),
        ({"choices": "drop", "budget": 0.1, "sweep": "parameters=100%"}, "above 0% and below 100%"),
        ({"choices": "drop", "budget": "150%"}, "above 0% and below 100%"),
        ({"choices": "drop,drop", "budget": 0.1}, "one of them twice"),
        ({"choices": "bounded:window=16,afine", "budget": 0.1}, "got 'afine'"),
        ({"choices": "drop", "budget": "cache=25"}, "got 'cache=25'; try shares such as 75%"),
        ({"budget": 0.1, "trials": 3}, "expected no `trials` without `choices`"),
        ({"budget": 0.1, "budget_tokens": 30}, "expected no `budget_tokens`"),
    ],
)
def test_what_asks_for_nothing_is_refused(selection, message):
    with pytest.raises(RequestError, match=message):
        Selection(**selection)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Bounded(far="none", refit=False), "expected no `refit` with `far=none`"),
        (Bounded(far="mean", centroids=4), "expected no `centroids` with `far=mean`"),
    ],
)
@pytest.mark.parametrize("way", ["kind", "choices"])
def test_options_that_change_nothing_are_refused_unless_a_plan_names_all(kind, message, way):
    asked = {"choices": [kind], "budget": "cache=50%"} if way == "choices" else {"target": "attention", "count": 1}
    with pytest.raises(RequestError, match=message):
        Request.of(None if way == "choices" else kind, Selection(**asked))
    one = Replacement(by=kind, target="attention", blocks=(0,))
    assert Replacement.model_validate(one.model_dump(mode="json")) == one


@pytest.mark.parametrize(
    "kinds",
    [
        (Bounded(window=16), Bounded(window=64, far="mean", uniform=True, refit=False), Affine(rank=3), Drop()),
        (Filter(rates=(1.0, 0.5), taps=0), Folded()),
        (Filter(rates=(), taps=2), Filter()),
    ],
)
def test_kinds_are_spelled_as_they_are_read(kinds):
    text = ",".join(kind.spelled() for kind in kinds)
    assert tuple(parse_kinds(text)) == kinds
    assert Selection(choices=text, budget=0.1).choices == kinds


@st.composite
def problems(draw):
    kinds = [(Drop(), "block"), (Affine(), "block"), (Folded(), "block"), (Affine(), "attention"), (Drop(), "mlp")]
    count, costs = draw(st.integers(1, 3)), []
    for kind, target in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique_by=str)):
        runs = [(index,) for index in range(count)]
        runs += [(index, index + 1) for index in range(count - 1)] if target == "block" else []
        for run in runs:
            if kind.needs_block_before and not run[0]:
                continue
            numbers = draw(st.tuples(st.integers(0, 1000), st.integers(-50, 5), st.integers(-50, 5)))
            one = Replacement(by=kind, target=target, blocks=run)
            costs.append(CostRecord(replacement=one, divergence=numbers[0], parameters=numbers[1], cache=numbers[2]))
    limits = {
        name: -draw(st.integers(0, 80)) for name in draw(st.sampled_from([["parameters"], ["parameters", "cache"]]))
    }
    return costs[:9], limits, count


def allowed(chosen, limits, count):
    """Whether replacements can be made together and save enough, from the words of the documentation."""
    taken, gone = [], set()
    for cost in chosen:
        one = cost.replacement
        parts = ("attention", "mlp") if one.target == "block" else (one.target,)
        taken += [(block, part) for block in one.blocks for part in parts]
        gone |= {*one.removed}
    folds = [cost.replacement.blocks[0] - 1 for cost in chosen if cost.replacement.kind == "folded"]
    stays = len(gone) < count and not any((block, "mlp") in taken for block in folds)
    return (
        len(taken) == len({*taken})
        and stays
        and all(sum(getattr(cost, name) for cost in chosen) <= most for name, most in limits.items())
    )


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_program_finds_the_cheapest_choices_of_fewer_and_fewer_and_then_the_others(problem):
    costs, limits, count = problem
    if not costs:
        return
    subsets = itertools.chain.from_iterable(itertools.combinations(costs, size) for size in range(len(costs) + 1))
    every = {
        frozenset(map(id, one)): sum(cost.divergence for cost in one) for one in subsets if allowed(one, limits, count)
    }
    found = [frozenset(map(id, one)) for one in itertools.islice(cheapest(costs, limits, count), 6)]
    assert len(found) == min(len(every), 6)
    left, most, shrinks = dict(every), len(costs), True
    for one in found:
        near = [other for other in left if len(other) <= most]
        if not near:
            near, most, shrinks = [*left], len(costs), False
        assert left.pop(one) == min(every[other] for other in near)
        assert len(one) <= most
        most = len(one) - 1 if shrinks else most


@settings(max_examples=30, deadline=None)
@given(problems())
def test_exchanges_are_the_cheapest_choices_near_one(problem):
    costs, limits, count = problem
    chosen = next(cheapest(costs, limits, count), None) if costs else None
    if chosen is None:
        return
    every = itertools.chain.from_iterable(itertools.combinations(costs, size) for size in range(len(costs) + 1))
    near = [set(map(id, one)) for one in every if allowed(one, limits, count)]
    inside, price = set(map(id, chosen)), {id(cost): cost.divergence for cost in costs}
    near = [one for one in near if len(inside - one) <= 2]
    expected = []
    for cost in costs:
        if id(cost) not in inside:
            expected += [min(sums)] if (sums := [sum(map(price.get, one)) for one in near if id(cost) in one]) else []
    found = exchanges(costs, limits, count, chosen)
    assert [sum(cost.divergence for cost in one) for one in found] == pytest.approx(sorted(expected))
    assert all(set(map(id, one)) in near for one in found)


def test_costs_are_of_each_replacement_alone(model, linearize, rows):
    made = linearize(copy.deepcopy(model), choices="drop,affine:rank=4", budget="parameters=90%")
    costs = {(str(c.replacement.by), c.replacement.target, c.replacement.where): c for c in made.plan.selection.costs}
    assert len(costs) == 2 * 3 * BLOCKS
    total = sum(each.numel() for each in model.parameters())
    for kind, target in (
        ("drop", "block"),
        ("drop", "attention"),
        ("affine, rank 4", "mlp"),
        ("affine, rank 4", "block"),
    ):
        name, _, rank = kind.partition(", rank ")
        alone = linearize(copy.deepcopy(model), kind=name, target=target, blocks=(1,), **({"rank": 4} if rank else {}))
        cost = costs[kind, target, "1"]
        expected = divergence_by_hand(model, alone.model, rows[FITTED:])
        assert cost.divergence == pytest.approx(expected, rel=1e-3)
        assert cost.parameters == sum(each.numel() for each in alone.model.parameters()) - total


@pytest.mark.parametrize("budget", ["parameters=70%", "cache=60%", "parameters=80%,cache=40%"])
def test_a_budget_is_kept_in_the_model_that_is_made(model, linearize, rows, budget):
    made = linearize(copy.deepcopy(model), choices="bounded:window=4:sinks=1,drop,affine", budget=budget)
    limits, tokens = Selection(budget=budget, choices="drop").budget, made.plan.selection.budget_tokens
    ids = rows.flatten()[:tokens][None]
    parameters = [sum(each.numel() for each in some.parameters()) for some in (model, made.model)]
    kept = [cache_bytes(some, ids) for some in (model, made.model)]
    assert made.plan.selection.cache_bytes == kept[0]
    if limits.saving is not None:
        assert parameters[1] <= (1 - limits.saving) * parameters[0] + 1e-6
    if limits.cache is not None:
        assert kept[1] <= limits.cache * kept[0]
    chosen = {one.unfitted() for one in made.plan.replacements}
    spent = [cost for cost in made.plan.selection.costs if cost.replacement.unfitted() in chosen]
    assert len(spent) == len(chosen)
    assert kept[1] - kept[0] == sum(cost.cache for cost in spent)
    assert made.plan.selection.cache_bytes_after == kept[1]
    assert parameters[1] - parameters[0] == sum(
        one.fit.parameters_after - one.fit.parameters_before for one in made.plan.replacements
    )


def cache_bytes(model, ids):
    _, cache = next_logits(model, ids)
    tensors = [each for layer in cache.value.layers for each in walk(vars(layer))]
    return sum(each.numel() * each.element_size() for each in tensors)


def walk(held):
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, dict | list | tuple):
        for each in held.values() if isinstance(held, dict) else held:
            yield from walk(each)
    elif hasattr(held, "__dict__"):
        yield from walk(vars(held))


def test_of_several_trials_the_one_with_the_least_loss_is_taken(model, linearize):
    choice = {"choices": "drop,affine", "budget": "parameters=75%"}
    one, five = (linearize(copy.deepcopy(model), **choice, trials=trials) for trials in (1, 5))
    losses = five.plan.selection.losses
    assert len(losses) == 5
    assert losses[0] == pytest.approx(one.plan.selection.loss_after, abs=1e-6)
    assert five.plan.selection.loss_after == min(losses)


@pytest.mark.parametrize(
    ("choice", "fitted"),
    [
        ({"choices": "drop,affine"}, 4),
        ({"choices": "affine"}, 1),
        ({"choices": "drop,affine", "max_tokens": SEQ_LEN}, 0),  # no rows are held out
    ],
)
def test_several_choices_among_several_kinds_are_fitted_unless_nothing_tells_them_apart(
    model, linearize, monkeypatch, choice, fitted
):
    fit, fits = searching.fit_all, []
    monkeypatch.setattr(searching, "fit_all", lambda *given: fits.append(given[1]) or fit(*given))
    selection = linearize(model, budget="parameters=75%", **choice).plan.selection
    assert len(selection.losses) == fitted
    assert len(fits) == max(fitted, 1)


def test_exchanges_go_on_until_none_helps(model, linearize):
    choice = {"choices": "drop,affine", "budget": "parameters=75%", "trials": 1}
    one, many = (linearize(copy.deepcopy(model), **choice, swaps=swaps) for swaps in (0, 200))
    losses = many.plan.selection.losses
    assert losses[0] == one.plan.selection.loss_after
    assert many.plan.selection.loss_after == min(losses)
    # What was tried last are the choices near the best one, all that are left of them.
    assert 10 < len(losses) < 200
    some = linearize(copy.deepcopy(model), **choice, swaps=3)
    assert some.plan.selection.losses == losses[:4]


def test_a_run_of_blocks_is_replaced_as_one_where_that_is_cheapest(model, linearize):
    made = linearize(copy.deepcopy(model), choices="drop", target="block", span=3, budget="parameters=60%")
    lengths = [len(cost.replacement.blocks) for cost in made.plan.selection.costs]
    assert [lengths.count(length) for length in (1, 2, 3)] == [BLOCKS, BLOCKS - 1, BLOCKS - 2]
    spent = [cost for cost in made.plan.selection.costs if len(cost.replacement.blocks) == 2]
    alone = linearize(copy.deepcopy(model), kind="drop", blocks=spent[0].replacement.blocks)
    total = sum(each.numel() for each in model.parameters())
    assert spent[0].parameters == sum(each.numel() for each in alone.model.parameters()) - total


def test_one_kind_can_be_chosen_for_a_budget_of_the_cache(model, linearize, rows):
    made = linearize(copy.deepcopy(model), kind="bounded", target="attention", window=4, sinks=1, budget="cache=60%")
    ids = rows.flatten()[: made.plan.selection.budget_tokens][None]
    assert cache_bytes(made.model, ids) <= 0.6 * cache_bytes(model, ids)
    assert {one.kind for one in made.plan.replacements} == {"bounded"}
    assert 1 <= len(made.plan.replacements) < BLOCKS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": "affine", "budget": "parameters=5%"}, r"expected a `budget` of at least parameters=\d"),
        ({"choices": "drop", "budget": "cache=1%", "target": "mlp"}, "expected a `budget` of at least cache=100%"),
        ({"choices": "drop", "budget": "cache=50%", "budget_tokens": 10**6}, "context"),
        ({"choices": "drop", "budget": 0.1, "kind": "drop"}, "expected no `kind` with `choices`"),
        (
            {"choices": "folded", "target": "mlp", "budget": 0.1},
            "expected `choices` that can take the place of mlps",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(model, linearize, options, message):
    with pytest.raises(RequestError, match=message):
        linearize(model, **options)


def test_costs_are_measured_once_for_all_budgets_and_go_on_where_they_were_stopped(
    checkpoint, text_file, tmp_path, monkeypatch
):
    monkeypatch.setenv("RECTILINEAR_CACHE", str(tmp_path / "cache"))
    fit, fitted = measuring.fit_alone, []

    def stopping(bench, one, streams):
        if len(fitted) == 5 and not again:
            raise KeyboardInterrupt
        fitted.append(one)
        return fit(bench, one, streams)

    monkeypatch.setattr(measuring, "fit_alone", stopping)
    again = False
    with pytest.raises(KeyboardInterrupt):
        made_of(checkpoint, text_file, choices="drop,affine", budget="parameters=80%")
    again = True
    first = made_of(checkpoint, text_file, choices="drop,affine", budget="parameters=80%")
    assert len(fitted) == len({*fitted}) == 2 * 3 * BLOCKS
    second = made_of(checkpoint, text_file, choices="drop,affine", budget="parameters=65%")
    assert len(fitted) == 2 * 3 * BLOCKS
    assert second.plan.selection.costs == first.plan.selection.costs
    assert second.plan.parameters.after < first.plan.parameters.after


def test_a_mixed_plan_is_a_checkpoint_and_says_how_it_was_made(checkpoint, text_file, tmp_path):
    """Blocks that are gone beside bounded attention, filters and maps: it is loaded again, and decodes."""
    choice = {"choices": "bounded:window=4:sinks=1,drop,affine", "budget": "parameters=70%,cache=50%"}
    choice["sweep"] = "cache=80%,40%"
    made = made_of(checkpoint, text_file, out=tmp_path / "out", **choice)
    plan = Plan.load(tmp_path / "out" / "plan.json")
    assert plan.selection == made.plan.selection
    command = plan.command()
    assert "--choices bounded:window=4:sinks=1,drop,affine" in command
    assert "--budget parameters=70%,cache=50%" in command
    assert "--sweep cache=80%,40%" in command
    assert [point.budget for point in plan.selection.sweep] == [
        f"parameters=70%,cache={share}%" for share in (80, 50, 40)
    ]
    same = rectilinear.linearize(checkpoint, text_file, None, Selection(plan=plan), **SIZE, progress=False)
    assert same.plan.selection.loss_after == pytest.approx(made.plan.selection.loss_after, abs=1e-9)


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_blocks_are_removed_beside_every_kind_of_stand_in(checkpoint, text_file, tmp_path, gone):
    others = [
        {"kind": "bounded", "target": "attention", "window": 4, "sinks": 1},
        {"kind": "filter", "target": "attention", "rank": 4},
        {"kind": "affine", "target": "mlp"},
    ]
    blocks = [index for index in range(BLOCKS) if index != gone]
    chosen = [{"kind": "drop", "target": "block", "blocks": [gone]}]
    chosen += [{**one, "blocks": [block]} for one, block in zip(others, blocks, strict=True)]
    plan = rectilinear.linearize(checkpoint, text_file, "drop", Selection(blocks=(gone,)), **SIZE, progress=False).plan
    data = {**plan.model_dump(mode="json", by_alias=True), "replacements": chosen}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    made = made_of(checkpoint, text_file, out=tmp_path / "out", plan=tmp_path / "plan.json")
    assert made.model.config.num_hidden_layers == BLOCKS - 1
    assert np.isfinite(made.plan.selection.loss_after)


def test_later_rounds_measure_costs_among_what_was_chosen(model, linearize, rows, monkeypatch):
    """Each with the others in place, beside the original's part in its own place; of what is only left out, by hand."""
    measured, own = [], pricing.measure_costs

    def noting(bench, ones, sizes, kept, around=()):
        found = own(bench, ones, sizes, kept, around)
        measured.append(({fitted.replacement.blocks[0] for fitted in around}, found))
        return found

    monkeypatch.setattr(pricing, "measure_costs", noting)
    choice = {"choices": "drop", "target": "attention", "budget": "cache=50%", "rounds": 2}
    linearize(copy.deepcopy(model), **choice)
    (nothing, _), (chosen, among) = measured
    assert not nothing
    assert len(chosen) == 2

    def moved(gone):
        other = linearize(copy.deepcopy(model), kind="drop", target="attention", blocks=gone).model if gone else model
        return divergence_by_hand(model, other, rows[FITTED:])

    for cost in among:
        (block,) = cost.replacement.blocks
        with_it, without = ({*chosen} | {block}), {*chosen} - {block}
        expected = moved(tuple(sorted(with_it))) - moved(tuple(sorted(without)))
        assert cost.divergence == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"kind": "folded", "blocks": (2,)}, {"kind": "drop", "target": "mlp"}),
        ({"kind": "affine", "blocks": (1, 2), "merge": True}, {"kind": "drop", "target": "mlp"}),
        ({"kind": "affine", "blocks": (2,)}, {"kind": "drop", "target": "mlp"}),
        ({"kind": "drop", "target": "attention", "blocks": (1,)}, {"kind": "folded", "target": "block"}),
    ],
    ids=["folded", "run", "block", "folded after an attention"],
)
def test_costs_among_others_are_those_by_hand(model, linearize, rows, monkeypatch, first, second):
    """Of what comes after them, so that nothing is fitted anew; also where one is written into the block before it."""
    measured, own = [], pricing.measure_costs
    one = Replacement(by=make_kind(first["kind"], {}), target=first.get("target", "block"), blocks=first["blocks"])

    def among(bench, ones, sizes, kept, around=()):
        measured.extend(own(bench, ones, sizes, kept, around or fit_all(bench, [one])))
        return measured

    monkeypatch.setattr(pricing, "measure_costs", among)
    linearize(copy.deepcopy(model), choices=second["kind"], target=second["target"], budget="parameters=90%")
    alone = linearize(copy.deepcopy(model), **first)
    data = alone.plan.model_dump(mode="json", by_alias=True)
    base = divergence_by_hand(model, alone.model, rows[FITTED:])
    later = [cost for cost in measured if cost.replacement.blocks[0] > first["blocks"][-1]]
    assert later
    for cost in later:
        also = {**second, "blocks": [*cost.replacement.blocks]}
        both = Plan.model_validate({**data, "replacements": [*data["replacements"], also]})
        made = linearize(copy.deepcopy(model), plan=both)
        expected = divergence_by_hand(model, made.model, rows[FITTED:]) - base
        assert cost.divergence == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_what_cannot_be_put_in_is_left_out_and_said(linearize):
    made = linearize(build("gemma3"), choices="drop,folded", budget="parameters=80%")
    assert {one.replacement.kind for one in made.plan.selection.costs} == {"drop"}
    (why,) = made.plan.selection.left_out.values()
    assert any("folded" in warning and why in warning for warning in made.plan.warnings)


def test_what_the_model_does_not_run_without_is_left_out_and_said(linearize):
    """Keys and values that later blocks read as well; attention that is bounded has them."""
    model = build_type("gemma4_text", num_kv_shared_layers=2)
    made = linearize(model, choices="mean,bounded:window=4:sinks=1:far=none:uniform=true", budget="parameters=95%")
    why = made.plan.selection.left_out["the attention of block 1"]
    assert "expected a model that runs without attention 1" in why
    considered = {(one.kind, one.target, one.where) for one in (cost.replacement for cost in made.plan.selection.costs)}
    assert ("mean", "attention", "1") not in considered
    assert {("mean", "block", "3"), ("bounded", "attention", "1")} <= considered


def test_a_named_kind_is_considered_though_it_is_larger_than_what_it_replaces(model, linearize):
    made = linearize(copy.deepcopy(model), choices="filter,drop", target="attention", budget="cache=50%")
    assert {one.replacement.kind for one in made.plan.selection.costs} == {"drop", "filter"}


def test_a_budget_is_kept_where_fits_together_need_more_than_alone(model, linearize, monkeypatch):
    """As if all of them had needed less when they were measured alone."""
    own = pricing.measure_costs

    def less(*args):
        return [cost.model_copy(update={"parameters": int(1.2 * cost.parameters)}) for cost in own(*args)]

    monkeypatch.setattr(pricing, "measure_costs", less)
    made = linearize(copy.deepcopy(model), choices="affine", budget="parameters=75%")
    assert made.plan.parameters.after <= 0.75 * made.plan.parameters.before


@pytest.mark.parametrize("choices", ["drop,affine,folded", "bounded:window=4:sinks=1,filter:rank=2,mean"])
def test_rounds_go_on_from_the_best_choice_whatever_its_kinds(model, linearize, choices):
    budget = "cache=60%" if "bounded" in choices else "parameters=70%"
    one, three = (linearize(copy.deepcopy(model), choices=choices, budget=budget, rounds=rounds) for rounds in (1, 3))
    assert three.plan.selection.loss_after <= one.plan.selection.loss_after + 1e-9
    assert three.plan.selection.costs == one.plan.selection.costs
    assert three.plan.selection.loss_after == min(three.plan.selection.losses)


@pytest.mark.parametrize("quantity", ["parameters", "cache"])
def test_each_point_of_a_sweep_is_the_best_choice_that_is_known_within_its_budget(
    model, linearize, rows, monkeypatch, quantity
):
    fit, fitted = measuring.fit_alone, []
    monkeypatch.setattr(measuring, "fit_alone", lambda *given: fitted.append(given[1]) or fit(*given))
    choice = {"choices": "bounded:window=4:sinks=1,drop,affine", "trials": 2}
    budget, sweep = f"{quantity}=75%", f"{quantity}=90%,75%,40%"
    swept = linearize(copy.deepcopy(model), budget=budget, sweep=sweep, **choice).plan
    points, costs = swept.selection.sweep, {cost.replacement.unfitted(): cost for cost in swept.selection.costs}
    assert len(fitted) == len({*fitted})  # costs are measured once for all of it
    assert [point.budget for point in points] == [f"{quantity}={share}%" for share in (90, 75, 40)]
    assert [point.increase for point in points] == sorted(point.increase for point in points)
    for point in points:
        alone = linearize(copy.deepcopy(model), budget=point.budget, **choice).plan.selection
        assert point.increase <= alone.loss_after - alone.loss_before + 1e-9
        assert point.kept <= point.share
        chosen = swept.model_copy(update={"replacements": point.replacements})
        made = linearize(copy.deepcopy(model), plan=chosen)
        assert made.plan.parameters.after == point.parameters
        assert point.divergence == pytest.approx(sum(costs[one].divergence for one in point.replacements))
        increases = losses_by_hand(made.model, rows[FITTED:]) - losses_by_hand(model, rows[FITTED:])
        assert point.increase == pytest.approx(increases.mean(), abs=1e-6)
        assert point.stderr == pytest.approx(stats.sem(increases), abs=1e-6)
        assert_t_interval(point.interval, increases)
    taken = next(point for point in points if point.budget == budget)
    assert [point.taken for point in points] == [point.replacements == taken.replacements for point in points]
    assert {*taken.replacements} == {one.unfitted() for one in swept.replacements}
    assert swept.selection.cache_bytes_after == taken.cache_bytes
    moved = swept.selection.loss_after - swept.selection.loss_before
    assert moved == pytest.approx(taken.increase, abs=1e-9)


def test_a_choice_of_a_tighter_budget_is_taken_where_it_loses_less(linearize, model, monkeypatch):
    """And none is fitted twice for two budgets."""
    fit, fitted = searching.fit_all, []
    monkeypatch.setattr(searching, "fit_all", lambda *given: fitted.append(frozenset(given[1])) or fit(*given))
    losses = {}

    def pretended(search, fits):  # the more is replaced, the less is lost
        losses[len(fits)] = found = own(search, fits)
        return dataclasses.replace(found, rows=Losses(found.rows.sums / (1 + len(fits)), found.rows.sizes))

    own = Choice._predicts
    monkeypatch.setattr(Choice, "_predicts", pretended)
    choice = {"choices": "drop", "target": "mlp", "budget": "parameters=95%"}
    plan = linearize(model, sweep="parameters=94.9%,80%,75%", **choice).plan
    assert len(fitted) - len({*fitted}) <= 1  # what is taken at last is not in memory any more
    tightest = plan.selection.sweep[-1]
    assert all({*point.replacements} == {*tightest.replacements} for point in plan.selection.sweep)
    assert {one.unfitted() for one in plan.replacements} == {*tightest.replacements}
    assert len(plan.replacements) > 1


def test_a_budget_whose_choices_fail_loses_nothing_of_the_others(linearize, model, monkeypatch):
    fit = searching.fit_all

    def failing(bench, ones, *given):
        if len(ones) > 1:
            raise JobError("expected finite activations")
        return fit(bench, ones, *given)

    monkeypatch.setattr(searching, "fit_all", failing)
    plan = linearize(model, choices="drop", target="mlp", budget="parameters=95%", sweep="parameters=70%").plan
    assert [point.budget for point in plan.selection.sweep] == ["parameters=95%"]
    assert plan.selection.unmet == {"parameters=70%": "expected finite activations"}
    assert "no choice within parameters=70% was compared: expected finite activations" in plan.warnings


def test_a_model_that_grows_under_a_budget_of_the_cache_is_warned_of_and_can_be_forbidden(linearize, model):
    choice = {"choices": "bounded:window=4:sinks=1,bounded:window=6:sinks=1:far=none"}
    grown = linearize(copy.deepcopy(model), budget="cache=60%", **choice).plan
    more = grown.parameters.after - grown.parameters.before
    hint = "try `budget=cache=60%,parameters=100%`"
    assert more > 0
    assert (
        f"the model has {more:,} parameters more than the original, which the budget allows; {hint}" in grown.warnings
    )
    kept = linearize(copy.deepcopy(model), budget="cache=60%,parameters=100%", **choice).plan
    assert kept.parameters.after == kept.parameters.before
    assert not any("parameters more" in warning for warning in kept.warnings)


def test_equal_budgets_are_one():
    selection = Selection(choices="drop", budget="1.3%", sweep="parameters=98.7%,0.987")
    assert [str(budget) for budget in selection.budgets] == ["parameters=98.7%"]


@pytest.mark.parametrize(("rows_of_text", "error"), [(1, None), (2, None), (ROWS, "a standard error")])
def test_a_sweep_has_the_errors_that_there_are(linearize, model, rows_of_text, error):
    some = {"max_tokens": rows_of_text * SEQ_LEN, "choices": "drop", "budget": "parameters=90%"}
    (point, _) = linearize(model, sweep="parameters=80%", **some).plan.selection.sweep
    assert (point.increase is None) == (rows_of_text == 1)
    assert (point.stderr is None) == (point.interval is None) == (error is None)


def assert_t_interval(found, differences):
    low, high = stats.t.interval(0.95, len(differences) - 1, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("sweep", ["parameters=5%", "parameters=95%,1%"])
def test_a_share_that_no_choice_is_within_is_refused_before_costs_are_measured(linearize, model, sweep, monkeypatch):
    monkeypatch.setattr(measuring, "fit_alone", lambda *given: pytest.fail("it was measured"))
    with pytest.raises(RequestError, match=r"expected shares in `sweep` of at least parameters=.*got parameters="):
        linearize(model, choices="affine", target="mlp", budget="parameters=90%", sweep=sweep)


def test_a_sweep_is_a_table_and_a_figure(linearize, model):
    plan = linearize(model, choices="drop,affine", budget="parameters=80%", sweep="parameters=90%").plan
    points, (chart,) = plan.selection.sweep, plan.charts()
    *_, original = chart.panels[0].lines
    found = {
        point[0]: point[1:] for line in chart.panels[0].lines for point in zip(line.names, line.x, line.y, strict=False)
    }
    assert found == {f"{100 * each.share:g}%": (100 * each.kept, each.increase) for each in points}
    assert (original.x, original.y) == ((100.0,), (0.0,))
    table = plan.tables()[1]
    assert [row[0] for row in table.rows] == ["the original", "parameters=90%", "parameters=80% *"]
    assert table.rows[0][2:4] == (plan.model.parameters, plan.selection.cache_bytes)
    assert [row[2] for row in table.rows[1:]] == [point.parameters for point in points]
    assert "before healing" not in table.caption


def test_losses_of_a_sweep_are_said_to_be_from_before_healing(linearize, model):
    plan = linearize(model, choices="affine", budget="parameters=80%", sweep="parameters=90%", heal_steps=2).plan
    assert "before healing" in plan.tables()[1].caption
