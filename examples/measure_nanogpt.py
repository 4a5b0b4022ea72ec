"""Measure a GPT as it is written from scratch: `transformer.h` is found, and it takes rows of token ids alone."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

import rectilinear

WIDTH, HEADS, CONTEXT, VOCABULARY = 32, 4, 64, 100


class CausalSelfAttention(nn.Module):
    """Attention of a token to itself and those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, tokens, width]`` to the same."""
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        mixed: Tensor = self.c_proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and MLP with a norm before each, added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), CausalSelfAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """``[rows, tokens, width]`` to the same."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Embeddings, blocks, a norm and a head."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCABULARY, WIDTH),
                "wpe": nn.Embedding(CONTEXT, WIDTH),
                "h": nn.ModuleList(Block() for _ in range(blocks)),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``[rows, tokens, vocabulary]`` of token ids ``[rows, tokens]``."""
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:  # type: ignore[attr-defined]
            x = block(x)
        logits: Tensor = self.lm_head(parts["ln_f"](x))
        return logits


if __name__ == "__main__":
    torch.manual_seed(0)
    profile = rectilinear.measure(GPT(), torch.randint(VOCABULARY, (100, CONTEXT)), progress=False)
    for block in profile.blocks:
        score = block.update_linearity
        print(f"block {block.index}: update linearity {score.held_out:.3f} ± {score.stderr:.3f} held out")
