"""What replacing parts of a model will need, before it starts."""

from __future__ import annotations

from torch import nn

from rectilinear.core.block_moments import bytes_of_moments
from rectilinear.errors import RequestError
from rectilinear.linearization.scope import Scope
from rectilinear.measurement.needs import Needs, bytes_of_weights, itemsize_of
from rectilinear.models.describe import count_parameters
from rectilinear.models.memory import available_memory
from rectilinear.models.state_store import check_room

# Matrices of a fold's size beside those of the folds: their sum, and what is made of it.
_BESIDE = 2


def find_needs(model: nn.Module, scope: Scope, tokens: int, folds: int, *, walks: bool) -> Needs:
    """What it takes to fit the replacements of a request on some tokens, once each.

    Hidden states are kept of the original and of the edited model. Operations are those of a forward pass of both and,
    for f features, of two products of f by f and f by the width a token and replacement; another pass and three
    products of the width where blocks are chosen by their scores. Losses, and trials, come on top.

    Raises:
        RequestError: moments that do not fit in memory, hidden states that do not on disk.
    """
    request, width, stack = scope.request, scope.width, scope.stack
    named = request.named
    each = request.templates if named is None else named
    features = [one.by.features(width, one.target) for one in each]
    any_filter = any(one.by.remembers for one in each)
    moments = (folds + _BESIDE) * 8 * max((f * (f + width) for f in features), default=0)
    each_time = len(stack) if request.selection.by_cost else len(scope.candidates)
    products = sum(f * (f + width) for f in features) * (1 if named is not None else each_time)
    operations = tokens * (4.0 * count_parameters(stack.blocks) + 2 * products)
    of_scores = 0
    if named is None and not request.selection.by_cost and request.selection.select in ("score", "influence"):
        of_scores = bytes_of_moments(width, 4) * (1 if walks else len(stack))
        operations += tokens * (2 * count_parameters(stack.blocks) + 6 * width**2 * len(stack))
    states = 2 * tokens * width * itemsize_of(stack) if walks else 0
    check_room(states)
    free = available_memory()
    for needed, what, hint in (
        (of_scores, f"{len(stack)} blocks, which are chosen by their scores", "`blocks`, which names them"),
        (moments, f"{max(features, default=0):,} features", "fewer `folds`" + ", `taps` or `rates`" * any_filter),
    ):
        if needed > free:
            got = f"{free / 1e9:.1f} GB"
            raise RequestError(f"expected memory for {needed / 1e9:.1f} GB of moments of {what}, got {got}; try {hint}")
    return Needs(width, bytes_of_weights(model), max(moments, of_scores), states, operations)
