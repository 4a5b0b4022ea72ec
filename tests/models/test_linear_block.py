"""The features of filters against a loop over tokens; decoding with their cache against passes over the whole."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

import rectilinear
from rectilinear.models.causal_filter import CausalFilter
from rectilinear.models.linear_block import LinearBlock
from rectilinear.models.logits import cache_bytes
from rectilinear.models.stand_in_cache import StandInLayer
from rectilinear.models.stand_ins import PaddingMask
from tests.families import BLOCKS, TINY, WIDTH, build, cache_in, cached_difference, continued, prompts, token_rows

FULL = {"present": True, "taps": 3, "rates": (1.0, 0.5, 0.95)}
OPTIONS = [
    {},
    {"present": True},
    {"taps": 2},
    {"rates": (1.0,)},
    {"rates": (0.3, 1.0)},
    {"present": True, "taps": 1, "rates": (0.9,)},
    FULL,
]

# Everything is float32, and every feature but x is of size one.
CLOSE = 1e-5


def inputs(rows=3, tokens=20, width=5, seed=0):
    return 4 * torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(seed))


def naive(x, real, present=False, taps=0, rates=()):
    """The features token by token in float64."""
    x = x.double().numpy()
    features = []
    for row, mask in zip(x, real, strict=True):
        normalised = [
            vector / np.sqrt(np.mean(vector**2) + 1e-6) if here else np.zeros(len(vector))
            for vector, here in zip(row, mask, strict=True)
        ]
        lines = []
        for t in range(len(row)):
            parts = [row[t]]
            if present:
                parts.append(normalised[t])
            for tap in range(1, taps + 1):
                parts.append(normalised[t - tap] if t >= tap else np.zeros(len(row[t])))
            for rate in rates:
                total, weight = np.zeros(len(row[t])), 0.0
                for s in range(t + 1):
                    total += rate ** (t - s) * normalised[s]
                    weight += rate ** (t - s) * bool(mask[s])
                parts.append(total / weight if weight else total)
            lines.append(np.concatenate(parts))
        features.append(lines)
    return torch.tensor(np.array(features))


def stream(made, x, real=None, state=None):
    """All features of `CausalFilter.stream`, and the last state."""
    parts, states = zip(*made.stream(x, real, state), strict=True)
    return torch.cat(parts, 1), states[-1]


def assert_close(features, expected, where=None):
    where = torch.ones(features.shape[:2], dtype=torch.bool) if where is None else where
    torch.testing.assert_close(features[where].double(), expected[where], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("options", OPTIONS)
def test_features_are_those_of_a_loop_over_tokens(options):
    x, made = inputs(), CausalFilter(5, **options)
    features, _ = stream(made, x)
    assert features.shape == (3, 20, made.size)
    assert_close(features, naive(x, torch.ones(3, 20), **options))


def test_rate_one_is_the_running_mean():
    x = inputs()
    normalised = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    means = normalised.cumsum(1) / torch.arange(1, 21)[:, None]
    torch.testing.assert_close(stream(CausalFilter(5, rates=(1.0,)), x)[0][..., 5:], means, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("tokens", [256, 257, 520])
def test_more_tokens_than_are_filtered_at_once(tokens):
    x, made = inputs(2, tokens, 3), CausalFilter(3, **FULL)
    real = torch.rand(2, tokens, generator=torch.Generator().manual_seed(2)) > 0.2
    chunks = [features.shape[1] for features, _ in made.stream(x, real)]
    assert max(chunks) <= 256
    assert len(chunks) > (tokens > 256)
    assert_close(stream(made, x, real)[0], naive(x, real, **FULL), real)
    # In float32 sums over as many tokens are off by no more than their rounding.
    whole = stream(CausalFilter(3, rates=(1.0,)), x)[0]
    assert_close(whole, naive(x, torch.ones(2, tokens), rates=(1.0,)))


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("filler", [0.0, 1e30, float("nan"), float("inf")])
def test_padding_is_as_if_it_were_not_there(side, filler):
    x, real = inputs(), torch.ones(3, 20, dtype=torch.bool)
    if side == "left":
        real[1, :6], real[2, :19] = False, False
    elif side == "right":
        real[1, 14:], real[2, 1:] = False, False
    else:
        real[1, 4:9], real[2, ::3] = False, False
    padded = torch.where(real[..., None], x, filler)
    features, state = stream(CausalFilter(5, **FULL), padded, real)
    assert_close(features, naive(x, real, **FULL), real)
    assert all(part.isfinite().all() for part in state)
    if side == "left":
        for row in range(3):
            alone, _ = stream(CausalFilter(5, **FULL), x[row : row + 1, real[row]])
            torch.testing.assert_close(features[row, real[row]], alone[0], rtol=CLOSE, atol=CLOSE)


@given(data=st.data(), seed=st.integers(0, 1000), tokens=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_a_state_continued_anywhere_gives_the_whole(data, seed, tokens):
    options = data.draw(st.sampled_from(OPTIONS))
    splits = sorted(data.draw(st.sets(st.integers(1, tokens - 1), max_size=6))) if tokens > 1 else []
    x = inputs(2, tokens, 4, seed)
    real = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=2, max_size=2))
    )
    made = CausalFilter(4, **options)
    parts, state = [], None
    for start, stop in zip([0, *splits], [*splits, tokens], strict=True):
        features, state = stream(made, x[:, start:stop], real[:, start:stop], state)
        parts.append(features)
        assert [part.shape for part in state] == [part.shape for part in made.start(x)]
    torch.testing.assert_close(torch.cat(parts, 1), stream(made, x, real)[0], rtol=CLOSE, atol=CLOSE)
    assert_close(torch.cat(parts, 1), naive(x, real, **options), real)


def test_a_state_keeps_no_more_memory_alive_than_its_own():
    _, state = stream(CausalFilter(5, **FULL), inputs(tokens=300))
    for part in state:
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_have_the_input_s_precision_and_sums_float32_at_least(dtype):
    x = inputs().to(dtype)
    features, state = stream(CausalFilter(5, **FULL), x)
    finer = torch.promote_types(dtype, torch.float32)
    assert (features.dtype, state.recent.dtype, state.sums.dtype, state.weights.dtype) == (dtype, dtype, finer, finer)
    wide = stream(CausalFilter(5, **FULL), x.float())[0]
    torch.testing.assert_close(features, wide.to(dtype), rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6)


def four(mask, queries, dtype):
    """The ``[rows, 1, queries, keys]`` mask of causal attention."""
    keys = mask.shape[1]
    seen = torch.ones(keys, keys, dtype=torch.bool).tril()[keys - queries :] & mask.bool()[:, None, None, :]
    return seen if dtype is torch.bool else torch.where(seen, 0.0, torch.finfo(dtype).min)


@pytest.mark.parametrize("queries", [6, 2, 1])
def test_the_mask_in_all_its_forms(queries):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    padding = PaddingMask()
    padding(torch.nn.Identity(), (), {"attention_mask": None})
    assert padding.of_last(queries) is None
    forms = [mask, mask.bool(), mask.float(), four(mask, queries, torch.bool), four(mask, queries, torch.float32)]
    for form in [*forms, {"full_attention": forms[-1], "sliding_attention": forms[-2]}]:
        padding(torch.nn.Identity(), (), {"attention_mask": form})
        found, expected = padding.of_last(queries), mask[:, -queries:].bool()
        assert found is None if expected.all() else torch.equal(found, expected)


def test_what_was_noted_is_looked_at_once_for_all_stand_ins_and_again_in_the_next_pass(monkeypatch):
    """Also where a mask is put there by hand, or changed where it is."""
    looked, own, padding = [], PaddingMask._of_last, PaddingMask()
    monkeypatch.setattr(PaddingMask, "_of_last", lambda self, tokens: looked.append(tokens) or own(self, tokens))
    mask = torch.tensor([[0, 1, 1]])
    padding(torch.nn.Identity(), (), {"attention_mask": mask})
    assert [padding.of_last(3).tolist() for _ in range(3)] == 3 * [[[False, True, True]]]
    assert padding.of_last(2) is None
    assert padding.starts_of_last(3) is None
    assert looked == [3, 2]
    mask[0, 1] = 0
    padding(torch.nn.Identity(), (), {"attention_mask": mask})
    assert padding.of_last(3).tolist() == [[False, False, True]]
    padding.mask = None
    assert padding.of_last(3) is None


def test_a_mask_given_by_position():
    class Decoder(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return input_ids

    decoder, padding = Decoder(), PaddingMask()
    decoder.register_forward_pre_hook(padding, with_kwargs=True)
    decoder(torch.zeros(1, 2), torch.tensor([[0, 1]]))
    assert torch.equal(padding.of_last(2), torch.tensor([[False, True]]))
    decoder(torch.zeros(1, 2))
    assert padding.of_last(2) is None


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("outputs", [0, 1, 3])
def test_a_linear_block_is_its_map_of_the_features(rank, residual, outputs):
    block = LinearBlock(5, kind="filter", residual=residual, outputs=outputs, rank=rank, **FULL)
    x = inputs()
    weights = [layer.weight.double() for layer in block.map]
    update = naive(x, torch.ones(3, 20), **FULL)
    for weight in weights:
        update = update @ weight.T
    expected = update + block.map[-1].bias.double() + (x.double() if residual else 0)
    given = block(x)
    if outputs:
        assert isinstance(given, tuple)
        assert given[1:] == (None,) * (outputs - 1)
        given = given[0]
    torch.testing.assert_close(given.double(), expected, rtol=1e-4, atol=1e-4)
    again = LinearBlock(**block.options())
    again.load_state_dict(block.state_dict())
    torch.testing.assert_close(again(x)[0] if outputs else again(x), given, rtol=0, atol=0)


def test_drop_is_nothing():
    x = inputs()
    assert torch.equal(LinearBlock(5, kind="drop", residual=True)(x), x)
    assert torch.equal(LinearBlock(5, kind="drop", residual=False)(x), torch.zeros_like(x))
    assert not list(LinearBlock(5, kind="drop", residual=False).parameters())


# Decoding.

CLOSELY = ("llama", "mistral", "gemma3")
SOME = {"one": (1,), "first": (0,), "last": (2,), "two": (0, 2), "all": (0, 1, 2)}


@pytest.mark.parametrize("where", SOME)
@pytest.mark.parametrize("target", ["block", "attention"])
@pytest.mark.parametrize("family", CLOSELY)
def test_a_padded_batch_decodes_as_each_row_alone(family, target, where, linearized):
    model = linearized(family, SOME[where], target=target, rates=(1.0, 0.7)).model
    assert cached_difference(model, *prompts()) < CLOSE


OTHERS = [(family, target) for family in TINY for target in ("block", "attention") if family not in CLOSELY]


@pytest.mark.parametrize(("family", "target"), [other for other in OTHERS if other != ("bloom", "attention")])
def test_a_padded_batch_decodes_as_each_row_alone_in_every_family(family, target, linearized):
    model = linearized(family, (0,) if target == "block" else (0, 1, 2), target=target).model
    assert cached_difference(model, *prompts()) < CLOSE


def test_the_comparison_can_fail(linearized):
    model = copy.deepcopy(linearized("llama", (1,)).model)
    stand_in = model.model.layers[1]
    stand_in.cache_layers = ()
    assert cached_difference(model, *prompts()) > 100 * CLOSE
    stand_in.cache_layers, stand_in.padding = (1,), PaddingMask()
    assert cached_difference(model, *prompts()) > 100 * CLOSE


@pytest.mark.parametrize("target", ["block", "attention"])
def test_beams_with_a_cache_equal_beams_without(target, linearized):
    model = linearized("llama", (0, 2) if target == "block" else (0, 1, 2), target=target).model
    ids, mask = prompts()
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 12, "do_sample": False}
    both = [
        model.generate(ids, attention_mask=mask, use_cache=use_cache, **options).tolist() for use_cache in (True, False)
    ]
    assert both[0] == both[1]
    greedy = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False).tolist()
    assert greedy != both[0][::2]  # beams were reordered on the way


@pytest.mark.parametrize("family", CLOSELY)
@pytest.mark.parametrize("target", ["block", "attention"])
@pytest.mark.parametrize("steps", [(5, 1, 1, 1), (1, 6, 5), (9, 3)])
@torch.no_grad()
def test_a_returned_cache_continues(steps, target, family, linearized):
    model = linearized(family, (0, 1, 2) if target == "attention" else (1,), target=target).model
    ids = token_rows(2, sum(steps))
    whole = model(ids, use_cache=False).logits
    cache, parts = None, []
    for part in ids.split(list(steps), 1):
        output = continued(model, part, cache)
        cache = cache_in(output)
        parts.append(output.logits)
    assert cache.get_seq_length() == sum(steps)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=CLOSE * float(whole.abs().max()))


@torch.no_grad()
def test_a_cache_is_of_constant_size_without_attention(linearized):
    model = linearized("llama", (0, 1, 2), target="attention").model
    sizes = []
    for tokens in (1, 7, 60):
        cache = cache_in(model(token_rows(2, tokens), use_cache=True))
        assert all(isinstance(layer, StandInLayer) for layer in cache.layers)
        sizes.append(cache_bytes(cache))
    # Per block: three taps, and the sums and the weights of two rates, of two rows in float32.
    assert sizes == [BLOCKS * 4 * 2 * (3 * WIDTH + 2 * (WIDTH + 1))] * 3


@torch.no_grad()
def test_a_block_keeps_no_keys_and_values(linearized):
    model = linearized("llama", (1,)).model
    caches = [cache_in(model(token_rows(2, tokens), use_cache=True)) for tokens in (5, 50)]
    states = [[cache_bytes([vars(layer)]) for layer in cache.layers] for cache in caches]
    assert states[0][1] == states[1][1] == 4 * 2 * (3 * WIDTH + 2 * (WIDTH + 1))
    assert states[1][0] == 10 * states[0][0]


@torch.no_grad()
def test_rows_of_a_cache_are_chosen_repeated_and_forgotten(linearized):
    model, ids, following = linearized("llama", (1,)).model, token_rows(3, 8), token_rows(3, 2, seed=5)

    def after(change, rows):
        cache = cache_in(model(ids, use_cache=True))
        change(cache)
        return continued(model, following[rows], cache).logits

    whole = model(torch.cat([ids, following], 1), use_cache=False).logits[:, 8:]
    chosen = torch.tensor([2, 0])
    for got, expected in (
        (after(lambda cache: cache.batch_select_indices(chosen), chosen), whole[chosen]),
        (after(lambda cache: cache.reorder_cache(torch.tensor([0, 1, 2])), slice(None)), whole),
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=CLOSE * float(whole.abs().max()))

    cache = cache_in(model(ids, use_cache=True))
    cache.batch_repeat_interleave(2)
    repeated = torch.tensor([0, 0, 1, 1, 2, 2])
    got = continued(model, following[repeated], cache).logits
    torch.testing.assert_close(got, whole[repeated], rtol=0, atol=CLOSE * float(whole.abs().max()))

    layer = cache.layers[1]
    assert layer.get_seq_length() == 10
    layer.reset()
    assert (layer.get_seq_length(), layer.kept_states) == (0, {})


@torch.no_grad()
def test_a_cache_made_beforehand(linearized):
    model, ids = linearized("mistral", (0,)).model, token_rows(2, 12)
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=build("mistral").config)
    parts = [continued(model, part, cache).logits for part in ids.split(4, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=CLOSE * float(whole.abs().max()))


@torch.no_grad()
def test_what_a_filter_cannot_do_is_refused(linearized):
    model, (ids, mask) = linearized("llama", (1,)).model, prompts()
    with pytest.raises(RuntimeError, match="a cache that grows"):
        model.generate(ids, attention_mask=mask, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(RuntimeError, match="a cache that grows"):
        continued(model, ids, StaticCache(config=build("llama").config, max_cache_len=30))
    with pytest.raises(ValueError, match="assisted generation"):
        model.generate(ids[:1], max_new_tokens=3, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("target", ["block", "attention"])
@torch.no_grad()
def test_hidden_states_are_still_recorded(target, linearized):
    model, ids = linearized("llama", (0, 1), target=target).model, token_rows(2, 10)
    seen = []
    handles = [layer.register_forward_hook(lambda module, args, y: seen.append(y)) for layer in model.model.layers]
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    for handle in handles:
        handle.remove()
    assert len(states) == BLOCKS + 1
    for recorded, output in zip(states[1:-1], seen[:-1], strict=True):
        assert torch.equal(recorded, output)


def test_an_edited_model_is_measured_as_any_other(linearized, text_file, tiny_tokenizer):
    model = linearized("llama", (1,), kind="affine").model
    profile = rectilinear.measure(model, list(token_rows(40).split(8)))
    assert len(profile.blocks) == BLOCKS
    assert profile.blocks[1].update_linearity.in_sample == pytest.approx(1, abs=1e-6)
    assert profile.blocks[1].update_linearity.held_out == pytest.approx(1, abs=1e-6)
    assert profile.blocks[0].update_linearity.in_sample < 0.999


def test_gradients_reach_the_map_and_the_input():
    block = LinearBlock(5, kind="filter", residual=True, **FULL)
    x = inputs(tokens=300).requires_grad_()
    block(x).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())
    assert x.grad.isfinite().all()
