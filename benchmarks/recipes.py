"""Published ways to replace blocks and attentions without training, each as what it chooses and what it puts there.

Every recipe is a function of a `Choosing` and of how many blocks or attentions to replace, and gives a `Made`. What is
as published, and what is not, its docstring says. All see the same rows, those that everything here is fitted on,
where papers take some of their own; scores of choices are means over these rows, of states before the final norm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from choosing import Choosing, Joint, best
from scoring import LOADING
from torch import Tensor, nn

import rectilinear
from rectilinear import Affine, CalibrationRows, Drop, Folded, Selection
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
    """

    model: Any
    blocks: tuple[int, ...]
    scores: Mapping[str, float]
    seconds: Mapping[str, float] = field(default_factory=dict)


def shortgpt(choosing: Choosing, count: int) -> Made:
    """ShortGPT (arXiv 2403.03853): the blocks of least influence, 1 - E cos(input, output), are left out.

    As published: in one go, from the original, any block.
    """
    cosine = choosing.survey["cosine"]
    influence = {index: 1 - cosine[index][index + 1] for index in range(len(cosine) - 1)}
    return without(choosing, least(influence, count), influence)


def sleb(choosing: Choosing, count: int, *, ends: bool) -> Made:
    """SLEB (arXiv 2402.09025): again and again the block is left out without which the loss is least.

    As published, but for how many tokens the loss is measured on (published: 128 rows of 2,048). Its code never takes
    the first or the last of the blocks that are left, which ``ends`` allows.
    """
    gone: list[int] = []
    scores, seconds, depth = dict[str, float](), 0.0, len(choosing.survey["cca"])
    for _ in range(count):
        left = [index for index in range(depth) if index not in gone]
        tried = choosing.trials.without(gone, left if ends else left[1:-1])
        gone.append(best({index: one["loss"] for index, one in tried.items()}))
        scores[" ".join(map(str, gone))] = tried[gone[-1]]["loss"]
        seconds += sum(one["seconds"] for one in tried.values())
    return without(choosing, gone, scores, seconds)


def uidl(choosing: Choosing, count: int) -> Made:
    """UIDL (arXiv 2403.17887): the span is left out whose input and output are the least angle apart.

    As published: of the last tokens of rows, any span. The published healing, which is training, is left out.
    """
    angle = choosing.survey["angle"]
    angles = {first: angle[first][first + count] for first in range(len(angle) - count)}
    return without(choosing, spanning(best(angles), count), angles)


def replaceme(choosing: Choosing, count: int) -> Made:
    """ReplaceMe (arXiv 2505.02819): the span of least cosine distance, its map folded into the projection before it.

    As published: the criterion, over all tokens, and the least squares of the stream after the span on what the MLP
    before it gives. Not as published: a ridge chosen by folds where that has none.
    """
    distance = span_distances(choosing, count, range(1, depth_of(choosing) - count + 1))
    return fitted(choosing, Folded(), spanning(best(distance), count), distance)


def linearpatch(choosing: Choosing, count: int) -> Made:
    """LinearPatch (arXiv 2505.24680): channels are scaled in a Hadamard basis where the span was, ``H diag(s) H'``.

    As published: s is the ratio of mean absolute values after and before the span, a mean over rows, and the span is
    the one of LLM-Streamline (2403.19135), of highest cosine, neither with the first block nor with the last. Not as
    published: a width that is no power of 2 takes a Hadamard matrix of Paley's and Sylvester's, as any is as good; the
    scales are one for each row, not for each batch. Without its distillation, which is training.
    """
    span, distance = streamline(choosing, count)
    start, basis = time.perf_counter(), hadamard(choosing.original.config.hidden_size)
    ratios = []
    for states in choosing.states():
        before, after = ((states.stream[index].double() @ basis).abs().mean(1) for index in (span[0], span[-1] + 1))
        ratios.append(after / before)
    patch = basis @ torch.diag(torch.cat(ratios).mean(0)) @ basis.T
    made = without(choosing, span, distance, fit=time.perf_counter() - start)
    return patched(made, patch)


def ghosted(choosing: Choosing, count: int) -> Made:
    """Ghosted Layers (arXiv 2605.15491): a matrix where the span was, by least squares of what the span added.

    As published: no bias, a ridge of 1e-6 on the sums of products, in float64, the span of LLM-Streamline as in its
    code's default.
    """
    span, distance = streamline(choosing, count)
    start = time.perf_counter()
    width = choosing.original.config.hidden_size
    gram, cross = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for states in choosing.states():
        x, y = (states.stream[index].flatten(0, 1).double() for index in (span[0], span[-1] + 1))
        gram, cross = gram + x.T @ x, cross + x.T @ (y - x)
    identity = torch.eye(width, dtype=torch.float64)
    made = without(choosing, span, distance, fit=time.perf_counter() - start)
    return patched(made, identity + torch.linalg.solve(gram + 1e-6 * identity, cross))


