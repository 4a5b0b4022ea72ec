"""The kind `Bounded`: windows are allotted where they help, far summaries fit what can be, and gaps are mapped."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CohereConfig

from rectilinear import Bounded, RequestError
from rectilinear.linearization.allotment import allot
from rectilinear.linearization.far_fit import Yardstick, fit_far, place_centroids, prepare, window_errors
from rectilinear.linearization.windows import Survey
from rectilinear.models.attention_record import AttentionInputs, Recorder, find_output_map, find_rotary
from rectilinear.models.bounded_attention import BoundedAttention
from rectilinear.models.bounded_step import Terms
from rectilinear.models.far_summary import FarSummary, rotation_of, turned
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import swapped
from tests.families import GROUPED, build, token_rows

SIZE = {"target": "attention", "window": 3, "sinks": 1, "centroids": 2}


def survey(errors, grid):
    return Survey("", tuple(grid), torch.tensor(errors), None, {}, 4)


@given(
    st.lists(
        st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=2, max_size=2), min_size=1, max_size=3
    ),
    st.integers(1, 16),
)
def test_windows_are_of_the_grid_and_of_the_mean_at_most(errors, mean):
    grid = (1, 2, 4, 16)
    windows = allot([survey(each, grid) for each in errors], mean)
    assert all(window in grid for each in windows for window in each)
    assert sum(map(sum, windows)) <= mean * sum(map(len, windows))


def test_the_head_that_loses_most_gets_the_longest_window():
    still, hungry = [0.1, 0.1, 0.1], [1.0, 0.5, 0.0]
    assert allot([survey([still, hungry], (1, 2, 7)), survey([still, still], (1, 2, 7))], 3) == [[1, 7], [1, 1]]


def inputs_of(rows=2, heads=4, shared=2, tokens=40, width=6, **changes):
    generator = torch.Generator().manual_seed(0)
    states = {"query": heads, "key": heads // shared, "value": heads // shared}
    made = {name: torch.randn(rows, count, tokens, width, generator=generator) for name, count in states.items()}
    positions = torch.arange(tokens).expand(rows, -1)
    return AttentionInputs(**{**made, **changes}, terms=Terms(0.4), positions=positions, real=None, starts=None)


@torch.no_grad()
def fitted(inputs, centroids, window=5, sinks=2, **rotary):
    heads, width = inputs.query.shape[1], inputs.query.shape[-1]
    far = FarSummary(heads, heads // inputs.key.shape[1], centroids, width, **rotary)
    rows = [prepare(inputs)]
    yardstick = Yardstick(None, [torch.ones(inputs.query.shape[::2])])
    place_centroids(rows, far.there(), window, sinks, seed=0)
    return fit_far(rows, far, window, sinks, yardstick).errors, window_errors(rows, window, sinks, yardstick)


@pytest.mark.parametrize("centroids", [1, 3])
def test_far_tokens_of_equal_keys_are_summed_up_without_loss(centroids):
    """All that is far weighs the same: its mean value is the whole truth, and its mass is linear in what is known."""
    inputs = inputs_of()
    key = inputs.key[:, :, :1].expand(inputs.key.shape).clone()
    found, forgotten = fitted(inputs_of(key=key), centroids)
    assert found.max() < 1e-3 * forgotten.min()


def test_a_far_summary_is_better_than_none_and_more_centroids_than_one():
    errors = {centroids: fitted(inputs_of(), centroids) for centroids in (1, 4)}
    assert (errors[1][0] < errors[1][1]).all()
    assert errors[4][0].sum() < errors[1][0].sum()


@pytest.mark.parametrize("layout", ["halves", "pairs"])
def test_rotary_embeddings_are_undone(layout):
    """Queries and keys that a rotary embedding has turned give the centroids that they give without it."""
    plain, frequencies = inputs_of(), [0.3, 0.1]
    cos, sin = rotation_of(plain.positions, frequencies, layout)
    turn = {name: turned(getattr(plain, name), cos[:, None], sin[:, None], layout) for name in ("query", "key")}
    far = FarSummary(4, 2, 2, 6, layout, frequencies).there()
    for name, states in turn.items():
        torch.testing.assert_close(far.without_rotation(states, plain.positions), getattr(plain, name))


ROTARIES = [("llama", "halves", 3), ("gpt_neox", "halves", 1), ("cohere", "pairs", 3), ("gpt2", None, 0)]


@pytest.mark.parametrize(("family", "layout", "count"), ROTARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_layout_of_an_embedding_and_what_follows_the_heads_are_found(family, layout, count, dtype):
    other = AutoModelForCausalLM.from_config(CohereConfig(**GROUPED), dtype=dtype).eval()
    model = other if family == "cohere" else build(family, dtype)
    names = {"gpt_neox": "gpt_neox.layers.1.attention", "gpt2": "transformer.h.1.attn"}
    path = names.get(family, "model.layers.1.self_attn")
    attention = model.get_submodule(path)
    recorder = Recorder(attention, PaddingMask())
    with swapped(model, {path: recorder.module}):
        model(token_rows(2), use_cache=False)
    rotary = find_rotary(recorder, recorder.take())
    assert (rotary and rotary.layout, len(rotary.frequencies) if rotary else 0) == (layout, count)
    if family == "llama":
        assert rotary.frequencies == pytest.approx([10000 ** (-place / 3) for place in range(3)], abs=2e-3)
    last = {"gpt_neox": "dense", "gpt2": "c_proj"}.get(family, "o_proj")
    weight = getattr(attention, last).weight
    assert torch.equal(find_output_map(recorder), weight if family == "gpt2" else weight.T)


@torch.no_grad()
def test_each_step_is_nearer_to_the_original_on_the_rows_that_it_was_fitted_on(linearize, rows):
    model, ids = build("llama"), rows[:58]
    nothing = {**{name: value for name, value in SIZE.items() if name != "centroids"}, "far": "none"}
    ways = ({**nothing, "uniform": True}, nothing, {**SIZE, "refit": False}, SIZE)
    wanted, distances = model(ids, use_cache=False).logits, []
    for way in ways:
        made = linearize(model, kind="bounded", blocks=[0, 1, 2], **way).model
        distances.append(float((made(ids, use_cache=False).logits - wanted).norm()))
    assert distances[3] < distances[2] < distances[1] < distances[0]


def test_a_plan_says_which_windows_and_makes_the_same_again(linearize, rows, tmp_path):
    made = linearize(build("llama"), kind="bounded", blocks=[0, 2], **SIZE)
    windows = [window for one in made.plan.replacements for window in one.fit.windows]
    assert (len(windows), sum(windows) <= 3 * 4) == (4, True)
    assert {one.fit.features for one in made.plan.replacements} == {6 * 6 + 1}
    made.plan.save(tmp_path)
    again = linearize(build("llama"), plan=tmp_path / "plan.json")
    with torch.no_grad():
        assert torch.equal(again.model(rows[:2]).logits, made.model(rows[:2]).logits)
    assert [one.by for one in again.plan.replacements] == [Bounded(window=3, sinks=1, centroids=2)] * 2


def test_attentions_with_a_window_of_their_own_get_no_sums(linearize):
    made = linearize(build("gemma3"), kind="bounded", blocks=[0, 1, 2], **SIZE)
    attentions = [module for module in made.model.modules() if isinstance(module, BoundedAttention)]
    assert [each.far_summary is None for each in attentions] == [True, False, True]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"blocks": [1], "window": 40},
            "expected rows of at least 81 tokens to fit a `window` of 40 and 1 `sinks` on, got 32",
        ),
        ({"budget": 0.1, "window": 3}, "expected no `budget` of parameters with `kind=bounded`"),
        ({"blocks": [1], "target": "mlp"}, "only attention sees a window; try `target=attention`"),
        ({"blocks": [1], "centroids": 1}, "centroids"),
    ],
)
def test_what_cannot_be_is_refused(asked, says, linearize):
    with pytest.raises(RequestError, match=says):
        linearize(build("llama"), kind="bounded", **{"target": "attention", "sinks": 1, **asked})


def test_windows_are_of_the_mean_where_attentions_are_chosen_one_after_the_other(linearize, rows):
    """What was fitted before is fitted again where another one now gets some of its tokens."""
    model = build("llama")
    with torch.no_grad():
        # So that they are chosen from the first to the last, and the last takes of what the first one had.
        for scale, block in zip((1.0, 0.2, 5.0), model.model.layers, strict=True):
            block.self_attn.o_proj.weight.mul_(scale)
    made = linearize(model, kind="bounded", max_loss_increase=100.0, select="loss", **SIZE)
    assert [*made.plan.selection.scores] == ["0", "1", "2"]
    windows = [window for one in made.plan.replacements for window in one.fit.windows]
    assert (len(windows), sum(windows) <= 3 * 6) == (6, True)
    again = linearize(model, kind="bounded", blocks=[0, 1, 2], **SIZE).model
    with torch.no_grad():
        torch.testing.assert_close(made.model(rows[:2]).logits, again(rows[:2]).logits)


@torch.no_grad()
def test_errors_of_attentions_are_weighed_by_how_far_predictions_move(linearize, rows, monkeypatch):
    """At the mean window the errors of an attention's heads add up to the divergence with it alone bounded."""
    model, seen = build("llama"), []
    monkeypatch.setattr(
        "rectilinear.linearization.allotment.allot", lambda surveys, mean: seen.extend(surveys) or allot(surveys, mean)
    )
    linearize(model, kind="bounded", blocks=[0, 1, 2], **SIZE)
    wanted = model(rows[:58], use_cache=False).logits.double().log_softmax(-1)
    for index, one in enumerate([*seen]):
        alone = linearize(model, kind="bounded", blocks=[index], **SIZE, uniform=True, refit=False).model
        moved = alone(rows[:58], use_cache=False).logits.double().log_softmax(-1)
        divergence = float((wanted.exp() * (wanted - moved)).sum(-1).mean())
        assert float(one.errors[:, one.grid.index(3)].sum()) == pytest.approx(divergence, rel=1e-3)


def test_healing_leaves_the_weights_of_bounded_attentions_alone(linearize, tmp_path):
    model = build("llama")
    linearize(model, kind="affine", target="attention", blocks=[0]).plan.save(tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["replacements"].append({"kind": "bounded", "blocks": [2], **SIZE})
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    healed, unhealed = (linearize(model, plan=tmp_path / "plan.json", heal_steps=steps).model for steps in (5, 0))
    bounded, others = healed.state_dict(), unhealed.state_dict()
    moved = {name for name, tensor in bounded.items() if not torch.equal(tensor, others[name])}
    assert moved == {"model.layers.0.self_attn.map.0.weight", "model.layers.0.self_attn.map.0.bias"}


def test_a_refit_that_explains_nothing_is_none(linearize):
    made = linearize(build("llama"), kind="bounded", blocks=[1], folds=1, **SIZE)
    [one] = made.plan.replacements
    assert (one.fit.features, one.fit.held_out) == (0, None)
    assert not made.plan.warnings
