"""How long a model takes to decode a token, and how long each of its blocks does."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.logits import DecodingCache, next_logits
from rectilinear.models.running import device_of, evaluating, hooked, hooked_before, wait_for

#: Steps that are timed, after some to warm up.
STEPS, WARM_UP = 9, 2


@dataclass(frozen=True)
class StepTime:
    """Seconds to decode a token, sums of medians over several steps: what delays a step delays it in one place.

    Attributes:
        whole: of all of the model.
        blocks: of each block, or what is in its place.
    """

    whole: float
    blocks: tuple[float, ...]


class Decoder:
    """A model as it is now, at a place in a text: it can decode the last token again and again.

    Args:
        model: in which modules may be swapped afterwards, but not for ones that leave another cache.
        stack: of the blocks.
        ids: ``[rows, tokens]``, the text; at least two tokens.

    Raises:
        RequestError: the model has no cache to decode with.
    """

    def __init__(self, model: nn.Module, stack: BlockStack, ids: Tensor) -> None:
        self._model, self._stack, self._device = model, stack, device_of(model)
        self._last = ids[:, -1:].to(self._device)
        with evaluating(model):
            cache = next_logits(model, ids[:, :-1])[1]
        if cache is None:
            raise RequestError(
                f"expected a model that decodes with a cache for a `budget` of decoding, got {type(model).__name__}; "
                "try `budget=parameters=80%`"
            )
        self._cache: DecodingCache = cache

    def time(self, steps: int = STEPS) -> StepTime:
        """Time some steps, each of which begins with a copy of the same cache."""
        besides, blocks = list[float](), list[list[float]]()
        stacked = self._blocks
        with evaluating(self._model), self._timing() as clock:
            for _ in range(WARM_UP + steps):
                cache = copy.deepcopy(self._cache)
                clock.clear()
                begin = self._now()
                next_logits(self._model, self._last, cache)
                besides.append(self._now() - begin - sum(clock.values()))
                blocks.append([clock[block] / stacked.count(block) for block in stacked])
        medians = tuple(map(median, zip(*blocks[WARM_UP:], strict=True)))
        return StepTime(median(besides[WARM_UP:]) + sum(medians), medians)

    @contextmanager
    def _timing(self) -> Iterator[dict[nn.Module, float]]:
        """While open, seconds in each block are added up."""
        clock, begun = defaultdict[nn.Module, float](float), dict[nn.Module, float]()

        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            begun[module] = self._now()

        def end(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            clock[module] += self._now() - begun.pop(module)

        with hooked_before(self._blocks, begin), hooked(self._blocks, end):
            yield clock

    @property
    def _blocks(self) -> list[nn.Module]:
        """The blocks as they are now, one of them perhaps several times."""
        return [self._model.get_submodule(self._stack.path_of(index)) for index in range(len(self._stack))]

    def _now(self) -> float:
        wait_for(self._device)
        return perf_counter()


def share_of_change(before: StepTime, after: StepTime, changed: Sequence[int]) -> float:
    """How much longer a step takes where some blocks have changed, as a share of all of it before.

    The other blocks are the same in both, so that they tell how fast the machine was each time.
    """
    others = [index for index in range(len(before.blocks)) if index not in changed]
    now, then = (sum(times.blocks[index] for index in others) for times in (after, before))
    speed = then / now if others else 1.0
    longer = sum(after.blocks[index] * speed - before.blocks[index] for index in changed)
    return longer / before.whole
