"""Moments add: gather them in parts (two machines, two days), save, load, merge, and score once."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rectilinear import BlockAccumulator, BlockMoments, score_block

torch.manual_seed(0)
x = torch.randn(8000, 48)
y = x + torch.tanh(x @ torch.randn(48, 48) / 7) + 0.1 * torch.randn(8000, 48)

with tempfile.TemporaryDirectory() as folder:
    for part in range(2):
        accumulator = BlockAccumulator(folds=4)
        for fold in range(4):
            rows = slice(4000 * part + 1000 * fold, 4000 * part + 1000 * (fold + 1))
            accumulator.update(x[rows], y[rows], fold)
        save_file(accumulator.freeze().to_tensors(), Path(folder) / f"part{part}.safetensors")
    first, second = (
        BlockMoments.from_tensors(load_file(Path(folder) / f"part{part}.safetensors")) for part in range(2)
    )

scores = score_block(first + second).all_tokens
print(f"{scores.tokens} tokens, update linearity {scores.update_linearity.held_out:.3f} held out")
assert scores.tokens == 8000
