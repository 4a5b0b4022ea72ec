"""Block stacks are found by structure; every model here is built from a tiny config, without weights."""

import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import find_blocks

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
GATED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

FAMILIES = {
    "llama": (GATED, "model.layers", "LlamaDecoderLayer"),
    "qwen3": (GATED, "model.layers", "Qwen3DecoderLayer"),
    "gemma3_text": (GATED, "model.layers", "Gemma3DecoderLayer"),
    "mixtral": (GATED | {"num_local_experts": 3}, "model.layers", "MixtralDecoderLayer"),
    "gpt2": ({"vocab_size": 32, "n_embd": 16, "n_head": 2, "n_layer": 3}, "transformer.h", "GPT2Block"),
    "gpt_neox": (SMALL | {"intermediate_size": 24}, "gpt_neox.layers", "GPTNeoXLayer"),
    "opt": (SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.layers", "OPTDecoderLayer"),
    "bloom": (
        {"vocab_size": 32, "hidden_size": 16, "n_head": 2, "n_layer": 3},
        "transformer.h",
        "BloomBlock",
    ),
    "falcon": (SMALL, "transformer.h", "FalconDecoderLayer"),
}


def on_meta(config, auto=transformers.AutoModelForCausalLM):
    with torch.device("meta"):
        return auto.from_config(config)


def on_meta_family(family):
    return on_meta(transformers.AutoConfig.for_model(family, **FAMILIES[family][0]))


def error_of(model, path=None):
    with pytest.raises(RequestError) as caught:
        find_blocks(model, path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("expected ")
    assert ", got " in message
    assert "; try " in message
    return message


class Block(nn.Module):
    def __init__(self, experts=0):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if experts:
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(experts))


class Plain(nn.Module):
    """A model that is no transformers model; every keyword is a submodule."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def blocks_of(count, **options):
    return nn.ModuleList(Block(**options) for _ in range(count))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    _, path, block_class = FAMILIES[family]
    model = on_meta_family(family)
    stack = find_blocks(model)
    assert (stack.path, len(stack), stack.rule) == (path, 3, "depth")
    assert [type(block).__name__ for block in stack] == [block_class] * 3
    assert all(a is b for a, b in zip(stack, model.get_submodule(path), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_base_model_gives_the_same_blocks(family):
    model = on_meta_family(family)
    assert find_blocks(model.base_model).blocks == find_blocks(model).blocks


def test_works_with_weights():
    config = transformers.AutoConfig.for_model("llama", **GATED)
    assert find_blocks(transformers.AutoModelForCausalLM.from_config(config)).path == "model.layers"


def test_one_block():
    config = transformers.AutoConfig.for_model("llama", **GATED | {"num_hidden_layers": 1})
    assert find_blocks(on_meta(config)).path == "model.layers"


@pytest.mark.parametrize("vision_layers", [2, 3, 5])
def test_text_decoder_wins_over_vision_tower(vision_layers):
    config = transformers.Gemma3Config(
        text_config=GATED,
        vision_config=VISION | {"num_hidden_layers": vision_layers, "vision_use_head": False},
        mm_tokens_per_image=4,
    )
    stack = find_blocks(on_meta(config, transformers.AutoModelForImageTextToText))
    assert (stack.path, len(stack)) == ("model.language_model.layers", 3)


def test_text_decoder_wins_over_vision_tower_inside_the_decoder():
    # Git's get_decoder() holds the image encoder too, at the same depth here.
    config = transformers.GitConfig(**SMALL, intermediate_size=24, vision_config=VISION | {"num_hidden_layers": 3})
    assert find_blocks(on_meta(config)).path == "git.encoder.layer"


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 3), (3, 2), (2, 3), (3, 1)])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_decoder_wins_over_encoder(family, encoder, decoder):
    width = {"vocab_size": 32, "d_model": 16}
    if family == "t5":
        heads = {"d_ff": 24, "num_heads": 2, "d_kv": 8}
        config = transformers.T5Config(**width, **heads, num_layers=encoder, num_decoder_layers=decoder)
    else:
        config = transformers.BartConfig(**width, encoder_layers=encoder, decoder_layers=decoder)
    stack = find_blocks(on_meta(config, transformers.AutoModelForSeq2SeqLM))
    assert stack.path == {"t5": "decoder.block", "bart": "model.decoder.layers"}[family]
    assert len(stack) == decoder


def test_lists_of_the_same_length_beside_the_blocks():
    model = on_meta_family("llama")
    model.model.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
    model.model.adapters = blocks_of(3)
    assert find_blocks(model).path == "model.layers"


def test_config_depth_that_is_not_the_length():
    model = on_meta_family("mixtral")
    for layer in model.model.layers:
        layer.extra = nn.ModuleList(nn.Linear(2, 2, device="meta") for _ in range(4))
    model.config.num_hidden_layers = 4
    stack = find_blocks(model)
    assert (stack.path, len(stack), stack.rule) == ("model.layers", 3, "layer class")


def test_model_without_block_modules():
    message = error_of(on_meta(transformers.XLMConfig(vocab_size=32, emb_dim=16, n_layers=3, n_heads=2)))
    assert "transformer.attentions (3 x MultiHeadAttention)" in message
    assert "transformer.ffns (3 x TransformerFFN)" in message


def test_plain_module_with_one_list():
    model = Plain(embed=nn.Embedding(3, 4), body=Plain(layers=blocks_of(3)))
    stack = find_blocks(model)
    assert (stack.path, len(stack), stack.rule) == ("body.layers", 3, "only list")


def test_plain_sequential():
    assert find_blocks(Plain(layers=nn.Sequential(Block(), Block()))).path == "layers"
    model = nn.Sequential(Block(), Block())
    assert find_blocks(model).path == ""
    assert find_blocks(model, "").blocks == tuple(model)


def test_plain_module_ignores_small_and_mixed_lists():
    mixed = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    assert find_blocks(Plain(layers=blocks_of(2), heads=blocks_of(1), mlp=mixed)).path == "layers"


def test_plain_module_with_two_lists():
    message = error_of(Plain(encoder=blocks_of(2), decoder=blocks_of(3)))
    assert "encoder (2 x Block)" in message
    assert "decoder (3 x Block)" in message
    assert "--blocks path.to.layers" in message
    assert 'blocks="path.to.layers"' in message


def test_nested_lists():
    assert find_blocks(Plain(layers=blocks_of(3, experts=3))).path == "layers"
    assert find_blocks(Plain(layers=blocks_of(2, experts=5))).path == "layers"


def test_block_used_twice_counts_twice():
    block = Block()
    stack = find_blocks(Plain(layers=nn.ModuleList([block, Block(), block])))
    assert len(stack) == 3
    assert stack.blocks[0] is stack.blocks[2]


def test_list_registered_twice_is_one_list():
    layers = blocks_of(2)
    assert find_blocks(Plain(layers=layers, again=layers)).path == "layers"


def test_nothing_to_find():
    assert "no module lists" in error_of(nn.Linear(2, 2))


def test_path():
    model = Plain(encoder=blocks_of(2), decoders=nn.ModuleList([Plain(layers=blocks_of(3))]))
    stack = find_blocks(model, "decoders.0.layers")
    assert (stack.path, len(stack), stack.rule) == ("decoders.0.layers", 3, "path")
    assert find_blocks(model, "decoders").blocks == tuple(model.decoders)
    numbered = nn.ModuleDict({"0": Block(), "1": Block()})
    assert len(find_blocks(Plain(layers=numbered), "layers")) == 2


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("model.blocks", "nothing there"),
        ("model.layers.7", "nothing there"),
        ("model.config", "nothing there"),
        ("model..layers", "nothing there"),
        ("model.layers.0", "LlamaDecoderLayer without numbered modules"),
        ("lm_head", "Linear with no modules in it"),
        ("empty", "ModuleList with no modules in it"),
    ],
)
def test_bad_paths(path, got):
    model = on_meta_family("llama")
    model.empty = nn.ModuleList()
    message = error_of(model, path)
    assert f'at "{path}", got {got};' in message
    assert message.endswith("model.layers (3 x LlamaDecoderLayer)")


def test_many_candidates_are_cut_short():
    message = error_of(Plain(**{f"list{i}": blocks_of(2) for i in range(20)}))
    assert message.endswith("list7 (2 x Block), and 12 more")


def test_needs_no_transformers():
    code = "import sys, rectilinear.models.find_blocks; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
