"""What the harness lacks in a process of ours: silence, errors told apart, metrics that transformers no longer has."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import string
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import ModuleType

from rectilinear.errors import JobError, RequestError, first_line
from rectilinear.models.running import own_randomness

_SQUAD = "transformers.data.metrics.squad_metrics"


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


def provide_squad_metrics() -> None:
    """Make `compute_exact` and `compute_f1` importable where the harness looks for them, unless transformers has them.

    They score short answers (SQuAD, arXiv 1606.05250), as those of ReCoRD are.
    """
    package = _SQUAD.rpartition(".")[0]
    if _SQUAD in sys.modules or importlib.util.find_spec(package):
        return
    metrics, parent = ModuleType(_SQUAD), ModuleType(package)
    vars(metrics).update(compute_exact=compute_exact, compute_f1=compute_f1)
    vars(parent).update(squad_metrics=metrics, __path__=[])
    sys.modules |= {package: parent, _SQUAD: metrics}


def compute_exact(gold: str, answer: str) -> int:
    """Whether two answers have the same words; articles, case and punctuation aside."""
    return int(_words(gold) == _words(answer))


def compute_f1(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall of an answer's words; articles, case and punctuation aside."""
    expected, given = _words(gold), _words(answer)
    if not expected or not given:
        return float(expected == given)
    shared = (Counter(expected) & Counter(given)).total()
    return 2 * shared / (len(expected) + len(given))


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()
