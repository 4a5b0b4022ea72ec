"""Checkpoints with filters under every way of running that transformers offers: as rows alone, or a clear refusal."""

import copy

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening

from rectilinear.models.causal_filter import CausalFilter
from rectilinear.models.linear_block import LinearBlock
from rectilinear.models.stand_ins import PaddingMask, StandIn
from tests.families import build, cache_in, continued, token_rows
from tests.models.test_linear_block import CLOSE, FULL, OPTIONS, assert_close, inputs, naive, stream

LENGTHS = (7, 1, 5, 2, 3)

#: Stand-ins for attentions that keep a state.
KEEPING = {
    "filter": {"target": "attention"},
    "bounded": {"target": "attention", "kind": "bounded", "window": 3, "sinks": 2, "centroids": 2},
}


def documents(lengths=LENGTHS):
    return [{"input_ids": token_rows(1, length, seed)[0].tolist()} for seed, length in enumerate(lengths)]


def separately(model, rows):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0] for row in rows])


# Several documents in a row.


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lengths", [LENGTHS, (1,) * 5, (300, 2, 258, 4)])
def test_a_document_is_filtered_as_if_it_were_alone(lengths, options):
    x, made = inputs(2, sum(lengths), 3), CausalFilter(3, **options)
    starts = torch.zeros(2, sum(lengths), dtype=torch.bool)
    starts[0, torch.tensor(lengths).cumsum(0)[:-1]] = True  # the other row is one document
    parts, states = zip(*made.stream(x, None, None, starts), strict=True)
    expected = torch.cat([naive(part, torch.ones(part.shape[:2]), **options) for part in x[:1].split(lengths, 1)], 1)
    expected = torch.cat([expected, naive(x[1:], torch.ones(1, sum(lengths)), **options)])
    assert_close(torch.cat(parts, 1), expected)
    alone = stream(made, x[:1, -lengths[-1] :])[1]
    for kept, own in zip(
        (states[-1].recent[:1], states[-1].sums[:, :1], states[-1].weights[:, :1]), alone, strict=True
    ):
        torch.testing.assert_close(kept, own, rtol=CLOSE, atol=CLOSE)


def test_a_document_begun_before_goes_on_until_the_next_begins():
    x, made = inputs(1, 20, 3), CausalFilter(3, **FULL)
    starts = torch.zeros(1, 20, dtype=torch.bool)
    starts[0, 12] = True
    state = stream(made, x[:, :9])[1]
    parts = [features for features, _ in made.stream(x[:, 9:], None, state, starts[:, 9:])]
    whole = torch.cat([stream(made, x[:, :12])[0], stream(made, x[:, 12:])[0]], 1)
    torch.testing.assert_close(torch.cat(parts, 1), whole[:, 9:], rtol=CLOSE, atol=CLOSE)


PACKED = [(family, way) for family in ("llama", "gpt2", "gemma3", "qwen3") for way in ("block", *KEEPING)]


@pytest.mark.parametrize(("family", "way"), PACKED)
def test_packed_documents_are_as_each_alone(family, way, linearized):
    model = linearized(family, (0, 2) if way == "block" else (0, 1, 2), **KEEPING.get(way, {})).model
    rows = documents()
    packed, alone = DataCollatorWithFlattening()([dict(row) for row in rows]), separately(model, rows)
    # Stock attentions tell documents apart only without a cache; without any of them either will do.
    for use_cache in (False,) if way == "block" else (False, True):
        with torch.no_grad():
            together = model(packed["input_ids"], position_ids=packed["position_ids"], use_cache=use_cache).logits[0]
        torch.testing.assert_close(together, alone, rtol=0, atol=CLOSE * float(alone.abs().max()))


@pytest.mark.parametrize("way", ["block", *KEEPING])
def test_the_loss_of_packed_documents_is_that_of_padded_ones(way, linearized, tiny_tokenizer):
    model = linearized("llama", (1,), **KEEPING.get(way, {})).model
    tokenizer = copy.deepcopy(tiny_tokenizer)  # which other tests share
    tokenizer.pad_token = "</s>"
    rows = documents((7, 4, 5))
    losses = []
    for collate in (DataCollatorForLanguageModeling(tokenizer, mlm=False), DataCollatorWithFlattening()):
        with torch.no_grad():
            losses.append(float(model(**collate([dict(row) for row in rows]), use_cache=False).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def block_diagonal(lengths, dtype):
    """``[1, 1, tokens, tokens]``: what a token of packed documents sees."""
    seen = torch.block_diag(*[torch.ones(length, length).tril() for length in lengths]).bool()[None, None]
    return seen if dtype is torch.bool else torch.where(seen, 0.0, torch.finfo(dtype).min)


@pytest.mark.parametrize("way", ["block", *KEEPING])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_packed_documents(dtype, way, linearized):
    model, rows = linearized("llama", (0, 2), **KEEPING.get(way, {})).model, documents()
    ids = torch.tensor([[token for row in rows for token in row["input_ids"]]])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        mask = block_diagonal(LENGTHS, dtype)
        together = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    alone = separately(model, rows)
    torch.testing.assert_close(together, alone, rtol=0, atol=CLOSE * float(alone.abs().max()))


def test_summed_lengths_of_packed_documents():
    padding = PaddingMask()
    batch = DataCollatorWithFlattening(return_position_ids=False, return_flash_attn_kwargs=True)(documents())
    padding(torch.nn.Identity(), (), {"attention_mask": None, "cu_seq_lens_q": batch["cu_seq_lens_q"]})
    assert padding.starts_of_last(sum(LENGTHS))[0].nonzero().flatten().tolist() == [7, 8, 13, 15]


def test_rows_of_one_document_begin_none():
    padding, mask = PaddingMask(), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0]])
    clamped = (mask.cumsum(1) - 1).clamp(min=0)
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & mask.bool()[:, None, None, :]
    for given in (
        {},
        {"position_ids": torch.arange(3, 9)[None]},
        {"position_ids": clamped, "attention_mask": mask},
        {"attention_mask": seen[1:]},
    ):
        padding(torch.nn.Identity(), (), given)
        assert padding.starts_of_last(6) is None
    padding(torch.nn.Identity(), (), {"attention_mask": seen})  # where padding comes first there is nothing to forget
    assert padding.starts_of_last(6).nonzero().tolist() == [[0, 2]]


