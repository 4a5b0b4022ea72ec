"""Bounded attention: against softmax attention written out, and against the model's own with a mask."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig

from rectilinear import RequestError
from rectilinear.models import bounded_attention as bounded_attention_module
from rectilinear.models.attention_probe import find_attention
from rectilinear.models.bounded_attention import BoundedAttention, BoundedState, Terms, bounded_attention
from rectilinear.models.far_summary import FarSummary
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.logits import cache_bytes
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.stand_in_cache import KeptState
from rectilinear.models.stand_ins import PaddingMask
from rectilinear.models.surgery import swapped
from tests.families import GROUPED, TINY, build, cache_in, cached_difference, continued, prompts, token_rows

CLOSE = 1e-5
REGISTERED = sorted(set(TINY) - {"bloom", "falcon"})


WINDOW = {"kind": "bounded", "far": "none", "uniform": True, "target": "attention"}


class Padding:
    """What a model would have noted of the tokens of one call."""

    positions = None

    def __init__(self, real, starts):
        self.real, self.starts = real, starts

    def of_last(self, tokens):
        return None if self.real.all() else self.real

    def starts_of_last(self, tokens):
        return self.starts if self.starts.any() else None


def made(window, sinks, replaced=torch.nn.Identity):
    old = replaced()
    old.config = TINY["llama"]
    return bounded_attention(old, PaddingMask(), window=window, sinks=sinks)


def naive(query, key, value, real, starts, windows, sinks, terms, far=None):
    """Token by token, head by head, in float64."""
    rows, heads, tokens, _ = query.shape
    shared, output = heads // key.shape[1], torch.zeros(rows, tokens, heads, value.shape[-1], dtype=torch.float64)
    for row in range(rows):
        document, places = [], []
        for token in range(tokens):
            if starts[row, token]:
                document = []
            document = [*document, token] if real[row, token] else document
            places.append(document)
        for token in [token for token in range(tokens) if real[row, token]]:
            before = places[token]
            for head in range(heads):
                window, own = windows[head // shared], head // shared
                sees = [t for rank, t in enumerate(before) if rank < sinks or rank >= len(before) - window]
                others = [t for t in before if t not in sees]
                if terms.sliding is not None:
                    sees = [t for t in sees if t in before[-terms.sliding :]]
                q = query[row, head, token].double()
                scores = key[row, own, sees].double() @ q * terms.scaling
                if terms.softcap is not None:
                    scores = terms.softcap * torch.tanh(scores / terms.softcap)
                masses = scores.exp()
                nothing = 0.0 if terms.sinks is None else float(terms.sinks[head].double().exp())
                weights = masses / (masses.sum() + nothing)
                output[row, token, head] = weights @ value[row, own, sees].double()
                if far is not None and others:
                    first = torch.tensor([t in before[:sinks] for t in sees], dtype=torch.bool)
                    keys, values = (each[row, own, others].double() for each in (key, value))
                    parts = (each[head].detach().double() for each in (far.centroids, far.offsets, far.weights))
                    u, mass = naive_far(q, keys, values, scores[~first], scores[first], tuple(parts), terms.scaling)
                    share = torch.sigmoid(mass - (masses.sum() + nothing).log())
                    output[row, token, head] = (1 - share) * output[row, token, head] + share * u
    return output


def naive_far(query, keys, values, near, sinks, far, scaling):
    """The value and the logarithm of the mass that a query of a head gets for far tokens, from `FarSummary`'s words.

    Keys and values are those of the far tokens; ``near`` and ``sinks`` the scores of those that are kept.
    """
    centroids, offsets, weights = far
    exponents = (keys @ centroids.T * scaling - offsets).clamp(-40, 40).exp()
    total = exponents.sum(0)
    share = (-(query - centroids).square().sum(-1) * scaling).softmax(0)
    value = sum(share[j] * (exponents[:, j, None] * values).sum(0) / total[j] for j in range(len(centroids)))
    masses = total.log() + offsets
    seen = [
        each.exp().sum().log().clamp(min=-40) if len(each) else torch.tensor(-40.0).double() for each in (near, sinks)
    ]
    features = [
        torch.stack([torch.ones(()).double(), torch.tensor(len(keys)).double().log(), *seen]),
        query,
        query**2,
        torch.stack([share @ masses, masses.mean(), (-(query - centroids).square().sum(-1) * scaling).max()]),
        share[1:],
    ]
    return value, torch.cat(features) @ weights


CASES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 3),
        "pieces": st.lists(st.integers(1, 9), min_size=1, max_size=5),
        "windows": st.sampled_from([(1,), (3,), (40,), (2, 5), (4, 1)]),
        "sinks": st.integers(0, 3),
        "sliding": st.sampled_from([None, 2, 6]),
        "softcap": st.sampled_from([None, 1.5]),
        "nothing": st.booleans(),
        "far": st.booleans(),
        "single": st.integers(0, 12),
        "plain": st.integers(0, 50),
        "seed": st.integers(0, 100),
    }
)


@settings(max_examples=60)
@given(CASES)
@torch.no_grad()
def test_any_pieces_of_any_documents_are_what_softmax_attention_gives(case):
    """Padding anywhere, documents that begin anywhere, tokens that come in pieces, and a cache between them.

    After some tokens, perhaps, comes no more padding and no other document; and the last come one by one.
    """
    pieces = case["pieces"] + case["single"] * [1]
    generator, tokens = torch.Generator().manual_seed(case["seed"]), sum(pieces)
    rows, heads, shared = case["rows"], 2, 2
    query = torch.randn(rows, heads * shared, tokens, 4, generator=generator)
    key, value = (torch.randn(rows, heads, tokens, width, generator=generator) for width in (4, 3))
    real = torch.rand(rows, tokens, generator=generator) < 0.8
    starts = torch.rand(rows, tokens, generator=generator) < 0.1
    real[:, case["plain"] :], starts[:, case["plain"] :] = True, False
    nothing = torch.randn(heads * shared, generator=generator) if case["nothing"] else None
    terms = Terms(0.7, case["sliding"], case["softcap"], nothing)
    windows = case["windows"] if len(case["windows"]) == heads else case["windows"] * heads
    module, kept, outputs, begin = made(case["windows"], case["sinks"]), KeptState(False), [], 0
    if case["far"]:  # which forgets nothing
        terms = terms._replace(sliding=None)
        module.far_summary = FarSummary(heads * shared, shared, 3, 4)
        with torch.no_grad():
            for parameter in (module.far_summary.centroids, module.far_summary.offsets, module.far_summary.weights):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    expected = naive(query, key, value, real, starts, windows, case["sinks"], terms, module.far_summary)
    for length in pieces:
        here = slice(begin, begin + length)
        module.padding, module._kept = Padding(real[:, here], starts[:, here]), kept
        outputs.append(module.attend(query[:, :, here], key[:, :, here], value[:, :, here], terms))
        begin += length
    found = torch.cat(outputs, 1)
    torch.testing.assert_close(found[real].double(), expected[real], rtol=CLOSE, atol=CLOSE)
    assert found.isfinite().all()
    groups = [group.tokens for group in kept.state.groups] if isinstance(kept.state, BoundedState) else [kept.state]
    most = sum(case["sinks"] + window - 1 for window in windows) * 4
    assert sum(group.keys[0].numel() for group in groups) <= most


@torch.no_grad()
def test_a_token_more_is_taken_at_once_where_every_row_keeps_all_that_it_can(monkeypatch):
    """And by the longer way in between, where there is padding, after which a row may keep less."""
    generator, tokens, taken = torch.Generator().manual_seed(0), 30, []
    once = bounded_attention_module.look_once
    monkeypatch.setattr(
        bounded_attention_module,
        "look_once",
        lambda *given: taken.append(given[4].lengths[0, 0].item()) or once(*given),
    )
    query, key, value = (torch.randn(2, 2, tokens, 4, generator=generator) for _ in range(3))
    real, starts = torch.ones(2, tokens, dtype=torch.bool), torch.zeros(2, tokens, dtype=torch.bool)
    real[1, :4], real[0, 20], starts[1, 22] = False, False, True
    expected = naive(query, key, value, real, starts, (3, 5), 2, Terms(0.5))
    module, kept, outputs = made((3, 5), 2), KeptState(False), []
    for begin in range(tokens):
        here = slice(begin, begin + 1)
        module.padding, module._kept = Padding(real[:, here], starts[:, here]), kept
        outputs.append(module.attend(query[:, :, here], key[:, :, here], value[:, :, here], Terms(0.5)))
    torch.testing.assert_close(torch.cat(outputs, 1)[real].double(), expected[real], rtol=CLOSE, atol=CLOSE)
    # The second row keeps 2 + 5 - 1 tokens after its sixth, the tenth of all, and again after six of its document.
    lengths = torch.where(real[0], real[0].cumsum(0), 0)
    assert taken == [int(lengths[t]) for t in range(tokens) if 10 <= t < 20 or t == 21 or t >= 28]


@torch.no_grad()
def test_what_is_kept_for_later_steps_is_not_of_a_trace():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 20, 4, generator=generator) for _ in range(3)]
    module = made((7, 11), 3)
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.suppress(Exception):
        module.attend(*inputs, Terms(0.5))
    none = torch.zeros(1, 20, dtype=torch.bool)
    expected = naive(*inputs, ~none, none, (7, 11), 3, Terms(0.5))
    torch.testing.assert_close(module.attend(*inputs, Terms(0.5)).double(), expected, rtol=CLOSE, atol=CLOSE)


def test_more_tokens_than_are_taken_at_once():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 600, 4, generator=generator) for _ in range(3))
    everything, none = torch.ones(1, 600, dtype=torch.bool), torch.zeros(1, 600, dtype=torch.bool)
    expected = naive(query, key, value, everything, none, (30, 30), 2, Terms(0.5))
    torch.testing.assert_close(
        made(30, 2).attend(query, key, value, Terms(0.5)).double(), expected, rtol=CLOSE, atol=CLOSE
    )


def mask_of(tokens, window, sinks):
    """``[1, 1, tokens, tokens]``, true for what each token sees."""
    age = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return ((age >= 0) & ((age < window) | (torch.arange(tokens) < sinks)))[None, None]


@pytest.mark.parametrize("family", sorted({*REGISTERED} - {"gemma3"}))
def test_all_attentions_are_the_model_with_a_mask(family, linearized):
    model, original = (
        linearized(family, (0, 1, 2), **WINDOW, window=4, sinks=2).model,
        build(family),
    )
    ids = token_rows(3)
    mask = mask_of(ids.shape[1], 4, 2)
    if family == "mistral":  # whose own window is one token longer
        mask = mask & mask_of(ids.shape[1], 5, 0)
    positions = torch.arange(ids.shape[1])[None].expand(len(ids), -1)
    with torch.no_grad():
        expected = original(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        found = model(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE * float(expected.abs().max()))


@pytest.mark.parametrize("family", REGISTERED)
def test_a_window_that_holds_everything_changes_nothing(family, linearized):
    made = linearized(family, (0, 1, 2), **WINDOW, window=64, sinks=0)
    ids = token_rows(3)
    with torch.no_grad():
        expected, found = (model(ids, use_cache=False).logits for model in (build(family), made.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE * float(expected.abs().max()))
    assert made.plan.selection.loss_after == pytest.approx(made.plan.selection.loss_before, rel=1e-5)


OTHERS = {
    "gemma2": Gemma2Config(**GROUPED, head_dim=6, attn_logit_softcapping=0.5, sliding_window=5),
    "gpt_oss": GptOssConfig(**GROUPED, head_dim=6, sliding_window=5, num_local_experts=4, num_experts_per_tok=2),
}


@pytest.mark.parametrize("family", OTHERS)
def test_what_other_attentions_add_to_the_scores(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(OTHERS[family], attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    parts = probe_parts(model, find_blocks(model), token_rows(4))
    paths = [find_attention(model, parts.part(index, "attention")) for index in range(3)]
    assert paths == [f"model.layers.{index}.self_attn" for index in range(3)]
    edits = {
        path: bounded_attention(model.get_submodule(path), PaddingMask(), window=4, sinks=0, cache_index=index)
        for index, path in enumerate(paths)
    }
    ids = token_rows(2, 12)
    mask = mask_of(12, 4, 0).float().log().clamp(min=torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model(ids, attention_mask=dict.fromkeys(("full_attention", "sliding_attention"), mask)).logits
        with swapped(model, edits):
            found = model(ids, use_cache=False).logits
            first = model(ids[:, :7], use_cache=True)
            rest = continued(model, ids[:, 7:], cache_in(first)).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE * float(expected.abs().max()))
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), found, rtol=0, atol=CLOSE * float(found.abs().max()))


FAR = [{"far": "none", "uniform": True}, {"far": "none"}, {"far": "mean"}, {"centroids": 2}]


@pytest.mark.parametrize(
    ("family", "far"), [(family, FAR[0]) for family in REGISTERED] + [("llama", far) for far in FAR[1:]]
)
@torch.no_grad()
def test_its_memory_does_not_grow(family, far, linearized):
    model = linearized(family, (0, 1, 2), kind="bounded", target="attention", window=3, sinks=2, **far).model
    sizes = []
    for length in (10, 20, 60):
        held = cache_in(model(token_rows(2, length), use_cache=True))
        assert held.get_seq_length() == length
        sizes.append(cache_bytes(held))
    assert sizes[0] == sizes[1] == sizes[2] > 0


@pytest.mark.parametrize(
    "options", [{"num_beams": 3, "num_return_sequences": 2}, {"num_beams": 2, "early_stopping": True}]
)
def test_beam_search_is_the_same_with_a_cache_and_without(options, linearized):
    model = linearized("llama", (0, 1, 2), kind="bounded", target="attention", window=3, sinks=2).model
    ids, mask = prompts()
    given = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, **options}
    assert torch.equal(model.generate(ids, use_cache=True, **given), model.generate(ids, use_cache=False, **given))


def test_windows_by_head_decode_as_they_read(linearized):
    model = linearized("llama", (0, 1, 2), kind="bounded", target="attention", window=3, sinks=2, **FAR[0]).model
    edits = {
        path: bounded_attention(module, module.padding, window=(2, 5), sinks=1, cache_index=index)
        for index, (path, module) in enumerate(
            (path, module) for path, module in model.named_modules() if isinstance(module, BoundedAttention)
        )
    }
    with swapped(model, edits):
        assert cached_difference(model, *prompts()) < CLOSE


@pytest.mark.parametrize(
    ("family", "says"), [("bloom", "has no module with a configuration"), ("falcon", "never calls it")]
)
def test_attentions_that_do_not_call_the_registry_are_refused(family, says):
    model = build(family)
    part = probe_parts(model, find_blocks(model), token_rows(4)).part(1, "attention")
    with pytest.raises(RequestError, match=f"expected an attention that calls transformers' registry .*{says}"):
        find_attention(model, part)


def test_an_attention_that_adds_something_of_its_own_is_refused():
    """Scores that depend on more than queries, keys and masks, as positions in them."""
    model = build("llama")
    attention = model.model.layers[1].self_attn
    own = attention.forward

    def forward(hidden_states, *args, **kwargs):
        if attention.config._attn_implementation == "sdpa":
            kwargs["attention_mask"] = -torch.arange(16.0)[:, None].sub(torch.arange(16.0)).abs()[None, None] + mask_of(
                16, 16, 0
            ).float().log().clamp(min=-1e9)
        return own(hidden_states, *args, **kwargs)

    parts = probe_parts(model, find_blocks(model), token_rows(4))
    attention.forward = forward
    with pytest.raises(RequestError, match="gives something else by the same weights"):
        find_attention(model, parts.part(1, "attention"))


@pytest.mark.parametrize("far", [FAR[0], FAR[3]])
def test_gradients_pass_through(far, linearized):
    """By finite differences along one direction in all parameters; norms and rotary embeddings are in float32."""
    options = {"kind": "bounded", "target": "attention", "window": 3, "sinks": 2, **far}
    model, ids = linearized("llama", (0, 1, 2), dtype=torch.float64, **options).model, token_rows(2)
    parameters = [*model.parameters()]
    generator, loss = torch.Generator().manual_seed(0), lambda: model(ids, labels=ids, use_cache=False).loss
    directions = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in parameters]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    with torch.no_grad():
        for sign in (1, -2):  # and back to where it was
            for each, direction in zip(parameters, directions, strict=True):
                each.add_(direction, alpha=sign * 1e-4)
            values.append(float(loss()))
        for each, direction in zip(parameters, directions, strict=True):
            each.add_(direction, alpha=1e-4)
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(slope, rel=1e-2)


def test_float16_holds_what_values_there_are():
    """Many tokens of large values: their sum would be above what float16 has."""
    module = made(400, 0)
    value = torch.full((1, 1, 300, 4), 300.0, dtype=torch.float16)
    found = module.attend(torch.zeros_like(value), torch.zeros_like(value), value, Terms(1.0))
    torch.testing.assert_close(found, value.transpose(1, 2))
