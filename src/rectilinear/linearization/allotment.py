"""Windows for key-value heads: long ones for those that lose most with short ones."""

from __future__ import annotations

from collections.abc import Sequence

from rectilinear.linearization.windows import Survey


def allot(surveys: Sequence[Survey], mean: int) -> list[list[int]]:
    """Windows of all key-value heads of some attentions, of a mean that is at most ``mean``, for the least error.

    All begin with the shortest; then the head whose error falls most for each token gets a longer one, as long as there
    are tokens left.
    """
    heads = [(number, head) for number, one in enumerate(surveys) for head in range(len(one.errors))]
    grids, errors = [one.grid for one in surveys], [one.errors.tolist() for one in surveys]
    places = dict.fromkeys(heads, 0)
    left = mean * len(heads) - sum(grids[number][0] for number, _ in heads)

    def gain(step: tuple[tuple[int, int], int]) -> float:
        (number, head), to = step
        lost, grid, at = errors[number][head], grids[number], places[number, head]
        return float((lost[at] - lost[to]) / (grid[to] - grid[at]))

    while True:
        steps = [
            (head, to)
            for head in heads
            for to in range(places[head] + 1, len(grids[head[0]]))
            if grids[head[0]][to] - grids[head[0]][places[head]] <= left
        ]
        best = max(steps, key=gain, default=None)
        if best is None or gain(best) <= 0:
            break
        head, to = best
        left -= grids[head[0]][to] - grids[head[0]][places[head]]
        places[head] = to
    return [[grid[places[number, head]] for head in range(len(errors[number]))] for number, grid in enumerate(grids)]
