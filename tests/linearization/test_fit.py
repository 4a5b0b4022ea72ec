"""Fits in sequence, against float64 computations on stored activations."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rectilinear import JobError, RequestError
from rectilinear.core.maps import RIDGES
from rectilinear.linearization.plan import Plan
from tests.families import BLOCKS, build
from tests.linearization.conftest import FITTED, SEQ_LEN
from tests.models.test_linear_block import naive
from tests.oracle import least_squares

#: Activations and features are float64.
CLOSE = 1e-6


@torch.no_grad()
def run(model, rows, replaced=None):
    """Input and output of each block and attention, with some modules' outputs replaced by functions of their input."""
    seen = {}
    names = {f"model.layers.{i}{part}": f"{part.strip('.')}{i}" for i in range(BLOCKS) for part in ("", ".self_attn")}
    there = {path for path, _ in model.named_modules()} & names.keys()

    def hook(name):
        def after(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            if name in (replaced or {}):
                new = replaced[name](x)
                output = (new, None) if isinstance(output, tuple) else new
            seen[name] = x, output[0] if isinstance(output, tuple) else output
            return output

        return after

    handles = [model.get_submodule(path).register_forward_hook(hook(names[path]), with_kwargs=True) for path in there]
    model(rows, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def flat(x):
    return x.flatten(0, 1).double().numpy()


def mapped(weight, bias, features=lambda x: x.double()):
    return lambda x: features(x) @ torch.from_numpy(weight) + torch.from_numpy(bias)


def filtered(x, **options):
    return naive(x, torch.ones(x.shape[:2]), **options)


@pytest.mark.parametrize(
    ("kind", "target", "rank", "blocks"),
    [
        ("affine", "block", None, (0, 1)),
        ("affine", "block", 3, (0, 2)),
        ("affine", "attention", 3, (0, 1)),
        ("filter", "block", 3, (0, 1)),
        ("filter", "attention", None, (0, 2)),
    ],
)
def test_inputs_are_of_the_edited_model_and_targets_of_the_original(kind, target, rank, blocks, linearize, rows):
    model = build("llama", torch.float64)
    options = {"taps": 1, "rates": (1.0, 0.5)} if kind == "filter" else {}
    made = linearize(model, blocks=blocks, kind=kind, target=target, rank=rank, **options)
    present = {"present": target == "block"} if kind == "filter" else {}
    part, residual = ("self_attn", 0) if target == "attention" else ("", 1)

    def features(x):
        return filtered(x, **options, **present)

    original, replaced = run(model, rows[:FITTED]), {}
    for replacement in made.plan.replacements:
        name = f"{part}{replacement.blocks[0]}"
        now, index = run(model, rows[:FITTED], replaced), str(replacement.blocks[0])
        x, y = now[name][0], original[name][1]
        if target == "attention":  # what is added to the stream is to make good for what the stream lacks already
            y = y + original[index][0] - now[index][0]
        weight, bias = least_squares(flat(features(x)), flat(y - residual * x), replacement.fit.ridge, rank)
        fitted = mapped(weight, bias, features)
        replaced[name] = lambda x, fitted=fitted: fitted(x) + residual * x
        assert replacement.fit.tokens == FITTED * SEQ_LEN
    expected = run(model, rows, replaced)
    got = run(made.model, rows)
    last = f"{part}{blocks[-1]}"
    scale = float(expected[last][1].abs().max())
    torch.testing.assert_close(got[last][1], expected[last][1], rtol=0, atol=CLOSE * scale)

    # Fits that do not know of each other would be others.
    apart = {}
    for name in replaced:
        x, y = original[name]
        alone = mapped(*least_squares(flat(features(x)), flat(y - residual * x), rank=rank), features)
        apart[name] = lambda x, alone=alone: alone(x) + residual * x
    assert (run(model, rows, apart)[last][1] - expected[last][1]).abs().max() > 10 * CLOSE * scale


def test_the_record_says_what_held_out(linearize, rows):
    model = build("llama", torch.float64)
    fit = linearize(model, blocks=[1], kind="affine").plan.replacements[0].fit
    x, y = (flat(part) for part in run(model, rows[:FITTED])["1"])
    folds = np.repeat(np.arange(FITTED) * 4 // FITTED, SEQ_LEN)
    scores = {}
    for ridge in RIDGES:
        unexplained = energy = 0.0
        for fold in range(4):
            inside = folds == fold
            weight, bias = least_squares(x[~inside], (y - x)[~inside], ridge)
            unexplained += np.sum((x[inside] @ weight + bias - (y - x)[inside]) ** 2)
            energy += np.sum(((y - x)[inside] - (y - x)[~inside].mean(0)) ** 2)
        scores[ridge] = 1 - unexplained / energy
    assert fit.held_out == pytest.approx(max(scores.values()), abs=1e-5)
    assert scores[fit.ridge] == pytest.approx(max(scores.values()), abs=1e-5)


def test_a_folded_map_is_that_of_the_projection_before(linearize, rows):
    model = build("llama", torch.float64)
    made = linearize(model, blocks=[1], kind="folded")
    folded = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, args, y: folded.append(y.detach()))
    seen = run(model, rows[:FITTED])
    handle.remove()
    stream, target = seen["0"][1] - folded[0], seen["1"][1]
    weight, _ = least_squares(
        flat(folded[0]), flat(target - stream), made.plan.replacements[0].fit.ridge, intercept=False
    )
    expected = torch.from_numpy(weight).T @ model.model.layers[0].mlp.down_proj.weight.detach()
    got = made.model.model.layers[0].mlp.down_proj.weight.detach()
    torch.testing.assert_close(got, expected, rtol=0, atol=CLOSE * float(expected.abs().max()))


def test_a_folded_map_has_a_bias_where_the_configuration_has_a_place_for_one(linearize, rows, tmp_path):
    """In a stock checkpoint, whose other biases are zero; and the record counts all of them."""
    model = build("llama", torch.float64)
    made = linearize(model, blocks=[1], kind="folded", bias=True, out=tmp_path / "out")
    folded = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, args, y: folded.append(y.detach()))
    seen = run(model, rows[:FITTED])
    handle.remove()
    stream, target, (one,) = seen["0"][1] - folded[0], seen["1"][1], made.plan.replacements
    weight, bias = least_squares(flat(folded[0]), flat(target - stream), one.fit.ridge)
    expected = torch.from_numpy(weight).T @ model.model.layers[0].mlp.down_proj.weight.detach()
    layers = made.model.model.layers
    got = layers[0].mlp.down_proj
    torch.testing.assert_close(got.weight.detach(), expected, rtol=0, atol=CLOSE * float(expected.abs().max()))
    torch.testing.assert_close(got.bias.detach(), torch.from_numpy(bias), rtol=0, atol=CLOSE * float(abs(bias).max()))
    biases = {name: each for name, each in made.model.state_dict().items() if name.endswith(".bias")}
    assert {name for name, each in biases.items() if each.any()} == {"model.layers.0.mlp.down_proj.bias"}
    assert len(biases) == 3 * len(layers)
    gone = sum(each.numel() for each in model.model.layers[1].parameters())
    kept = [layer for index in (0, 2) for layer in linear(model.model.layers[index].mlp)]
    assert made.plan.parameters.after == made.plan.parameters.before - gone + sum(each.out_features for each in kept)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(again).__name__ == "LlamaForCausalLM"
    assert again.config.mlp_bias
    assert not again.config.attention_bias
    torch.testing.assert_close(again(rows[:2]).logits, made.model(rows[:2]).logits)
    replayed = linearize(build("llama", torch.float64), plan=made.plan)
    torch.testing.assert_close(replayed.model(rows[:2]).logits, made.model(rows[:2]).logits)


def linear(part):
    return [module for module in part.modules() if isinstance(module, torch.nn.Linear)]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_projection_that_has_a_bias_is_folded_into_as_it_is(linearize, rows, family):
    plain, asked = (linearize(build(family), blocks=[1], kind="folded", **bias).model for bias in ({}, {"bias": True}))
    assert asked.config.to_dict() == plain.config.to_dict()
    torch.testing.assert_close(asked(rows[:2]).logits, plain(rows[:2]).logits)


def test_a_bias_is_refused_where_the_configuration_has_no_place_for_one(linearize):
    with pytest.raises(RequestError, match=r"place for a bias in model\.layers\.1\.mlp\.down_proj, got MistralConfig"):
        linearize(build("mistral"), blocks=[2], kind="folded", bias=True)


def test_folding_with_a_bias_goes_with_other_replacements(linearize, rows, tmp_path):
    """A budget counts the biases of all that stays, once; stand-ins and removed blocks have none."""
    model = build("llama", num_hidden_layers=5)
    before = sum(each.numel() for each in model.parameters())
    choices = "folded:bias=true,affine"
    made = linearize(model, choices=choices, budget="parameters=70%", sweep="parameters=60%", trials=6)
    after = sum(each.numel() for each in made.model.parameters())
    assert after <= 0.7 * before
    assert next(point.parameters for point in made.plan.selection.sweep if point.taken) == after
    some = {"replacements": [{"kind": "folded", "bias": True, "blocks": [3]}, {"kind": "affine", "blocks": [1]}]}
    edited = made.plan.model_copy(update={"replacements": Plan.model_validate(dump(made.plan) | some).replacements})
    both = linearize(build("llama", num_hidden_layers=5), plan=edited, out=tmp_path / "both")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "both", trust_remote_code=True)
    torch.testing.assert_close(again(rows[:2]).logits, both.model(rows[:2]).logits)
    assert again.model.layers[2].mlp.down_proj.bias.any()


