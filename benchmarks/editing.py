"""What recipes make: models with blocks or attentions left out, or with something in their places."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from choosing import Choosing
from scoring import linearized
from torch import Tensor, nn

from rectilinear import CalibrationRows, Drop, Selection
from rectilinear.linearization.kinds.base import Kind
from rectilinear.models.capture import first_value, with_first
from rectilinear.models.find_blocks import find_blocks
from rectilinear.settings import Target


@dataclass(frozen=True)
class Made:
    """An edited model and which blocks it was edited in, counted as in the original.

    Attributes:
        scores: what was chosen by, a block, a span by its first block or a set of blocks each.
        seconds: of the choice (of the pass that many choices share, or of all trials), and of the fit.
        where: what was replaced by what, where that is not one thing for whole blocks or attentions.
        how: rows are run, where that is not as usual (see `scoring.score`).
    """

    model: Any
    blocks: tuple[int, ...]
    scores: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)
    where: str = ""
    how: Any = None


class Mapped(nn.Module):
    """An affine map ``x A + b`` in place of an attention; a stand-in that gives zeros knows what form that has."""

    def __init__(self, zeros: nn.Module, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.zeros = zeros
        self.map = nn.Linear(*matrix.shape)
        with torch.no_grad():
            self.map.weight.copy_(matrix.T)
            self.map.bias.copy_(bias)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``[rows, tokens, width]`` to the same shape, in the attention's form."""
        output = self.zeros(*args, **kwargs)
        return with_first(output, self.map(args[0] if args else kwargs["hidden_states"]))


class Patched(nn.Module):
    """A block whose output is multiplied by a matrix."""

    def __init__(self, block: nn.Module, matrix: Tensor) -> None:
        super().__init__()
        self.block = block
        self.matrix = nn.Parameter(matrix.float(), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """``[rows, tokens, width]`` to the same shape, in the block's form."""
        output = self.block(*args, **kwargs)
        return with_first(output, first_value(output) @ self.matrix)


def patched(made: Made, matrix: Tensor) -> Made:
    """The same with a matrix where a span was left out, after the block before it."""
    stack = find_blocks(made.model)
    before = made.blocks[0] - 1
    made.model.set_submodule(stack.path_of(before), Patched(stack.blocks[before], matrix))
    return made


def without(
    choosing: Choosing,
    blocks: Sequence[int],
    scores: Mapping[Any, float],
    choice: float | None = None,
    *,
    fit: float = 0.0,
    target: Target = "block",
) -> Made:
    """The model without some blocks or attentions."""
    rows = CalibrationRows(max_tokens=2 * choosing.study.seq_len, seq_len=choosing.study.seq_len)  # nothing is fitted
    made = linearized(*choosing.source, Drop(), Selection(blocks=sorted(blocks), target=target), rows=rows)
    seconds = {"choice": choosing.survey["seconds"] if choice is None else choice, "fit": fit}
    return Made(made.model, tuple(sorted(blocks)), named(scores), seconds)


def fitted(
    choosing: Choosing, kind: Kind, blocks: Sequence[int], scores: Mapping[Any, float], target: Target = "block"
) -> Made:
    """The model with something fitted in place of attentions, or of a span as one."""
    start = time.perf_counter()
    selection = Selection(blocks=sorted(blocks), merge=target == "block", target=target)
    made = linearized(*choosing.source, kind, selection)
    seconds = {"choice": choosing.survey["seconds"], "fit": time.perf_counter() - start}
    scores = named(scores) or {"held out": made.plan.selection.loss_after}
    return Made(made.model, tuple(sorted(blocks)), scores, seconds)


def named(scores: Mapping[Any, float]) -> dict[str, float]:
    """As JSON has it."""
    return {str(key): float(value) for key, value in scores.items()}


def hadamard(width: int) -> Tensor:
    """An orthogonal matrix whose entries are all ``+-1 / sqrt(width)``, float64; of Sylvester's and Paley's kind.

    Raises:
        ValueError: the width is not a product of 2s, 12s and 20s, each order that of a matrix known here.
    """
    whole, left = torch.ones(1, 1, dtype=torch.float64), width
    for order, prime in ((20, 19), (12, 11), (2, 1)):
        while left % order == 0:
            whole, left = torch.kron(whole, _paley(prime)), left // order
    if left != 1:
        raise ValueError(f"expected a width of factors 2, 12 and 20, got {width}")
    return whole / width**0.5


def _paley(prime: int) -> Tensor:
    """Paley's first construction for a prime 3 more than a multiple of 4: ``[prime + 1, prime + 1]`` of +-1."""
    if prime == 1:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    squares = {number * number % prime for number in range(1, prime)}
    difference = (torch.arange(prime)[:, None] - torch.arange(prime)) % prime
    is_square = torch.tensor([number in squares for number in range(prime)])
    jacobsthal = torch.where(difference == 0, 0.0, torch.where(is_square[difference], 1.0, -1.0)).double()
    skew = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1.0, -1.0, jacobsthal
    return skew + torch.eye(prime + 1, dtype=torch.float64)
