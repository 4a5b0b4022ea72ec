"""Editing models: blocks that are linear leave no trace, and what cannot be edited is refused."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

from rectilinear import RequestError, find_blocks
from rectilinear.models.depth import reduced
from rectilinear.models.linear_block import LinearBlock, stand_in
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import find_projection, folded_projection, swapped
from tests import conftest
from tests.families import BLOCKS, TINY, VOCABULARY, WIDTH, build, token_rows

FILTER = {"taps": 3, "rates": (1.0,)}


@torch.no_grad()
def difference(model, other):
    ids = token_rows(4, seed=9)
    logits = model(ids, use_cache=False).logits
    return float((logits - other(ids, use_cache=False).logits).abs().max() / logits.abs().max())


@torch.no_grad()
def silence(block):
    """Have a block of Llama's kind give back what it gets."""
    block.self_attn.o_proj.weight.zero_()
    block.mlp.down_proj.weight.zero_()


@pytest.fixture
def linearize(text_file, tiny_tokenizer):
    def run(model, **options):
        size = {"max_tokens": 4096, "seq_len": 32, **options}
        return conftest.linearize(model, text_file, tokenizer=tiny_tokenizer, **size)

    return run


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("kind", ["drop", "affine", "filter", "folded"])
def test_replacing_a_block_that_does_nothing_leaves_the_logits(kind, family, linearize):
    model = build(family)
    silence(model.model.layers[1])
    made = linearize(model, kind=kind, blocks=[1])
    # Dropping it is exact; a fitted map is as good as its float32 weights.
    assert difference(model, made.model) <= (0 if kind == "drop" else 1e-5)
    whole = linearize(build(family), kind=kind, blocks=[1])
    assert difference(build(family), whole.model) > 1e-2


@pytest.mark.parametrize("target", ["attention", "mlp"])
@pytest.mark.parametrize("kind", ["drop", "affine"])
def test_replacing_a_part_that_gives_nothing_leaves_the_logits(kind, target, linearize):
    model = build("llama")
    silence(model.model.layers[1])
    assert difference(model, linearize(model, kind=kind, blocks=[1], target=target).model) <= 1e-6


def plant(model, index, **options):
    """Put a stand-in of random weights where a block is, without telling the model."""
    old = model.model.layers[index]
    new = stand_in(old, PaddingMask(), width=WIDTH, residual=True, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.model.layers[index] = new
    return new


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("affine", {}),
        ("affine", {"rank": 3}),
        ("filter", FILTER),
        ("filter", {"taps": 1, "rates": (1.0, 0.5)}),
        ("filter", {**FILTER, "rank": 4}),
    ],
)
@pytest.mark.parametrize("index", [1, 2])
def test_a_block_that_is_a_stand_in_is_found_again(index, kind, options, linearize):
    model = build("llama")
    planted = plant(model, index, kind=kind, present=kind == "filter", cache_index=index, **options)
    model.config.use_cache = False
    made = linearize(model, kind=kind, blocks=[index], max_tokens=7000, **options)
    found = made.model.model.layers[index]
    assert difference(model, made.model) < 1e-4
    assert made.plan.replacements[0].fit.held_out > 1 - 1e-6
    if options.get("rank") is None:
        scale = float(planted.map[0].weight.detach().abs().max())
        torch.testing.assert_close(found.map[0].weight, planted.map[0].weight, rtol=0, atol=2e-2 * scale)


def test_a_block_that_is_linear_folds_away(linearize):
    model = build("gpt_neox")
    block = model.gpt_neox.layers[1]
    with torch.no_grad():
        for module in (block.attention.dense, block.mlp.dense_4h_to_h):
            module.weight.zero_()
            module.bias.normal_(generator=torch.Generator().manual_seed(1))
    made = linearize(model, kind="folded", blocks=[1])
    assert difference(model, made.model) < 1e-4
    assert len(find_blocks(made.model)) == 2


@pytest.mark.parametrize("family", sorted(TINY))
def test_blocks_that_stay_are_numbered_anew(family, linearized):
    model = linearized(family, (0,), kind="drop").model
    stack = find_blocks(model)
    assert len(stack) == BLOCKS - 1
    for index, block in enumerate(stack):
        numbers = {module.layer_idx for module in block.modules() if hasattr(module, "layer_idx")}
        assert numbers <= {index}
    original = find_blocks(build(family))
    for block, old in zip(stack, original.blocks[1:], strict=True):
        state = old.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in block.state_dict().items())


@pytest.mark.parametrize("way", ["filter", "drop", "folded", "attention"])
def test_the_user_s_model_is_left_as_it_was(way, linearize):
    model = build("gpt2").train()
    model.transformer.h[1].eval()
    before = copy.deepcopy(model)
    modes = {name: module.training for name, module in model.named_modules()}
    options = {"target": "attention"} if way == "attention" else {"kind": way}
    made = linearize(model, blocks=[1], **options)
    assert type(model) is type(before)
    assert model.config.to_dict() == before.config.to_dict()
    assert {name: type(module) for name, module in model.named_modules()} == {
        name: type(module) for name, module in before.named_modules()
    }
    assert modes == {name: module.training for name, module in model.named_modules()}
    for (name, tensor), (other, same) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, same)
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in made.model.parameters()}