def best_span(choosing: Choosing, count: int, kind: Kind, most: int | None = None) -> Made:
    """Ours: the span whose replacement by a kind, as one, gives least loss on rows of the fit's text not fitted on.

    ``most``: of how many spans, those of least cosine distance; all where it is not given.
    """
    begins = range(kind.needs_block_before, depth_of(choosing) - count + 1)
    distance = span_distances(choosing, count, begins)
    tried: dict[int, tuple[float, Made]] = {}
    start = time.perf_counter()
    for first in least(distance, most or len(distance)):
        made = fitted(choosing, kind, spanning(first, count), {})
        tried = {**tried, first: (made.scores["held out"], made)}
        worse = [other for other in tried if other != best({each: loss for each, (loss, _) in tried.items()})]
        tried |= {other: (tried[other][0], None) for other in worse}  # one model at a time
    losses = {first: loss for first, (loss, _) in tried.items()}
    made = tried[best(losses)][1]
    seconds = {"choice": time.perf_counter() - start - made.seconds["fit"], "fit": made.seconds["fit"]}
    return Made(made.model, made.blocks, named(losses), seconds)


def cuts(choosing: Choosing, count: int, kind: Kind) -> Made:
    """Ours: the blocks of SLEB without its rule, and where they were a fit of a kind for each run of them."""
    chosen = sleb(choosing, count, ends=True)
    made = fitted(choosing, kind, chosen.blocks, chosen.scores)
    return replace(made, seconds={**chosen.seconds, "fit": made.seconds["fit"]})


def llm_drop(choosing: Choosing, count: int) -> Made:
    """LLM-Drop (arXiv 2406.15786): attentions that turn the stream least are left out, by E cos(before, after).

    As published: in one go, from the original. The norm before an attention that is gone stays, as it does nothing.
    """
    cosine = dict(enumerate(choosing.survey["attention_cosine"]))
    distance = {index: 1 - value for index, value in cosine.items()}
    return without(choosing, least(distance, count), distance, target="attention")


def nbl(choosing: Choosing, count: int) -> Made:
    """NBL (arXiv 2505.21077): attentions become affine maps of the stream before the norm, chosen by CCA.

    As published: least of ``sum(1 - rho^2)`` over canonical correlations of the stream before and after, maps by
    least squares without a ridge, all from the original's states. The norms of these attentions go.
    """
    bound = dict(enumerate(choosing.survey["cca"]))
    chosen = sorted(least(bound, count))
    start = time.perf_counter()
    joints = {index: Joint() for index in chosen}
    for states in choosing.states():
        for index, joint in joints.items():
            joint.add(states.stream[index], states.attention[index])
    maps = {index: joint.regression() for index, joint in joints.items()}
    made = without(choosing, chosen, bound, target="attention", fit=time.perf_counter() - start)
    for index, block in enumerate(find_blocks(made.model)):
        if index in maps:
            block.self_attn, block.input_layernorm = Mapped(block.self_attn, *maps[index]), nn.Identity()
    return made


def nbl_sequential(choosing: Choosing, count: int) -> Made:
    """NBL's choice with our fit: maps of what the norm gives, one after another, each making good for those before."""
    bound = dict(enumerate(choosing.survey["cca"]))
    return fitted(choosing, Affine(), least(bound, count), bound, target="attention")


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
    made = replaced(choosing, Drop(), Selection(blocks=sorted(blocks), target=target), rows)
    seconds = {"choice": choosing.survey["seconds"] if choice is None else choice, "fit": fit}
    return Made(made.model, tuple(sorted(blocks)), named(scores), seconds)


def fitted(
    choosing: Choosing, kind: Kind, blocks: Sequence[int], scores: Mapping[Any, float], target: Target = "block"
) -> Made:
    """The model with something fitted in place of attentions, or of a span as one."""
    start = time.perf_counter()
    selection = Selection(blocks=sorted(blocks), merge=target == "block", target=target)
    made = replaced(choosing, kind, selection, choosing.study.rows)
    seconds = {"choice": choosing.survey["seconds"], "fit": time.perf_counter() - start}
    scores = named(scores) or {"held out": made.plan.selection.loss_after}
    return Made(made.model, tuple(sorted(blocks)), scores, seconds)


def replaced(choosing: Choosing, kind: Kind, selection: Selection, rows: CalibrationRows) -> rectilinear.Linearized:
    """What `rectilinear.linearize` makes of the model."""
    run: Any = {"rows": rows, "loading": LOADING, "batch_size": choosing.study.batch, "progress": False}
    return rectilinear.linearize(choosing.model, choosing.texts / choosing.study.fit, kind, selection, **run)


def streamline(choosing: Choosing, count: int) -> tuple[tuple[int, ...], Mapping[int, float]]:
    """The span of LLM-Streamline (arXiv 2403.19135), without the first block and the last, and all distances."""
    distance = span_distances(choosing, count, range(1, depth_of(choosing) - count))
    return spanning(best(distance), count), distance


def span_distances(choosing: Choosing, count: int, begins: Sequence[int]) -> dict[int, float]:
    """1 less the mean cosine of what spans take and give, by their first block."""
    return {first: 1 - choosing.survey["cosine"][first][first + count] for first in begins}


def depth_of(choosing: Choosing) -> int:
    """Blocks of the original."""
    return len(choosing.survey["cca"])


def spanning(first: int, count: int) -> tuple[int, ...]:
    """Consecutive blocks."""
    return tuple(range(first, first + count))


def least(values: Mapping[int, float], count: int) -> list[int]:
    """The keys of the least values, the least first."""
    return sorted(values, key=lambda key: values[key])[:count]


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
