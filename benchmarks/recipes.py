"""Published ways to replace blocks without training, each as what it chooses and what it puts there.

Every recipe, those in `attention_recipes` too, is a function of a `Choosing` and of how many to replace, and gives a
`Made`. What is as published, and what is not, its docstring says. All see the same rows, those that everything here is
fitted on, where papers take some of their own; scores of choices are means over these rows, of states before the final
norm.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from choosing import Choosing, best
from editing import Made, fitted, hadamard, named, patched, without
from scoring import linearized

from rectilinear import Folded, Selection
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.replacement import words_of
from rectilinear.models.describe import count_parameters


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
    before it gives. Not as published: a ridge chosen by folds where that has none. Its other objective, the cosine, is
    optimised step by step, and left out.
    """
    distance = span_distances(choosing, count, range(1, depth_of(choosing) - count + 1))
    return fitted(choosing, Folded(), spanning(best(distance), count), distance)


def linearpatch(choosing: Choosing, count: int) -> Made:
    """LinearPatch (arXiv 2505.24680): channels are scaled in a Hadamard basis where the span was, ``H diag(s) H'``.

    As published: s is the ratio of mean absolute values after and before the span, a mean over rows, and the span is
    the one of LLM-Streamline (2403.19135), of highest cosine, neither with the first block nor with the last. Not as
    published: a width that is no power of 2 takes a Hadamard matrix of Paley's and Sylvester's, where its code has a
    table of them. Its distillation, which is training, is left out.
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
    losses: dict[int, float] = {}
    start = time.perf_counter()
    for first in least(distance, most or len(distance)):
        made = fitted(choosing, kind, spanning(first, count), {})
        losses[first] = made.scores["held out"]
        if first == best(losses):
            chosen = made
    fit = chosen.seconds["fit"]
    return replace(chosen, scores=named(losses), seconds={"choice": time.perf_counter() - start - fit, "fit": fit})


def cuts(choosing: Choosing, count: int, kind: Kind) -> Made:
    """Ours: the blocks of SLEB without its rule, and where they were a fit of a kind for each run of them."""
    chosen = sleb(choosing, count, ends=True)
    made = fitted(choosing, kind, chosen.blocks, chosen.scores)
    return replace(made, seconds={**chosen.seconds, "fit": made.seconds["fit"]})


def mixed(choosing: Choosing, count: int, **search: Any) -> Made:
    """Ours: maps, or nothing, for those attentions, MLPs, blocks and runs of blocks that cost least together.

    At most as many parameters are left as where that many blocks are removed. ``search``: kinds, and how the choice is
    made.
    """
    start = time.perf_counter()
    blocks = count_parameters(choosing.stack.blocks[:count])
    budget = blocks / count_parameters([choosing.original])
    selection = Selection(budget=budget, **search)
    made = linearized(*choosing.source, None, selection)
    touched = sorted({block for one in made.plan.replacements for block in one.blocks})
    seconds = {"choice": time.perf_counter() - start}
    return Made(
        made.model,
        tuple(touched),
        {"held out": made.plan.selection.loss_after},
        seconds,
        where=words_of(made.plan.replacements),
    )


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
