"""A tiny configuration of every causal language model that transformers has, made from its defaults by rules.

What the rules do not make a model of, or none that shows what its type is about, is in `EXCEPTIONS`.
"""

import re

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

VOCABULARY, WIDTH, BLOCKS, CONTEXT, WINDOW = 128, 32, 4, 64, 6

_DEPTH = (
    r"num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers|num_(encoder|decoder)_layers|num_blocks"
)
#: Sizes by what their names match, the first that does: of fields that hold an integer, or a list of them.
RULES = {
    r"(unpadded_)?vocab_size|(shape|pronunciation)_vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"bos_token_id|decoder_start_token_id": 0,
    r"eos_token_id|sep_token_id": 1,
    r"pad_token_id|.*padding_idx": 2,
    r".*token_(id|index)": 3,
    r"hidden_size(_global)?|n_embd|d_model|word_embed_proj_dim|embedding_(size|dim)": WIDTH,
    r"dim|dim_model|emb_dim|lru_width": WIDTH,
    r"hidden_size_per_layer_input|hc_lowrank|(shape|pronunciation)_embed_dim|ple_embed_dim|router_hidden_size": 16,
    _DEPTH: BLOCKS,
    r"(num_)?key_value_heads|num_kv_heads|multi_query_group_num|.*_kv_heads|.*_num_key_value_heads|kv_n_heads": 2,
    r"(num_)?(\w+_)?attention_heads(_per_layer)?|n_heads?|num_heads|linear_num_heads|index_n_heads|\w+_n_heads": 4,
    r"mamba_num_heads": 4,
    r"linear_num_(key|value)_heads": 2,
    r"attention_head_dim": 16,  # of twice the width
    r"(.*_)?head_dim|head_size|d_kv|attention_key_length|d_head|mamba_d_head|kv_channels": 8,
    r"rotary_dim": 4,
    r".*lora_rank|.*lora_r|(.*_)?adapter_rank|mamba_dt_rank|time_step_rank|loop_gate_rank|laurel_rank": 16,
    r"(.*_)?intermediate_size.*|(.*_)?ffn_dim|n_inner|dff|dim_ff|(\w+_)?ffn_hidden_size|.*expert_dim|mlp_dim": 48,
    r"num_experts_per_tok(en)?|moe_topk|top_k_experts|experts_top_k|moe_top_k|num_selected_experts|top_k|moe_k": 2,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|zero_expert_num": 4,
    r"n_shared_experts|num_shared_experts|(num_)?(n|expert)_group|topk_group|moe_num_shared_experts": 1,
    r"first_k_dense_replace|num_dense_layers|moe_layer_start_index": 1,
    r"moe_layer_end_index": BLOCKS - 1,
    r"encoder_hash_byte_group_vocab": VOCABULARY,
    r"max_position_embeddings|n_positions|n_ctx|max_seq(uence)?_len(gth)?|.*max_(source|target)_positions": CONTEXT,
    r"model_max_length": CONTEXT,
    r"sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|local_attention_window_len": WINDOW,
    r"mamba_d_state|(ssm_)?state_size|index_topk|o_lora_rank|d_rel": 8,
    r"mamba_d_ssm": 64,
    r"n_groups|o_groups|mamba_n?_?groups": 1,
    r"(mamba_)?chunk_size|block_size": 8,
    r"attn_layer_period": 2,
    r"attn_layer_offset": 1,
    r"n_layers_per_attn_res_block": 2,
}