# Taking tokens back.


@pytest.mark.parametrize("calls", [(9,), (4, 1, 1, 3), (1, 7, 1)])
@pytest.mark.parametrize("back", range(10))
@pytest.mark.parametrize("way", KEEPING)
@torch.no_grad()
def test_tokens_are_taken_back_from_a_cache_that_records_its_past(way, back, calls, linearized):
    model, ids = linearized("llama", (0, 1, 2), **KEEPING[way]).model, token_rows(2, 14)
    whole = model(ids, use_cache=False).logits
    cache = cache_in(model(ids[:, :1], use_cache=True))
    cache.activate_past_recording()
    for start, length in zip((1, *torch.tensor(calls).cumsum(0).add(1).tolist()), calls, strict=False):
        continued(model, ids[:, start : start + length], cache)
    if back:
        cache.crop(-back)
    assert cache.get_seq_length() == 10 - back
    rest = continued(model, ids[:, 10 - back :], cache).logits
    torch.testing.assert_close(rest, whole[:, 10 - back :], rtol=0, atol=CLOSE * float(whole.abs().max()))


@pytest.mark.parametrize("way", KEEPING)
@torch.no_grad()
def test_a_past_that_was_not_recorded_is_not_made_up(way, linearized):
    model, ids = linearized("llama", (0, 1, 2), **KEEPING[way]).model, token_rows(1, 9)
    cache = cache_in(model(ids, use_cache=True))
    assert not cache.is_croppable
    cache.crop(0)
    continued(model, ids[:, :1], cache)
    cache.crop(-1)
    with pytest.raises(RuntimeError, match="that tokens were taken back from"):
        continued(model, ids[:, :1], cache)
    cache.reset()
    continued(model, ids, cache)


def generate(model, ids, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, **options)


DRAFTING = [((1,), "block"), ((0, 2), "filter"), ((0, 1, 2), "filter"), ((0, 2), "bounded"), ((0, 1, 2), "bounded")]


@pytest.mark.parametrize(("blocks", "way"), DRAFTING)
def test_a_draft_model_drafts_what_it_would_write_by_itself(blocks, way, linearized, monkeypatch):
    main, draft, ids = build("llama"), linearized("llama", blocks, **KEEPING.get(way, {})).model, token_rows(1, 9)
    drafted, original = [], draft.generate

    def noting(input_ids, **options):
        given = original(input_ids, **options)
        drafted.append(given.sequences[:, input_ids.shape[1] :])
        alone = {"max_new_tokens": drafted[-1].shape[1], "do_sample": False, "use_cache": False}
        assert torch.equal(original(input_ids, **alone)[:, input_ids.shape[1] :], drafted[-1])
        for block in draft.modules():
            if isinstance(block, StandIn):
                block.records_past = True  # the generation in between does not need its past
        return given

    monkeypatch.setattr(draft, "generate", noting)
    assert torch.equal(generate(main, ids, assistant_model=draft), generate(main, ids))
    assert len(drafted) > 1


def test_only_a_draft_records_its_past(linearized):
    model, ids = linearized("llama", (1,)).model, token_rows(1, 9)
    generate(build("llama"), ids, assistant_model=model)
    cache = cache_in(generate(model, ids, return_dict_in_generate=True))
    (kept,) = cache.layers[1].kept_states.values()
    assert (kept.recording, kept.past) == (False, [])


# Continuous batching.


@pytest.mark.parametrize("way", ["block", *KEEPING])
def test_continuous_batching_of_a_state_is_refused(way, linearized):
    model = linearized("llama", (1,), **KEEPING.get(way, {})).model
    kind = "bounded" if way == "bounded" else "filter"
    with pytest.raises(RuntimeError, match=f"stand-ins keep no state for continuous batching, got one with a {kind}"):
        model.generate_batch(inputs=token_rows(2, 5).tolist())


def test_a_cache_without_a_place_for_a_state_is_refused():
    class PagedCache:
        def update(self, *args):
            raise AssertionError

    for kind, raises in (("filter", True), ("affine", False), ("drop", False)):
        options = {"taps": 1} if kind == "filter" else {}
        block = LinearBlock(5, kind=kind, residual=True, cache_index=0, **options)
        if raises:
            with pytest.raises(RuntimeError, match=r"expected a Cache of transformers .*, got PagedCache"):
                block(inputs(), cache=PagedCache())
        else:
            block(inputs(), cache=PagedCache(), layer={"update": 1})


# A constant.


@pytest.mark.parametrize("residual", [True, False])
def test_a_mean_is_a_constant(residual):
    block, x = LinearBlock(5, kind="mean", residual=residual, outputs=2), inputs()
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {"map.0.bias": (5,)}
    with torch.no_grad():
        block.map[-1].bias.copy_(torch.arange(5.0))
    y, none = block(x)
    assert none is None
    assert torch.equal(y, x * residual + torch.arange(5.0))
    again = LinearBlock(**block.options())
    again.load_state_dict(block.state_dict())
    assert torch.equal(again(x)[0], y)
