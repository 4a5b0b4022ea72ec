"""Logits step by step are those of whole rows, and a cache takes what its tensors take."""

from inspect import signature
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig, Qwen3Config, RwkvConfig

from rectilinear.errors import JobError, RequestError
from rectilinear.models.logits import cache_bytes, next_logits, row_logits
from tests.families import cache_in

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}

FAMILIES = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "tied": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "sliding": Qwen3Config(
        **SIZES, **HEADS, head_dim=4, use_sliding_window=True, sliding_window=4, layer_types=["sliding_attention"] * 2
    ),
    "mamba": MambaConfig(**SIZES, state_size=4),
    "rwkv": RwkvConfig(**SIZES, attention_hidden_size=16, context_length=64),
}


def build(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def token_rows(rows=2, seq_len=12):
    return torch.randint(3, 50, (rows, seq_len), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_with_a_cache_give_the_logits_of_the_whole(family):
    rows = 1 if family == "rwkv" else 2  # transformers' own RWKV mixes rows up when it continues from a state
    model, ids = build(family), token_rows(rows)
    whole = row_logits(model, ids)
    assert whole.shape == (rows, 12, 50)
    logits, cache = next_logits(model, ids[:, :5])
    for position in range(5, 12):
        torch.testing.assert_close(logits, whole[:, position - 1], rtol=1e-4, atol=1e-4)
        assert cache is not None
        logits, cache = next_logits(model, ids[:, position : position + 1], cache)
    torch.testing.assert_close(logits, whole[:, -1], rtol=1e-4, atol=1e-4)
    # What the cache holds matters, so the comparison above can fail.
    alone, _ = next_logits(model, ids[:, -1:])
    assert (alone - whole[:, -1]).abs().max() > 1e-2


def test_nothing_is_kept_for_gradients_or_a_cache():
    model, seen = build("llama"), []
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    assert not row_logits(model, token_rows()).requires_grad
    assert cache_in(seen[0]) is None
    model(token_rows())
    assert cache_in(seen[1]) is not None


def test_only_the_last_token_s_logits_are_computed_in_a_step():
    model, seen = build("llama"), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    next_logits(model, token_rows())
    assert seen == [(2, 1, 50)]


class Bare(nn.Module):
    """Logits from the token alone; it knows of no cache."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 50)

    def forward(self, ids):
        return SimpleNamespace(logits=self.table(ids))


def test_any_module_that_returns_logits_will_do():
    model, ids = Bare(), token_rows()
    assert torch.equal(row_logits(model, ids), model.table.weight[ids])
    logits, cache = next_logits(model, ids)
    assert torch.equal(logits, model.table.weight[ids[:, -1]])
    assert cache is None


class Renamed(nn.Module):
    """A Llama whose cache goes by another name; it may be asked to do without it, silently."""

    def __init__(self, taken="used", returned=True):
        super().__init__()
        self.model, self.taken, self.returned = build("llama"), taken, returned

    def forward(self, ids, use_cache=None, memory=None):
        parameters = signature(self.model.forward).parameters
        name = next(name for name, known in parameters.items() if "Cache" in str(known.annotation))
        output = self.model(ids, use_cache=use_cache, **{name: memory if self.taken == "used" else None})
        return SimpleNamespace(logits=output.logits, memory=cache_in(output) if self.returned else None)


def test_a_cache_is_known_by_what_it_is_and_not_by_its_name():
    model, ids = Renamed(), token_rows()
    logits, cache = next_logits(model, ids[:, :5])
    assert (cache.name, cache.tokens, cache.counted) == ("memory", 5, 5)
    logits, cache = next_logits(model, ids[:, 5:8], cache)
    torch.testing.assert_close(logits, row_logits(model, ids)[:, 7], rtol=1e-4, atol=1e-4)
    assert (cache.tokens, cache.counted) == (8, 8)


def test_a_step_without_the_cache_that_it_was_given_is_an_error():
    model, ids = Renamed("ignored"), token_rows()
    _, cache = next_logits(model, ids[:, :5])
    with pytest.raises(JobError, match=rf"6 tokens in the cache of Renamed, not 1, .*{transformers.__version__}"):
        next_logits(model, ids[:, 5:6], cache)


def test_a_model_that_keeps_the_cache_to_itself_is_an_error():
    with pytest.raises(JobError, match="have Renamed return its cache where `use_cache=True`"):
        next_logits(Renamed(returned=False), token_rows())


def test_a_cache_that_nothing_takes_is_an_error():
    class OneWay(Renamed):
        def forward(self, ids):
            return super().forward(ids)

    with pytest.raises(JobError, match="expected OneWay to take back the cache that it returns as 'memory'"):
        next_logits(OneWay(), token_rows())


def test_logits_of_all_tokens_where_one_was_to_do_are_an_error():
    class Eager(Bare):
        def forward(self, ids, logits_to_keep=0):
            return super().forward(ids)

    with pytest.raises(JobError, match="have Eager compute the logits of one token"):
        next_logits(Eager(), token_rows())


def test_a_model_without_logits_is_refused():
    with pytest.raises(RequestError, match=r"returns \.logits, got LlamaModel, which returns BaseModelOutputWithPast"):
        row_logits(build("llama").model, token_rows())
    with pytest.raises(RequestError, match=r"returns \.logits, got Embedding, which returns Tensor"):
        next_logits(Bare().table, token_rows())


def test_logits_of_fewer_positions_are_refused():
    class LastOnly(Bare):
        def forward(self, ids):
            return SimpleNamespace(logits=self.table(ids[:, -1:]))

    with pytest.raises(RequestError, match=r"expected logits \[2, 12, 'vocabulary'\], got \[2, 1, 50\]"):
        row_logits(LastOnly(), token_rows())


def test_bytes_of_keys_and_values():
    _, cache = next_logits(build("llama"), token_rows(rows=3, seq_len=7))
    assert cache_bytes(cache) == 2 * 2 * 3 * 2 * 4 * 7 * 4  # kinds, blocks, rows, key-value heads, width, tokens, bytes
    _, cache = next_logits(build("llama").bfloat16(), token_rows(rows=3, seq_len=7))
    assert cache_bytes(cache) == 2 * 2 * 3 * 2 * 4 * 7 * 2


def test_bytes_of_layers_of_any_kind():
    class Layer:
        def __init__(self):
            self.mean = torch.zeros(10)  # 40 bytes
            self.taps = {0: torch.zeros(3, dtype=torch.float64), "more": [torch.zeros(2, dtype=torch.int64)]}  # 24 + 16
            self.pair = (torch.zeros(5, dtype=torch.int8), None)  # 5
            self.count, self.name = 7, "layer"

    assert cache_bytes(SimpleNamespace(layers=[Layer()])) == 85
    assert cache_bytes(SimpleNamespace(layers=[Layer(), Layer()])) == 170
    assert cache_bytes(SimpleNamespace(layers=[])) == 0
    assert cache_bytes((torch.zeros(10), [torch.zeros(1)])) == 44


def test_shared_memory_counts_once_and_a_view_with_all_it_keeps():
    whole = torch.zeros(100)
    one, other = SimpleNamespace(a=whole[:10], b=whole[5:20]), SimpleNamespace(a=whole, b=torch.zeros(0))
    assert cache_bytes(SimpleNamespace(layers=[one])) == 400
    assert cache_bytes(SimpleNamespace(layers=[one, other])) == 400
