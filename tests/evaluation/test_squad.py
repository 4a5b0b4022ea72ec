"""Short answers, scored by hand."""

import importlib
import sys

import pytest

from rectilinear.evaluation.surroundings import compute_exact, compute_f1, provide_squad_metrics


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1"),
    [
        ("The Old Man", "old man", 1, 1.0),
        ("old man", "an old, red man.", 0, 0.8),
        ("New York", "York", 0, 2 / 3),
        ("cat", "dog", 0, 0.0),
        ("cat cat", "cat", 0, 2 / 3),
        ("the", "a", 1, 1.0),
        ("the", "cat", 0, 0.0),
        ("U.S.", "us", 1, 1.0),
    ],
)
def test_words_decide(gold, answer, exact, f1):
    assert compute_exact(gold, answer) == exact
    assert compute_f1(gold, answer) == pytest.approx(f1)


def test_they_are_where_the_harness_looks_for_them():
    provide_squad_metrics()
    provide_squad_metrics()
    found = importlib.import_module("transformers.data.metrics.squad_metrics")
    assert found.compute_f1("a cat", "cat") == 1.0
    assert "transformers.data.metrics" in sys.modules
