"""Plans: what they refuse, and that they can be written, read, edited and carried out again."""

import json
import re

import pytest
import torch

from rectilinear import Affine, Drop, Filter, Plan, RequestError
from rectilinear.linearization.check_replacements import check_replacements
from rectilinear.linearization.replacement import Replacement
from tests.families import BLOCKS, WIDTH, build


def plans(*replacements):
    return [Replacement(**{"kind": "affine", **replacement}) for replacement in replacements]


GOOD = {
    "nothing": [],
    "all of them": [{"blocks": (0,)}, {"blocks": (1,)}, {"blocks": (2,)}],
    "shared": [{"blocks": (0, 1)}],
    "both parts": [{"blocks": (1,), "target": "attention"}, {"blocks": (1,), "target": "mlp"}],
    "one of each": [{"blocks": (0,), "kind": "filter", "taps": 3}, {"blocks": (2,), "kind": "drop"}],
    "folded": [{"blocks": (1, 2), "kind": "folded"}],
    "folded after an attention": [
        {"blocks": (0,), "target": "attention"},
        {"blocks": (1,), "kind": "folded"},
    ],
    "rank": [{"blocks": (0,), "rank": WIDTH - 1}],
}
BAD = {
    "beyond": ([{"blocks": (3,)}], "blocks from 0 to 2, got 3"),
    "below": ([{"blocks": (-1,)}], "blocks from 0 to 2, got -1"),
    "twice": ([{"blocks": (1,)}, {"blocks": (1,)}], "replaced once, got block 1 twice"),
    "twice in one": ([{"blocks": (1, 1)}], "consecutive|twice"),
    "whole and part": ([{"blocks": (1,)}, {"blocks": (1,), "target": "mlp"}], "got block 1 twice"),
    "part and whole": ([{"blocks": (1,), "target": "attention"}, {"blocks": (0, 1)}], "got block 1 twice"),
    "part twice": ([{"blocks": (1,), "target": "mlp"}, {"blocks": (1,), "target": "mlp"}], "got block 1 twice"),
    "apart": ([{"blocks": (0, 2)}], "expected consecutive blocks"),
    "backwards": ([{"blocks": (1, 0)}], "expected consecutive blocks"),
    "merged attentions": ([{"blocks": (0, 1), "target": "attention"}], "only blocks merge"),
    "filter of an MLP": ([{"blocks": (0,), "kind": "filter", "target": "mlp"}], "try `kind=affine`"),
    "folded attention": ([{"blocks": (1,), "kind": "folded", "target": "attention"}], "try `target=block`"),
    "folded MLP": ([{"blocks": (1,), "kind": "folded", "target": "mlp"}], "try `target=block`"),
    "full rank": ([{"blocks": (0,), "rank": WIDTH}], f"`rank` below the width of {WIDTH}"),
    "folded first": ([{"blocks": (0,), "kind": "folded"}], "a block before folded block 0 that stays, got none"),
    "folded into nothing": (
        [{"blocks": (0,), "kind": "drop"}, {"blocks": (1,), "kind": "folded"}],
        "got block 0 replaced",
    ),
    "folded into a stand-in": (
        [{"blocks": (1,), "kind": "folded"}, {"blocks": (0,), "target": "mlp"}],
        "got block 0 replaced",
    ),
    "all dropped": ([{"blocks": (0, 1, 2), "kind": "drop"}], "at least one of 3 blocks to stay"),
}


