"""A decoder as ChatGLM's remote code has it: hidden states ``[tokens, rows, width]``, one list `encoder.layers`."""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class SequenceFirstConfig(PretrainedConfig):
    model_type = "sequence_first"

    def __init__(
        self, hidden_size=24, num_layers=3, ffn_hidden_size=40, padded_vocab_size=128, seq_length=64, **kwargs
    ):
        self.hidden_size, self.num_layers, self.ffn_hidden_size = hidden_size, num_layers, ffn_hidden_size
        self.padded_vocab_size, self.vocab_size = padded_vocab_size, padded_vocab_size
        super().__init__(**kwargs)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.self_attention = nn.MultiheadAttention(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.ffn_hidden_size), nn.SiLU(), nn.Linear(config.ffn_hidden_size, width)
        )

    def forward(self, hidden_states, attention_mask):
        normed = self.input_layernorm(hidden_states)
        mixed, _ = self.self_attention(normed, normed, normed, attn_mask=attention_mask, need_weights=False)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), None


class SequenceFirstForCausalLM(PreTrainedModel):
    config_class = SequenceFirstConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_layers))})
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        hidden_states = self.embedding(input_ids).transpose(0, 1)
        causal = torch.ones(len(hidden_states), len(hidden_states), dtype=torch.bool).triu(1)
        for layer in self.encoder["layers"]:
            hidden_states, _ = layer(hidden_states, causal)
        return CausalLMOutputWithPast(logits=self.output_layer(hidden_states.transpose(0, 1)))