@pytest.mark.parametrize("error", [None, KeyError])
def test_swapped_modules_come_back(error):
    model = build("llama")
    own = dict(model.named_modules())
    new = nn.Identity()
    try:
        with swapped(model, {"model.layers.1.mlp": new, "model.layers.0": new}):
            assert model.model.layers[0] is model.model.layers[1].mlp is new
            if error:
                raise error
    except KeyError:
        pass
    assert dict(model.named_modules()) == own


@pytest.mark.parametrize("family", sorted(TINY))
def test_targets_are_found_by_structure(family):
    model = build(family)
    stack = find_blocks(model)
    parts = probe_parts(model, stack, token_rows(2))
    block, attention, mlp = (parts.part(2, target) for target in ("block", "attention", "mlp"))
    names = {"gpt2": "attn", "gpt_neox": "attention", "falcon": "self_attention", "bloom": "self_attention"}
    ends = {"opt": ("fc1", "fc2")}
    assert (block.path, block.role, block.cache_layers) == (f"{stack.path}.2", "both", (2,))
    assert (attention.path, attention.role) == (f"{stack.path}.2.{names.get(family, 'self_attn')}", "attention")
    assert (mlp.entry, mlp.path) == tuple(f"{stack.path}.2.{name}" for name in ends.get(family, ("mlp", "mlp")))
    assert mlp.cache_layers == ()
    added = "residual" if family == "bloom" else None
    assert (attention.adds, mlp.adds) == (added, added)


class TwoMixers(nn.Module):
    """A block with two parts that mix tokens, and none that does not."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Conv1d(6, 6, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.one(x.mT).mT + self.other(x.mT).mT


def test_targets_that_are_not_there():
    model = nn.Sequential(nn.Embedding(VOCABULARY, 6), nn.ModuleList([TwoMixers()]))
    model.forward = lambda ids: model[1][0](model[0](ids))
    parts = probe_parts(model, find_blocks(model, "1"), token_rows(2))
    for target, says in (("attention", r"got none; try `target=block`"), ("mlp", "got none; try `target=block`")):
        with pytest.raises(RequestError, match=says):
            parts.part(0, target)
    assert parts.part(0, "block").path == "1.0"


PROJECTIONS = {
    "llama": "model.layers.1.mlp.down_proj",
    "mistral": "model.layers.1.mlp.down_proj",
    "qwen3": "model.layers.1.mlp.down_proj",
    "gpt2": "transformer.h.1.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.1.fc2",
    "bloom": "transformer.h.1.mlp.dense_4h_to_h",
}


@pytest.mark.parametrize("family", PROJECTIONS)
def test_the_projection_to_fold_into(family):
    model = build(family)
    assert find_projection(model, find_blocks(model), 1, token_rows(1)) == PROJECTIONS[family]


@pytest.mark.parametrize("family", ["gemma3", "mixtral"])
def test_no_projection_to_fold_into(family):
    model = build(family)
    with pytest.raises(RequestError, match=r"block 1 .* has none; try `kind=affine`"):
        find_projection(model, find_blocks(model), 1, token_rows(1))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_folded_projection_gives_its_output_times_a_matrix(family):
    model = build(family)
    projection = model.get_submodule(PROJECTIONS[family])
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    bias = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    before = copy.deepcopy(projection.state_dict())
    folded = folded_projection(projection, matrix, bias)
    size = projection.weight.shape[0] if family == "gpt2" else projection.weight.shape[1]
    x = torch.randn(7, size, generator=generator)
    expected = projection(x).double() @ matrix + bias
    torch.testing.assert_close(folded(x).double(), expected, rtol=1e-4, atol=1e-4)
    if projection.bias is None:
        unbiased = folded_projection(projection, matrix, None)
        torch.testing.assert_close(unbiased(x).double(), expected - bias, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(projection.state_dict()[name], tensor) for name, tensor in before.items())


def test_lists_with_an_entry_a_block_are_trimmed_and_others_are_not():
    model = build("gemma3")
    config = model.config
    config.eos_token_id = [1, 2, 3]
    config.other = [1, 2]
    trimmed = reduced(model, find_blocks(model), [0, 2]).config
    assert trimmed.layer_types == ["sliding_attention", "sliding_attention"]
    assert (trimmed.num_hidden_layers, trimmed.eos_token_id, trimmed.other) == (2, [1, 2, 3], [1, 2])
    assert config.layer_types == TINY["gemma3"].layer_types
    assert config.num_hidden_layers == BLOCKS


def test_blocks_that_a_configuration_builds_by_their_number(linearize):
    sizes = {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4}
    config = Qwen2MoeConfig(**{**TINY["llama"].to_dict(), **sizes, "model_type": "qwen2_moe", "decoder_sparse_step": 2})
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(RequestError, match="expected blocks that can take each other's places"):
        linearize(model, kind="drop", blocks=[0])
    made = linearize(model, kind="drop", blocks=[2])
    assert len(find_blocks(made.model)) == 2
    assert isinstance(linearize(model, kind="affine", blocks=[0]).model.model.layers[0], LinearBlock)


@pytest.mark.parametrize("kind", ["affine", "filter"])
def test_blocks_that_share_a_stand_in(kind, linearize):
    made = linearize(build("gemma3"), kind=kind, blocks=[1, 2], merge=True)
    first, merged = find_blocks(made.model)
    assert not isinstance(first, LinearBlock)
    assert isinstance(merged, LinearBlock)
    assert made.plan.removed == (2,)
    assert [replacement.blocks for replacement in made.plan.replacements] == [(1, 2)]