UNREADABLE = {
    "rank of nothing": ({"kind": "drop", "rank": 2}, "expected no `rank` with `kind=drop`"),
    "taps of a map": ({"taps": 2}, "expected no `taps` with `kind=affine`"),
    "rates of a map": ({"rates": (1.0,)}, "expected no `rates` with `kind=affine`"),
    "rate 0": ({"kind": "filter", "rates": (0.0,)}, "`rates` above 0 and up to 1"),
    "rate 2": ({"kind": "filter", "rates": (1.0, 2.0)}, "`rates` above 0 and up to 1"),
    "rate nan": ({"kind": "filter", "rates": (float("nan"),)}, "`rates` above 0 and up to 1"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_options_that_a_kind_does_not_take_are_refused(name):
    options, says = UNREADABLE[name]
    with pytest.raises(ValueError, match=says):
        plans({"blocks": (0,), **options})


def test_options_of_other_kinds_may_say_that_there_are_none():
    none = {"rank": None, "taps": 0, "rates": []}
    [written] = plans({"blocks": (0,), **none})
    assert written == Replacement(by=Affine(), blocks=(0,))
    assert written.model_dump() == {"kind": "affine", "target": "block", "blocks": [0], **none, "fit": None}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_done_passes(name):
    check_replacements(plans(*GOOD[name]), BLOCKS, WIDTH)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_refused(name):
    replacements, says = BAD[name]
    with pytest.raises(RequestError, match=says) as raised:
        check_replacements(plans(*replacements), BLOCKS, WIDTH)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [{"kind": "filter", "rank": 4, "rates": (1.0, 0.5)}, {"kind": "folded"}, {"kind": "drop"}],
    ids=["filter", "folded", "drop"],
)
def test_a_plan_is_carried_out_again_from_its_file(options, linearize, tmp_path):
    made = linearize(build("llama"), blocks=[1, 2] if options["kind"] != "drop" else [1], **options)
    written = made.plan.save(tmp_path)
    assert Plan.load(tmp_path / "plan.json") == made.plan
    assert Plan.load(tmp_path) == made.plan
    again = linearize(build("llama"), plan=tmp_path / "plan.json")
    assert again.plan.replacements == made.plan.replacements
    assert again.plan.parameters == made.plan.parameters
    assert again.plan.selection.loss_after == made.plan.selection.loss_after
    for one, other in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert written is None or str(written).endswith("plan.json")


def test_a_plan_that_was_edited_by_hand(linearize, tmp_path):
    made = linearize(build("llama"), blocks=[1], kind="affine", rank=4)
    made.plan.save(tmp_path)
    recipe = json.loads((tmp_path / "plan.json").read_text())
    recipe["replacements"][0].update(rank=7, blocks=[2])
    recipe["replacements"].insert(0, {"kind": "drop", "target": "attention", "blocks": [0]})
    (tmp_path / "plan.json").write_text(json.dumps(recipe))
    again = linearize(build("llama"), plan=tmp_path / "plan.json")
    assert [(r.by, r.target, r.blocks) for r in again.plan.replacements] == [
        (Drop(), "attention", (0,)),
        (Affine(rank=7), "block", (2,)),
    ]
    expected = linearize(build("llama"), plan=Plan.model_validate(recipe))
    for one, other in zip(expected.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_filter_that_names_no_taps_and_rates_is_the_usual_one(linearize, tmp_path):
    made = linearize(build("llama"), blocks=[1])
    recipe = json.loads(made.plan.to_json())
    recipe["replacements"] = [{"kind": "filter", "blocks": [1]}]
    (tmp_path / "plan.json").write_text(json.dumps(recipe))
    assert linearize(build("llama"), plan=tmp_path).plan.replacements == made.plan.replacements
    none = Replacement(kind="filter", blocks=(1,), taps=0, rates=())
    assert none.by == Filter(taps=0, rates=())


def test_a_plan_says_what_was_done_to_what(linearize):
    model = build("llama")
    made = linearize(model, blocks=[0, 2], kind="filter", rank=4, taps=2)
    plan = made.plan
    assert (plan.model.num_blocks, plan.model.width) == (BLOCKS, WIDTH)
    assert plan.parameters.before == sum(parameter.numel() for parameter in model.parameters())
    assert plan.parameters.after == sum(parameter.numel() for parameter in made.model.parameters())
    block = sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    size = WIDTH * (1 + 1 + 2 + 2)  # x, r, two taps, two means
    for replacement in plan.replacements:
        assert replacement.by == Filter(rank=4, taps=2, rates=(1.0, 0.8))
        assert replacement.fit.parameters_before == block
        assert replacement.fit.parameters_after == 4 * size + 4 * WIDTH + WIDTH
        assert replacement.fit.ridge is not None
        assert 0 < replacement.fit.held_out < 1
    assert plan.selection.select == "by hand"


def test_warnings_say_what_to_do(linearize):
    def warned(**options):
        return linearize(build("llama"), kind="affine", **options).plan.warnings

    # 24 features, 1856 tokens to fit on; 928 would not do for 48.
    assert warned(blocks=[0, 2]) == ()
    few, none = warned(blocks=[0, 2], max_tokens=448, folds=1)
    assert few.startswith("few tokens: 416 for up to 24 features (block 0, block 2), ")
    assert "20 a feature would do: 480 to fit on" in few
    assert "a single fold: none is held out to choose a ridge by" in none
    assert warned(blocks=[0, 2], max_tokens=576) == ()  # 512 to fit on
    [one] = warned(blocks=[1], max_tokens=64, seq_len=64, folds=4)[1:]
    assert "a single fold" in one
    assert linearize(build("llama"), kind="drop", blocks=[1], folds=1, max_tokens=64).plan.warnings == ()


def test_a_stand_in_that_is_larger_is_warned_of_and_the_rank_it_names_is_not(linearize):
    asked = {"target": "attention", "taps": 1, "rates": (1.0,)}
    plan = linearize(build("llama"), blocks=[0, 1], **asked).plan
    [grown] = plan.warnings
    before, after = plan.replacements[0].fit.parameters_before, plan.replacements[0].fit.parameters_after
    assert before < after == (3 * WIDTH + 1) * WIDTH
    assert f"parameters {before:,} -> {after:,} (attention 0), {before:,} -> {after:,} (attention 1); `rank=" in grown
    rank = int(re.search(r"`rank=(\d+)` or less", grown)[1])
    assert linearize(build("llama"), blocks=[0], rank=rank, **asked).plan.warnings == ()
    assert len(linearize(build("llama"), blocks=[0], rank=rank + 1, **asked).plan.warnings) == 1


def test_a_plan_for_another_model_is_refused(linearize):
    plan = linearize(build("llama"), blocks=[1], kind="affine").plan
    other = build("llama")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(RequestError, match="expected a plan for this model"):
        linearize(other, plan=plan)
    with pytest.raises(RequestError, match="was it made with another `dtype`"):
        linearize(build("llama", torch.bfloat16), plan=plan)


def test_a_plan_with_what_cannot_be_done_is_refused(linearize, tmp_path):
    linearize(build("llama"), blocks=[1], kind="affine").plan.save(tmp_path)
    text = (tmp_path / "plan.json").read_text()
    for change, says in (
        ({"blocks": [7]}, "blocks from 0 to 2, got 7"),
        ({"blocks": []}, r"plan.json: .*replacements.0.blocks' .* at least 1 item .*, got \[\]"),
        (
            {"kind": "magic"},
            r"replacement of \[1\]: expected 'kind' to be one of affine, bounded, drop, .*, got 'magic'",
        ),
        (
            {"kind": "filter", "taps": -1},
            r"of \[1\]: expected 'taps' .* greater than or equal to 0, got -1",
        ),
        ({"taps": -1}, r"replacement of \[1\]: expected no 'taps' with 'kind=affine'"),
        ({"rank": "half"}, r"replacement of \[1\]: expected 'rank' .* integer, got 'half'"),
        ({"colour": "red"}, r"replacement of \[1\]: expected no 'colour' with 'kind=affine'"),
    ):
        recipe = json.loads(text)
        recipe["replacements"][0].update(change)
        (tmp_path / "plan.json").write_text(json.dumps(recipe))
        with pytest.raises(RequestError, match=says) as raised:
            linearize(build("llama"), plan=tmp_path / "plan.json")
        assert "\n" not in str(raised.value)
    (tmp_path / "plan.json").write_text(text.replace('"kind"', '"sort"'))
    with pytest.raises(RequestError, match=r"replacement of \[1\]: expected 'kind' to be one of .*, got None\)$"):
        linearize(build("llama"), plan=tmp_path / "plan.json")
    for content in ("no JSON", "[]", "{}", '{"schema": "rectilinear.profile/1"}'):
        (tmp_path / "plan.json").write_text(content)
        with pytest.raises(RequestError, match="plan"):
            linearize(build("llama"), plan=tmp_path / "plan.json")
    with pytest.raises(RequestError, match="none"):
        linearize(build("llama"), plan=tmp_path / "none.json")
