"""Exact match and F1 of short answers (SQuAD, arXiv 1606.05250), by which ReCoRD is scored.

The harness takes them from a module that transformers no longer has.
"""

from __future__ import annotations

import importlib.util
import re
import string
import sys
from collections import Counter
from types import ModuleType

_MODULE = "transformers.data.metrics.squad_metrics"


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


def provide_squad_metrics() -> None:
    """Make these functions importable where the harness looks for them, unless transformers has its own."""
    package = _MODULE.rpartition(".")[0]
    if _MODULE in sys.modules or importlib.util.find_spec(package):
        return
    metrics, parent = ModuleType(_MODULE), ModuleType(package)
    vars(metrics).update(compute_exact=compute_exact, compute_f1=compute_f1)
    vars(parent).update(squad_metrics=metrics, __path__=[])
    sys.modules |= {package: parent, _MODULE: metrics}


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()
