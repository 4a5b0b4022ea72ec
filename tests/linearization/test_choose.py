"""Which blocks are chosen, against the same choice made by hand."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

import rectilinear
from rectilinear import JobError, RequestError
from tests import oracle
from tests.families import build
from tests.linearization.conftest import FITTED, SEQ_LEN, divergence_by_hand, learn, loss_by_hand

BLOCKS = 6


@pytest.fixture(scope="module")
def trained(rows):
    return learn(build("llama", num_hidden_layers=BLOCKS), rows, epochs=5)


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


@torch.no_grad()
def states(model, rows):
    last = []
    handle = model.model.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
    hidden = model(rows, output_hidden_states=True, use_cache=False).hidden_states[:-1]
    handle.remove()
    return list(pairwise(state.double() for state in (*hidden, *last)))


def without(model, gone):
    """A model of the blocks that stay, put together by hand."""
    kept = [index for index in range(BLOCKS) if index not in gone]
    smaller = build("llama", num_hidden_layers=len(kept))
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.layers.")}
    for new, old in enumerate(kept):
        for name, tensor in model.model.layers[old].state_dict().items():
            state[f"model.layers.{new}.{name}"] = tensor
    smaller.load_state_dict(state)
    return smaller


def chosen(made):
    return [index for replacement in made.plan.replacements for index in replacement.blocks]


def test_influence_is_the_choice_of_shortgpt(model, linearize, rows):
    influence = {
        index: 1 - float(torch.nn.functional.cosine_similarity(x, y, dim=-1).mean())
        for index, (x, y) in enumerate(states(model, rows[:FITTED]))
    }
    order = sorted(influence, key=influence.get)
    for count in (1, 3):
        made = linearize(model, kind="drop", count=count, select="influence")
        assert chosen(made) == sorted(order[:count])
        scores = made.plan.selection.scores
        assert list(scores) == [str(index) for index in order]
        for index, value in influence.items():
            assert scores[str(index)] == pytest.approx(value, abs=1e-6)
    assert order != sorted(order)


def test_score_takes_the_most_linear_first(model, linearize, rows):
    folds = np.repeat(np.arange(FITTED) * 4 // FITTED, SEQ_LEN)
    linearity = {
        index: oracle.held_out(x.flatten(0, 1), y.flatten(0, 1), folds)[:, 0].mean()
        for index, (x, y) in enumerate(states(model, rows[:FITTED]))
    }
    order = sorted(linearity, key=linearity.get, reverse=True)
    made = linearize(model, kind="affine", count=3, select="score")
    assert chosen(made) == sorted(order[:3])
    scores = made.plan.selection.scores
    assert list(scores) == [str(index) for index in order]
    for index, value in linearity.items():
        assert scores[str(index)] == pytest.approx(value, abs=1e-4)


def test_loss_is_greedy_and_measured_after_each_step(model, linearize, rows):
    gone, losses = [], {}
    for _ in range(3):
        trials = {
            index: loss_by_hand(without(model, [*gone, index]), rows[FITTED:])
            for index in range(BLOCKS)
            if index not in gone
        }
        gone.append(min(trials, key=trials.get))
        losses[str(gone[-1])] = trials[gone[-1]]
    made = linearize(model, kind="drop", count=3, select="loss")
    assert chosen(made) == sorted(gone)
    assert made.plan.selection.scores.keys() == losses.keys()
    for index, loss in losses.items():
        assert made.plan.selection.scores[index] == pytest.approx(loss, abs=1e-5)
    assert made.plan.selection.loss_before == pytest.approx(loss_by_hand(model, rows[FITTED:]), abs=1e-5)
    assert made.plan.selection.loss_after == pytest.approx(loss_by_hand(made.model, rows[FITTED:]), abs=1e-5)
    assert made.plan.selection.tokens == 6 * 31


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({"kind": "drop"}, 0.01),
        ({"kind": "drop"}, 0.45),
        ({"kind": "affine"}, 0.2),
        ({"kind": "filter", "rank": 4}, 0.3),
        ({"kind": "filter", "rank": 4, "merge": True}, 0.4),
        ({"kind": "drop", "target": "attention"}, 0.1),
    ],
)
def test_a_budget_is_met_and_a_block_less_would_not_do(options, share, model, linearize):
    options = {**options, "select": "score" if "target" in options else "influence"}
    made = linearize(model, budget=share, **options)
    before, after = parameters(model), parameters(made.model)
    assert (made.plan.parameters.before, made.plan.parameters.after) == (before, after)
    assert before - after >= share * before
    count = len(chosen(made))
    same = linearize(model, count=count, **options)
    assert same.plan.replacements == made.plan.replacements
    if count > 1:
        less = linearize(model, count=count - 1, **options)
        assert before - parameters(less.model) < share * before


def test_the_largest_budget_can_be_met_and_no_more(model, linearize):
    total = parameters(model)
    block = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    most = (BLOCKS - 1) * block / total
    assert len(chosen(linearize(model, kind="drop", budget=most))) == BLOCKS - 1
    for share in (most * 1.001, 0.0, -0.1, 1.5):
        with pytest.raises(RequestError, match="expected `budget` above 0%"):
            linearize(model, kind="drop", budget=share)
    with pytest.raises(RequestError, match=r"up to 0\.0%"):
        linearize(model, kind="filter", budget=0.1, taps=60)


@pytest.mark.parametrize(
    ("kind", "select"), [("drop", "influence"), ("drop", "loss"), ("filter", "influence"), ("affine", "score")]
)
def test_a_tolerated_loss_is_used_and_not_passed(kind, select, model, linearize, rows):
    before = loss_by_hand(model, rows[FITTED:])
    rises = [
        loss_by_hand(linearize(model, kind=kind, count=count, select=select).model, rows[FITTED:]) - before
        for count in (1, 2, 3)
    ]
    assert 0 < rises[0] < rises[1] < rises[2]
    # Between what two blocks and what three cost, in the order that they are taken.
    tolerated = (rises[1] + rises[2]) / 2
    made = linearize(model, kind=kind, max_loss_increase=tolerated, select=select)
    reached = loss_by_hand(made.model, rows[FITTED:])
    assert len(chosen(made)) == 2
    assert reached <= before + tolerated
    assert made.plan.selection.loss_after == pytest.approx(reached, abs=1e-5)
    with pytest.raises(JobError, match=r"alone raises the loss by .*, above the tolerated"):
        linearize(model, kind=kind, max_loss_increase=rises[0] / 1000, select=select)


def test_any_loss_tolerated_takes_all_that_can_be_taken(model, linearize):
    assert len(chosen(linearize(model, kind="drop", max_loss_increase=100.0))) == BLOCKS - 1
    assert len(chosen(linearize(model, kind="folded", max_loss_increase=100.0))) == BLOCKS - 1
    assert len(chosen(linearize(model, kind="affine", max_loss_increase=100.0))) == BLOCKS


@pytest.mark.parametrize(("kind", "most"), [("drop", 5), ("folded", 5), ("affine", 6), ("filter", 6)])
def test_counts(kind, most, model, linearize):
    assert len(chosen(linearize(model, kind=kind, count=most))) == most
    for count in (0, -1, most + 1):
        with pytest.raises(RequestError, match=f"expected `count` from 1 to {most}, got {count}"):
            linearize(model, kind=kind, count=count)


def test_folded_blocks_that_follow_each_other_are_folded_as_one(model, linearize):
    made = linearize(model, kind="folded", blocks=[1, 2, 4])
    assert [replacement.blocks for replacement in made.plan.replacements] == [(1, 2), (4,)]
    assert len(rectilinear.find_blocks(made.model)) == 3
    for select in ("score", "influence", "loss"):
        assert 0 not in chosen(linearize(model, kind="folded", count=2, select=select))


@pytest.mark.parametrize("select", ["score", "loss"])
def test_attentions_are_chosen_too(select, model, linearize):
    made = linearize(model, kind="filter", target="attention", count=2, select=select, rank=4)
    assert len(chosen(made)) == 2
    assert {replacement.target for replacement in made.plan.replacements} == {"attention"}


def test_the_rows_held_out_are_never_fitted_on(linearize, documents, tiny_tokenizer, rows, tmp_path):
    lengths = np.cumsum([len(tiny_tokenizer(document)["input_ids"]) for document in documents])
    same = int(np.searchsorted(lengths, FITTED * SEQ_LEN)) + 1
    other = tmp_path / "other.txt"
    changed = [*documents[:same], *reversed(documents[same:])]
    other.write_text("\n<|endoftext|>\n".join(changed))
    for options in (
        {"kind": "filter", "blocks": [0, 2]},
        {"kind": "folded", "blocks": [1]},
        {"kind": "affine", "count": 2},
        {"kind": "drop", "count": 1, "select": "influence"},
    ):
        one, two = linearize(build("llama"), **options), linearize(build("llama"), other, **options)
        assert one.plan.data.fingerprint != two.plan.data.fingerprint
        assert one.plan.replacements == two.plan.replacements
        assert one.plan.selection.scores == two.plan.selection.scores
        assert one.plan.selection.loss_before != two.plan.selection.loss_before
        for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert one.plan.settings["fitted_rows"] == FITTED


@pytest.mark.parametrize("limit", [{"max_loss_increase": 100.0}, {"budget": 0.01}])
def test_nothing_larger_is_put_in_where_the_model_is_to_be_smaller(limit, model, linearize):
    asked = {"kind": "filter", "target": "attention"}
    with pytest.raises(RequestError, match=r"smaller, got filter, .* of 3,480 parameters for 1,\d\d\d|up to 0.0%"):
        linearize(model, **asked, **limit)
    assert linearize(model, **asked, count=1).plan.warnings[-1].startswith("larger than what they replace")
    narrow = copy.deepcopy(model.config)
    narrow.intermediate_size = 4
    model.model.layers[2].mlp = type(model.model.layers[2].mlp)(narrow)
    made = linearize(model, kind="affine", target="mlp", select="loss" if "budget" in limit else "score", **limit)
    assert 2 not in chosen(made)
    plan = made.plan
    assert plan.warnings[-1] == "blocks [2] were not considered: their replacements would be larger than they are"
    assert plan.parameters.after < plan.parameters.before


@pytest.mark.parametrize("options", [{"kind": "affine"}, {"kind": "bounded", "window": 3, "sinks": 1, "centroids": 2}])
@torch.no_grad()
def test_what_moves_predictions_least_is_replaced_first(options, linearize, rows):
    """The divergences are those of models with one attention replaced, on the rows that nothing is fitted on."""
    model = build("llama")
    made = linearize(model, target="attention", select="divergence", count=2, **options)
    found = {int(index): value for index, value in made.plan.selection.scores.items()}
    for index in range(3):
        alone = linearize(model, target="attention", blocks=[index], **options).model
        assert found[index] == pytest.approx(divergence_by_hand(model, alone, rows[FITTED:]), rel=1e-3)
    assert [one.blocks[0] for one in made.plan.replacements] == sorted(sorted(found, key=found.get)[:2])
