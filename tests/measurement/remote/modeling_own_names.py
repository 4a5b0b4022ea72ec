"""A decoder as MPT has it as remote code: `d_model`, `n_layers`, `max_seq_len`, blocks that return tuples."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class OwnNamesConfig(PretrainedConfig):
    model_type = "own_names"

    def __init__(self, d_model=24, n_layers=3, n_heads=4, max_seq_len=64, vocab_size=128, **kwargs):
        self.d_model, self.n_layers, self.n_heads = d_model, n_layers, n_heads
        self.max_seq_len, self.vocab_size = max_seq_len, vocab_size
        super().__init__(**kwargs)

    @property
    def hidden_size(self):
        return self.d_model


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.attn = nn.MultiheadAttention(config.d_model, config.n_heads, batch_first=True)
        self.ffn = nn.ModuleDict({"up_proj": nn.Linear(config.d_model, 40), "down_proj": nn.Linear(40, config.d_model)})

    def forward(self, x, past_key_value=None, attn_bias=None):
        a = self.norm_1(x)
        x = x + self.attn(a, a, a, attn_mask=attn_bias, need_weights=False)[0]
        x = x + self.ffn["down_proj"](nn.functional.gelu(self.ffn["up_proj"](self.norm_2(x))))
        return x, None, past_key_value


class OwnNamesForCausalLM(PreTrainedModel):
    config_class = OwnNamesConfig

    def __init__(self, config):
        super().__init__(config)
        parts = {"wte": nn.Embedding(config.vocab_size, config.d_model)}
        parts["blocks"] = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        x = self.transformer["wte"](input_ids)
        bias = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        for block in self.transformer["blocks"]:
            x, _, _ = block(x, None, bias)
        return CausalLMOutputWithPast(logits=self.lm_head(x))