def test_a_saving_is_kept_with_the_biases_that_come_along(linearize):
    model = build("llama", num_hidden_layers=8)
    before = sum(each.numel() for each in model.parameters())
    block = sum(each.numel() for each in model.model.layers[0].parameters())
    budget = (2 * block - 1) / before  # two blocks would do without biases
    made = linearize(model, kind="folded", bias=True, budget=budget)
    assert before - sum(each.numel() for each in made.model.parameters()) >= budget * before


def dump(plan):
    return json.loads(plan.to_json())


@pytest.mark.parametrize("size", [1, 3, 7, "auto"])
@pytest.mark.parametrize("kind", ["filter", "folded"])
def test_batches_change_nothing(kind, size, linearize):
    one = linearize(build("llama"), blocks=[1], kind=kind, batch_size=58)
    other = linearize(build("llama"), blocks=[1], kind=kind, batch_size=size)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(1.0, float(a.detach().abs().max())))


def test_merged_blocks_are_fitted_from_the_first_s_input_to_the_last_s_output(linearize, rows):
    model = build("llama", torch.float64)
    made = linearize(model, blocks=[1, 2], kind="affine", merge=True)
    ((replacement),) = made.plan.replacements
    seen = run(model, rows[:FITTED])
    x, y = seen["1"][0], seen["2"][1]
    weight, bias = least_squares(flat(x), flat(y - x), replacement.fit.ridge)
    linear = made.model.model.layers[1].map[0]
    scale = np.abs(weight).max()
    np.testing.assert_allclose(linear.weight.detach().T, weight, rtol=0, atol=CLOSE * scale)
    np.testing.assert_allclose(linear.bias.detach(), bias, rtol=0, atol=CLOSE * max(scale, np.abs(bias).max()))


@pytest.mark.parametrize("kind", ["filter", "folded"])
def test_activations_that_are_not_finite(kind, linearize):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] = float("nan")
    with pytest.raises(JobError, match=r"finite|NaN"):
        linearize(model, blocks=[1], kind=kind)
