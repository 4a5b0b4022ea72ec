"""Parts of blocks are told by what they do: in any precision, on any text, and whatever else is in a block."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.cache_utils import StaticCache

from rectilinear import RequestError, find_blocks
from rectilinear.models.linear_block import stand_in
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import commit
from tests import conftest
from tests.families import build, cache_in, cached_difference, continued, prompts, token_rows
from tests.matrix.configurations import build as build_type

FAMILIES = ("llama", "gpt2", "opt", "bloom", "falcon", "gemma3", "mixtral")


def paths(model, ids):
    stack = find_blocks(model)
    parts = probe_parts(model, stack, ids)
    return [
        (part.entry, part.path, part.adds, part.cache_layers)
        for index in range(len(stack))
        for part in (parts.part(index, target) for target in ("attention", "mlp"))
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_changes_nothing(family, dtype):
    exact = paths(build(family), token_rows(2))
    assert paths(build(family).to(dtype), token_rows(2)) == exact


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_begins_with_one_word_changes_nothing(family):
    ids = token_rows(4)
    ids[0] = 7
    assert paths(build(family), ids) == paths(build(family), token_rows(2))


def test_the_model_is_left_as_it_was():
    model = build("llama").train()
    model.model.layers[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    paths(model, token_rows(2))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("weights", ["o_proj", "down_proj"])
def test_a_part_that_gives_nothing_is_told_as_well(weights):
    model = build("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if weights in name:
                parameter.zero_()
    assert paths(model, token_rows(2)) == paths(build("llama"), token_rows(2))


class Gated(nn.Module):
    """A block without an MLP: a query and an output see each token alone, but what is between them does not."""

    def __init__(self):
        super().__init__()
        self.query, self.output, self.shift = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        query, counts = self.query(x).tanh(), torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.output(query * self.shift(x).cumsum(1) / counts)


class GatedBesideAMixer(Gated):
    """The same, and a part that mixes tokens as well."""

    def __init__(self):
        super().__init__()
        self.mixer = Shifted()

    def forward(self, x):
        return super().forward(x) + self.mixer(x)


class Shifted(nn.Module):
    """Each token gets what the one before it has."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(6, 6)

    def forward(self, x):
        return self.weight(x.roll(1, 1))


def test_two_matrices_that_take_more_than_the_first_is_given_are_no_mlp():
    model = nn.Sequential(nn.Embedding(64, 6), nn.ModuleList([GatedBesideAMixer(), GatedBesideAMixer()]))
    model.forward = lambda ids: model[1][1](model[1][0](model[0](ids)))
    parts = probe_parts(model, find_blocks(model, "1"), torch.arange(40).view(2, 20))
    assert parts.part(0, "attention").path == "1.0.mixer"
    with pytest.raises(RequestError, match="got none"):
        parts.part(0, "mlp")


@torch.no_grad()
def test_what_blocks_hand_on_is_handed_on(text_file, tiny_tokenizer):
    """A router's state goes past a block that is replaced, to the one after it."""
    rows = {"max_tokens": 320, "seq_len": 16, "tokenizer": tiny_tokenizer, "device": "cpu"}
    handed, taken = [], []
    model = conftest.linearize(build_type("zaya"), text_file, kind="affine", blocks=[1], **rows).model
    first, _, last = find_blocks(model).blocks[:3]
    first.register_forward_hook(lambda module, args, output: handed.append(output[1]))
    last.register_forward_pre_hook(lambda module, args: taken.extend(args))
    model(token_rows(2), use_cache=False)
    assert any(value is handed[0] for value in taken)


@torch.no_grad()
def test_a_stand_in_moves_in_the_cache_with_its_block():
    model = build("llama")
    stack, taps = find_blocks(model), {"taps": 2, "rates": [1.0]}
    options = {"kind": "filter", "width": 24, "residual": True, "present": True, "cache_index": 2, **taps}
    commit(model, stack, {stack.path_of(2): stand_in(stack.blocks[2], PaddingMask(), **options)}, [0])
    assert find_blocks(model).blocks[1].cache_layers == (1,)
    assert cached_difference(model, *prompts()) < 1e-5


