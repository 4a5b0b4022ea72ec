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

    def best_step(head: tuple[int, int]) -> tuple[float, int] | None:
        """How much the error of a head falls for each token of the longer window that is best, and which that is."""
        lost, grid, at = errors[head[0]][head[1]], grids[head[0]], places[head]
        longer = (to for to in range(at + 1, len(grid)) if grid[to] - grid[at] <= left)
        steps = (((lost[at] - lost[to]) / (grid[to] - grid[at]), to) for to in longer)
        return max(steps, key=lambda step: step[0], default=None)

    def price(head: tuple[int, int], to: int) -> int:
        return grids[head[0]][to] - grids[head[0]][places[head]]

    steps = {head: best_step(head) for head in heads}
    while True:
        head, step = max(steps.items(), key=lambda item: item[1][0] if item[1] else 0.0, default=(None, None))
        if head is None or step is None or step[0] <= 0:
            break
        left -= price(head, step[1])
        places[head] = step[1]
        for other, known in steps.items():
            if other == head or (known and price(other, known[1]) > left):
                steps[other] = best_step(other)
    return [[grid[places[number, head]] for head in range(len(errors[number]))] for number, grid in enumerate(grids)]
