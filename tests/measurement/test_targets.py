"""What attentions and MLPs add to the stream, against a float64 computation from what their modules take and give."""

import numpy as np
import pytest
import torch

import rectilinear
from rectilinear import Measurement, RequestError
from rectilinear.report.plots import plot_profile
from tests import oracle
from tests.families import build, token_rows

ALL = ("block", "attention", "mlp")


def passed(model, name, rows):
    """``[tokens, width]`` float64 of each block: what came into a module of it, and what came out."""
    found = []

    def note(module, args, kwargs, output):
        x = args[0] if args else kwargs["hidden_states"]
        y = output[0] if isinstance(output, tuple) else output
        found.append([part.detach().double().flatten(0, 1).numpy() for part in (x, y)])

    hooks = [
        block.get_submodule(name).register_forward_hook(note, with_kwargs=True)
        for block in rectilinear.models.find_blocks.find_blocks(model).blocks
    ]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(scope="module")
def model():
    return build("llama", torch.float64)


def test_scores_are_of_what_a_part_adds_from_what_it_is_given(model):
    rows = token_rows()
    profile = rectilinear.measure(model, [rows], Measurement(target=ALL))
    assert (profile.target, [*profile.parts]) == ("block", ["attention", "mlp"])
    folds = np.repeat(np.arange(24) * 4 // 24, 20)
    for target, name in (("attention", "self_attn"), ("mlp", "mlp")):
        for block, (x, d) in zip(profile.parts[target], passed(model, name, rows), strict=True):
            _, expected = oracle.in_sample(x, x + d)
            assert block.update_linearity.in_sample == pytest.approx(expected, abs=1e-9)
            held_out = oracle.held_out(x, x + d, folds)[:, 1].mean()
            assert block.update_linearity.held_out == pytest.approx(held_out, abs=1e-9)
            assert (block.linearity.in_sample, block.identity, block.update_ratio, block.cosine) == (None,) * 4


def test_several_targets_are_those_of_one_pass_each(model):
    rows = token_rows()
    together = rectilinear.measure(model, [rows], Measurement(target="mlp,block,attention"))
    assert [*together.scores] == ["mlp", "block", "attention"]
    for target, blocks in together.scores.items():
        alone = rectilinear.measure(model, [rows], Measurement(target=(target,)))
        assert (alone.target, alone.blocks, alone.parts) == (target, blocks, {})
    assert rectilinear.measure(model, [rows]).blocks == together.parts["block"]


def test_each_target_has_a_table_and_a_panel(model, tmp_path):
    profile = rectilinear.measure(model, [token_rows()], Measurement(target=ALL))
    blocks, attention, mlp = profile.tables()
    named = [table.title.split(": ")[1].split(" ")[0] for table in (blocks, attention, mlp)]
    assert named == ["3", "attentions", "MLPs"]
    assert "identity" not in [column.name for column in attention.columns]
    titles = [axes.get_title(loc="left") for axes in plot_profile(profile).axes]
    assert titles[2:] == ["Linearity of what attentions add", "Linearity of what MLPs add"]
    one = rectilinear.measure(model, [token_rows()], Measurement(target="attention"))
    assert [axes.get_title(loc="left") for axes in plot_profile(one).axes] == titles[2:3]
    assert rectilinear.Profile.load(profile.save(tmp_path)) == profile


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "mlp", "convention": "paper"}, "`target=block` with `convention=paper`"),
        ({"target": "mlp,mlp"}, "each `target` once, got mlp,mlp"),
        ({"target": "head"}, "'block', 'attention' or 'mlp'"),
    ],
)
def test_targets_that_cannot_be(settings, message):
    with pytest.raises(RequestError, match=message):
        Measurement(**settings)


def test_parts_that_are_not_to_be_found(model):
    with pytest.raises(RequestError, match="expected token ids to find the parts of blocks with, got other inputs"):
        rectilinear.measure(model, [{"inputs_embeds": torch.randn(2, 8, 24).double()}], Measurement(target="mlp"))
    with pytest.raises(RequestError, match="expected one `target` for dynamics, got block,mlp"):
        rectilinear.dynamics(["storyteller"], "stories", Measurement(target="block,mlp"))


def test_blocks_without_such_a_part_are_left_out_with_a_warning(model):
    class Twice(torch.nn.Module):
        """An MLP in two parts."""

        def __init__(self, mlp):
            super().__init__()
            self.one = mlp

        def forward(self, x):
            return x

    import copy

    other = copy.deepcopy(model)
    other.model.layers[1].mlp = Twice(torch.nn.Identity())
    profile = rectilinear.measure(other, [token_rows()], Measurement(target="mlp"))
    assert [block.index for block in profile.blocks] == [0, 2]
    assert any("mlp: blocks [1] are left out: expected one mlp in block 1" in line for line in profile.warnings)


def test_a_norm_after_a_part_is_in_what_it_adds():
    """Gemma 3 has a norm after its attention and one after its MLP, and adds what these give."""
    model, rows = build("gemma3", torch.float64), token_rows()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.model.layers:
            for norm in (block.post_attention_layernorm, block.post_feedforward_layernorm):
                norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
    profile = rectilinear.measure(model, [rows], Measurement(target="attention,mlp"))
    for target, part, norm in (
        ("attention", "self_attn", "post_attention_layernorm"),
        ("mlp", "mlp", "post_feedforward_layernorm"),
    ):
        pairs = zip(profile.scores[target], passed(model, part, rows), passed(model, norm, rows), strict=True)
        for block, (x, raw), (given, d) in pairs:
            assert np.allclose(raw, given)
            assert block.update_linearity.in_sample == pytest.approx(oracle.in_sample(x, x + d)[1], abs=1e-9)


def test_updates_that_are_small_beside_what_they_come_from_are_scored_in_bfloat16():
    model, rows = build("llama"), token_rows()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.mul_(1e-4)
            block.mlp.down_proj.weight.mul_(1e-4)
    exact = rectilinear.measure(model, [rows], Measurement(target="attention,mlp"))
    coarse = rectilinear.measure(model.bfloat16(), [rows], Measurement(target="attention,mlp"))
    for target, blocks in exact.scores.items():
        for one, other in zip(blocks, coarse.scores[target], strict=True):
            assert other.update_linearity.in_sample == pytest.approx(one.update_linearity.in_sample, abs=0.02)


def test_the_callback_takes_one_target():
    from rectilinear import LinearityCallback

    with pytest.raises(RequestError, match="expected one `target` for a callback, got attention,mlp"):
        LinearityCallback(None, token_rows(), measurement=Measurement(target="attention,mlp"))
