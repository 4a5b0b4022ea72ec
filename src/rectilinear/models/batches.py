"""How many rows to run at once, and what to say when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from rectilinear.errors import JobError, RequestError
from rectilinear.models.running import device_of
from rectilinear.ranks import in_step
from rectilinear.settings import BatchSize

_Result = TypeVar("_Result")

# Tokens of one forward pass where the batch size is not given: enough to keep the device busy.
_TOKENS_CPU, _TOKENS_ACCELERATOR = 2048, 16384


def check_batch_size(batch_size: BatchSize) -> None:
    """Raise `RequestError` for a batch size below 1."""
    if batch_size != "auto" and batch_size < 1:
        raise RequestError(f"expected a batch size of at least 1, got {batch_size}")


def with_batch_size(
    attempt: Callable[[int], _Result], batch_size: BatchSize, module: nn.Module, seq_len: int
) -> _Result:
    """Call ``attempt`` with a number of rows; for ``"auto"`` again with half as many while memory runs out.

    Of processes that share a job all call it again where one runs out of memory.
    """
    attempt = in_step(attempt)
    if batch_size != "auto":
        return attempt(batch_size)
    from accelerate.utils import find_executable_batch_size

    on_cpu = device_of(module).type == "cpu"
    size = max(1, (_TOKENS_CPU if on_cpu else _TOKENS_ACCELERATOR) // seq_len)

    def halve() -> int:
        nonlocal size
        if size == 1:
            raise MemoryError("not even one row fits")
        size //= 2
        return size

    halving = find_executable_batch_size(attempt, starting_batch_size=size, reduce_batch_size_fn=halve)
    result: _Result = halving()
    return result


@contextmanager
def reporting_exhausted_memory() -> Iterator[None]:
    """Turn exhausted memory into a `JobError` that says what to try; also decorates functions."""
    from accelerate.utils.memory import should_reduce_batch_size

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise JobError(
                "out of memory; try a smaller `batch_size`, shorter rows or, where there are `folds`, fewer"
            ) from error
        raise
