"""The kind `Mean` computes the mean of its target, and nothing explains less."""

import pytest
import torch

from tests.families import WIDTH, build
from tests.linearization.conftest import FITTED
from tests.linearization.test_fit import CLOSE, run


@pytest.mark.parametrize("target", ["block", "attention", "mlp"])
def test_it_is_the_mean_of_its_target(target, linearize, rows):
    model = build("llama", torch.float64)
    made = linearize(model, kind="mean", target=target, blocks=[1])
    [replacement] = made.plan.replacements
    part = {"block": "model.layers.1", "attention": "model.layers.1.self_attn", "mlp": "model.layers.1.mlp"}[target]
    seen = []
    handle = model.get_submodule(part).register_forward_hook(
        lambda module, args, kwargs, output: seen.append(
            (output[0] if isinstance(output, tuple) else output)
            - (0 if target != "block" else args[0] if args else kwargs["hidden_states"])
        ),
        with_kwargs=True,
    )
    with torch.no_grad(), handle:
        model(rows[:FITTED], use_cache=False)
    [bias] = made.model.get_submodule(part).parameters()
    torch.testing.assert_close(bias.detach(), seen[0].mean((0, 1)), rtol=0, atol=CLOSE)
    assert replacement.fit.held_out == pytest.approx(0, abs=1e-12)
    assert replacement.fit.parameters_after == WIDTH
    assert str(replacement.by) == "mean"


def test_it_makes_good_for_what_was_replaced_before_it(linearize, rows):
    model = build("llama", torch.float64)
    made = linearize(model, kind="mean", blocks=[0, 1])
    with torch.no_grad():
        original, edited = run(model, rows[:FITTED]), run(made.model, rows[:FITTED])
    for index in "01":  # on average the edited model's stream is the original's
        torch.testing.assert_close(edited[index][1].mean((0, 1)), original[index][1].mean((0, 1)), rtol=0, atol=CLOSE)


def test_any_affine_map_is_at_least_as_good(linearize):
    model = build("llama")
    mean, affine = (
        linearize(model, kind=kind, blocks=[1], target="attention").plan.replacements[0].fit.held_out
        for kind in ("mean", "affine")
    )
    assert mean < affine


def test_its_checkpoint_loads_and_decodes(exported, linearized, load):
    options = {"blocks": (1,), "kind": "mean", "target": "attention"}
    loaded, made = load(exported("llama", **options)), linearized("llama", **options)
    with torch.no_grad():
        assert torch.equal(loaded(made.rows).logits, made.model(made.rows).logits)
    generate = {"max_new_tokens": 8, "do_sample": False}
    cached, uncached = (loaded.generate(made.rows[:, :9], use_cache=use, **generate) for use in (True, False))
    assert torch.equal(cached, uncached)