_HEADS = {"head_dim": 8}
_INDEXER = {
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8},
    **{"indexer_compress_ratio": 4, "ngram_vocab_size_base": 200, "split_ngram_parts": 4, "heads_per_ngram": 2},
}
_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4}
_LATENT = {"head_dim": 16, "per_layer_config": {"1": {"kv_lora_rank": 24}, "3": {"kv_lora_rank": 24}}}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ROPES = {"full_attention": _ROPE, "sliding_attention": _ROPE}
#: What the rules do not come to.
EXCEPTIONS = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "big_bird": {"attention_type": "original_full"},  # which it becomes at its first run on rows this short
    "blenderbot": {"encoder_layers": BLOCKS},  # with fewer than in its decoder, the cache of transformers is too short
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        **{"n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2, "num_hidden_layers": 8},
        "layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2,
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
        "text_config": _LATENT,
    },
    "dots3_note_text": _LATENT,
    "gemma3n_text": {"num_kv_shared_layers": 2},
    "gemma4_text": {"per_layer_config": {"1": {"head_dim": 16}, "3": {"head_dim": 16}}},
    "gpt_neo": {"attention_types": [[["global", "local"], BLOCKS // 2]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"] * (BLOCKS // 2)},
    "hunyuan_v1_dense": _HEADS,
    "hunyuan_v1_moe": _HEADS,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (BLOCKS // 2)},
    "longcat_flash": {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16},
    "mamba2": {"head_dim": 16},
    "ministral": _HEADS,
    "mllama": {"text_config": {"cross_attention_layers": [3]}},
    "nemotron": {**_HEADS, "num_key_value_heads": 2},
    "qwen4_exp_text": _INDEXER,
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "reformer": {
        **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8]},
        "attn_layers": ["local", "local", "local", "local"],
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 16},  # keys are of half the width, and of 64
    "xmod": {"default_language": "en_XX"},
}
EXCEPTIONS["qwen4_exp"] = {"text_config": _INDEXER}
for _name in ("gemma4", "gemma4_unified"):
    EXCEPTIONS[_name] = {"text_config": EXCEPTIONS["gemma4_text"]}
EXCEPTIONS["gemma4_unified_text"] = EXCEPTIONS["gemma4_text"]

#: Hidden states before those of the first token, where there are others than those of text.
EXTRA_TOKENS = {"cpmant": 32}

#: Types whose model is of a part of their configuration.
PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}


def build(model_type, seed=0, **more):
    """A tiny model of a type with random weights, larger than usual, so that its blocks do something.

    ``more`` are changes to its configuration.
    """
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    make = model_class if model_type in PARTS else AutoModelForCausalLM.from_config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make(tiny(model_type, **more))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny(model_type, **more):
    """The smallest configuration of a type that is still like it."""
    config = AutoConfig.for_model(model_type)
    if model_type in PARTS:
        config = getattr(config, PARTS[model_type])
    changes = shrunk(config)
    _merge(changes, {**EXCEPTIONS.get(model_type, {}), **more})
    return type(config)(**changes)


def shrunk(config):
    """Changes that make a configuration small, by the names of its fields."""
    changes, depth = {}, 0
    for name, value in config.to_dict().items():
        part = vars(config).get(name)
        if isinstance(part, PretrainedConfig):
            changes[name] = shrunk(part)
        elif type(value) is int:
            if (found := _rule(name)) is not None and (value > found or name.endswith("_token_id")):
                changes[name] = found
            if re.fullmatch(_DEPTH, name):
                depth = value
    for name, value in config.to_dict().items():
        if isinstance(value, (list, tuple)) and depth > BLOCKS and len(value) == depth:
            changes[name] = _list(name, value)
    if getattr(config, "is_decoder", True) is False:
        changes["is_decoder"] = True
    if "kv_lora_rank" in changes and "num_key_value_heads" in changes:  # latent attention has no groups
        changes["num_key_value_heads"] = 4
    return changes


def _rule(name):
    return next((size for rule, size in RULES.items() if re.fullmatch(rule, name)), None)


def _list(name, values):
    """An entry a block: every kind of block that there is, in turn."""
    if values[:BLOCKS] == [*range(BLOCKS)]:  # indices of blocks
        return values[:BLOCKS]
    distinct = list(dict.fromkeys(values))
    if type(distinct[0]) is int and (found := _rule(name)) is not None:
        distinct = [found]
    return [distinct[place % len(distinct)] for place in range(BLOCKS)]


def _merge(changes, more):
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(changes.get(name), dict):
            _merge(changes[name], value)
        else:
            changes[name] = value