def test_two_matrices_around_a_mixer_are_no_mlp():
    model = nn.Sequential(nn.Embedding(64, 6), nn.ModuleList([Gated(), Gated()]))
    model.forward = lambda ids: model[1][1](model[1][0](model[0](ids)))
    parts = probe_parts(model, find_blocks(model, "1"), torch.arange(40).view(2, 20))
    with pytest.raises(RequestError, match="got none"):
        parts.part(0, "mlp")


@pytest.mark.parametrize(("model_type", "block"), [("nemotron_h", 1), ("minimax", 1), ("recurrent_gemma", 0)])
def test_a_filter_needs_a_place_in_the_cache(model_type, block, text_file, tiny_tokenizer):
    model = build_type(model_type)
    options = {"blocks": [block], "target": "attention" if model_type == "minimax" else "block"}
    rows = {"max_tokens": 320, "seq_len": 16, "tokenizer": tiny_tokenizer, "device": "cpu"}
    with pytest.raises(RequestError, match="expected something that keeps a state of its own in the cache"):
        conftest.linearize(model, text_file, kind="filter", **options, **rows)
    assert conftest.linearize(model, text_file, kind="affine", **options, **rows).plan.replacements


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["qwen3_next", "jamba"])
def test_a_static_cache_is_refused_wherever_the_filter_is(model_type, text_file, tiny_tokenizer):
    made = conftest.linearize(
        build_type(model_type), text_file, kind="filter", blocks=[0], max_tokens=320, seq_len=16, device="cpu",
        tokenizer=tiny_tokenizer,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="a cache that grows"):
        continued(
            made.model, token_rows(2), StaticCache(config=made.model.config.__class__.__mro__[1](), max_cache_len=30)
        )


@torch.no_grad()
def test_a_cache_with_filters_is_pickled(text_file, tiny_tokenizer):
    model = conftest.linearize(
        build("llama"), text_file, kind="filter", blocks=[1], max_tokens=320, seq_len=16, device="cpu",
        tokenizer=tiny_tokenizer,
    ).model  # fmt: skip
    ids, following = token_rows(2, 9), token_rows(2, 1, seed=3)
    cache = cache_in(model(ids, use_cache=True))
    again = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(continued(model, following, again).logits, continued(model, following, cache).logits)


def test_labels_stay_as_they_are(text_file, tiny_tokenizer):
    rows = {"max_tokens": 320, "seq_len": 16, "tokenizer": tiny_tokenizer, "device": "cpu"}
    made = conftest.linearize(build("llama"), text_file, kind="drop", blocks=[0], **rows)
    assert made.model.config.id2label == build("llama").config.id2label


def test_a_count_that_no_choice_of_blocks_can_meet(text_file, tiny_tokenizer):
    rows = {"max_tokens": 320, "seq_len": 16, "tokenizer": tiny_tokenizer, "device": "cpu"}
    with pytest.raises(RequestError, match="expected `count` from 1 to 2, got 3"):
        conftest.linearize(build_type("zamba2"), text_file, kind="affine", count=3, select="influence", **rows)


def test_what_others_take_more_from_than_hidden_states(text_file, tiny_tokenizer):
    """Keys and values that later blocks read as well."""
    model = build_type("gemma4_text", num_kv_shared_layers=2)
    rows = {"max_tokens": 320, "seq_len": 16, "tokenizer": tiny_tokenizer, "device": "cpu"}
    with pytest.raises(RequestError, match="expected a model that runs without attention 1"):
        conftest.linearize(model, text_file, kind="affine", target="attention", blocks=[1], **rows)


class Remembers(nn.Module):
    """A decoder that keeps hidden states of the rows that it saw before."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(64, 6)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True) for _ in range(2))
        self.memory = None

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x if self.memory is None else x + self.memory)
        self.memory = x.detach()
        return x


def test_what_keeps_a_state_is_run_on_what_it_is_measured_on_alone():
    import rectilinear

    model = Remembers().eval()
    rectilinear.measure(model, [torch.randint(64, (20, 16))], progress=False)
    assert model.memory.shape == (20, 16, 6)


def test_left_padding_in_a_hybrid(text_file, tiny_tokenizer):
    """A row alone gives what it gives in a padded batch, one token after the other."""
    made = conftest.linearize(
        build_type("qwen3_next"), text_file, kind="filter", blocks=[0], max_tokens=320, seq_len=16, device="cpu",
        tokenizer=tiny_tokenizer,
    )  # fmt: skip
    assert cached_difference(made.model, *prompts()) < 1e-4
