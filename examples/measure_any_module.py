"""Measure a module that transformers has never heard of: pass batches, and say where its blocks are."""

import torch
from torch import nn

import rectilinear


class ResidualNetwork(nn.Module):
    """Six residual blocks; the last one is linear."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        nonlinear = [nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(5)]
        self.layers = nn.ModuleList(Residual(update) for update in [*nonlinear, nn.Linear(width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, width]`` to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class Residual(nn.Module):
    """``x + update(x)``."""

    def __init__(self, update: nn.Module) -> None:
        super().__init__()
        self.update = update

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[rows, width]`` to the same."""
        return x + self.update(x)


torch.manual_seed(0)
batches = [3 * torch.randn(500, 32) for _ in range(8)]
profile = rectilinear.measure(ResidualNetwork(), batches, rectilinear.Measurement(blocks="layers"))
for block in profile.blocks:
    score = block.update_linearity
    print(f"block {block.index}: update linearity {score.held_out:.3f} ± {score.stderr:.3f} held out")
assert profile.blocks[-1].update_linearity.in_sample > 1 - 1e-6
