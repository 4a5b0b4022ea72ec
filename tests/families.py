"""One table of tiny models of many architectures: three blocks of width 24, the ids of `tiny_tokenizer`."""

from inspect import signature

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3Config,
)
from transformers.cache_utils import Cache

VOCABULARY, WIDTH, BLOCKS, CONTEXT, WINDOW = 128, 24, 3, 64, 5

SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
STACK = {**SPECIAL, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
SIZES = {**STACK, "intermediate_size": 40, "max_position_embeddings": CONTEXT}
GROUPED = {**SIZES, "num_key_value_heads": 2}

TINY = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gpt2": GPT2Config(**SPECIAL, n_embd=WIDTH, n_layer=BLOCKS, n_head=4, n_positions=CONTEXT),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "opt": OPTConfig(**STACK, max_position_embeddings=CONTEXT, ffn_dim=40, word_embed_proj_dim=WIDTH),
    "bloom": BloomConfig(**SPECIAL, hidden_size=WIDTH, n_layer=BLOCKS, n_head=4),
    "qwen3": Qwen3Config(**GROUPED, head_dim=6),
    "gemma3": Gemma3TextConfig(
        **GROUPED,
        head_dim=6,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "falcon": FalconConfig(**STACK, max_position_embeddings=CONTEXT, parallel_attn=True, multi_query=True, bias=False),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=4),
}


def build(family, dtype=torch.float32, **changes):
    """A model of a family, always the same one; ``changes`` are to its configuration."""
    config = type(TINY[family])(**{**TINY[family].to_dict(), **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger weights than an untrained model has, so that blocks do something.
                parameter.add_(0.3 * torch.randn_like(parameter))
    if dtype.itemsize < 4:  # transformers loads parameters in a precision, not frequencies of rotary embeddings
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
    return (model if dtype.itemsize < 4 else model.to(dtype)).eval()


def token_rows(rows=24, seq_len=20, seed=0):
    """Random ids ``[rows, seq_len]``, special ones left out."""
    return torch.randint(3, VOCABULARY, (rows, seq_len), generator=torch.Generator().manual_seed(seed))


def cache_in(values):
    """The transformers cache among an output's fields or a call's arguments, whatever its name is; or None."""
    return next((value for value in values.values() if isinstance(value, Cache)), None)


def continued(model, ids, cache):
    """The output of a model for ids that follow those in a transformers cache, whatever its argument is called."""
    parameters = signature(model.forward).parameters.values()
    (name,) = [parameter.name for parameter in parameters if "Cache" in str(parameter.annotation)]
    return model(ids, use_cache=True, **{name: cache})


def prompts(lengths=(9, 4, 7), seed=1):
    """Left-padded prompts and their mask, ``[rows, tokens]``; padding is an id like any other, so that it matters."""
    rows = token_rows(len(lengths), max(lengths), seed)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return rows, mask.long()


@torch.no_grad()
def cached_difference(model, ids, mask, steps=7, **options):
    """How far logits of cached decoding of a padded batch are from a pass over each row alone, of the largest."""
    decoded = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    held = cache_in(decoded)
    assert held is not None, "nothing was decoded with a cache"
    assert held.get_seq_length() == ids.shape[1] + steps - 1
    differences = []
    for row, sequence in enumerate(decoded.sequences):
        alone = sequence[ids.shape[1] - int(mask[row].sum()) :]
        whole = model(alone[None], use_cache=False).logits[0, -steps - 1 : -1]
        stepwise = torch.stack([logits[row] for logits in decoded.logits])
        differences.append(float((whole - stepwise).abs().max() / whole.abs().max()))
    return max(differences)
