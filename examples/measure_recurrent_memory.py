"""Measure a decoder that reads a long sequence in segments and hands memory tokens from one to the next.

As recurrent memory transformers do: a segment is read with some memory tokens before it, which see all of it, and what
becomes of them is the memory of the next segment. The blocks run once a segment, so that their scores are over all of
them; the memory tokens are no text and do not count.
"""

import torch
from torch import Tensor, nn

import rectilinear

SEGMENT, MEMORY, WIDTH, VOCABULARY = 16, 4, 32, 100


class Block(nn.Module):
    """Attention and MLP with a norm before each, added to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """``[rows, tokens, width]`` to the same; ``hidden`` is true where a token must not look."""
        normed = self.norms[0](x)
        x = x + self.attention(normed, normed, normed, attn_mask=hidden, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class RecurrentMemory(nn.Module):
    """A decoder that reads segments, with a memory that goes from one to the next."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.memory = nn.Parameter(torch.randn(MEMORY, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states ``[rows, tokens, width]`` of token ids ``[rows, tokens]``, any number of segments long."""
        memory, outputs = self.memory.expand(len(ids), -1, -1), []
        for segment in ids.split(SEGMENT, 1):
            x = torch.cat([memory, self.embedding(segment)], 1)
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            hidden[:MEMORY] = False
            for block in self.blocks:
                x = block(x, hidden)
            memory, states = x[:, :MEMORY], x[:, MEMORY:]
            outputs.append(states)
        return torch.cat(outputs, 1)


if __name__ == "__main__":
    torch.manual_seed(0)
    rows = torch.randint(VOCABULARY, (8, 40 * SEGMENT))
    profile = rectilinear.measure(RecurrentMemory(), rows, progress=False)
    for block in profile.blocks:
        score = block.update_linearity
        print(f"block {block.index}: update linearity {score.held_out:.3f} ± {score.stderr:.3f} held out")
    assert profile.data.tokens == rows.numel()
