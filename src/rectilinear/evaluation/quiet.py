"""The harness's noise, and its errors, which may come from the code of any task."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.models.capture import own_randomness


@contextmanager
def quiet() -> Iterator[None]:
    """The harness without what users can do nothing about, and without traces of it in this process."""
    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a bootstrap in forks of a process that has threads may hang
    try:
        with own_randomness(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.filterwarnings("ignore", "F-score is ill-defined")  # where an answer is never given
            yield
    finally:
        logger.setLevel(level)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]


def is_ours(error: Exception) -> bool:
    """Whether an error says what it means, or is one that others look for: memory that does not suffice."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, (RequestError, JobError, MemoryError)) or should_reduce_batch_size(error)


def describe(error: BaseException) -> str:
    """What code of a task ran into: messages of such errors are often no more than a name."""
    return f"{type(error).__name__}: {first_line(error)}"
