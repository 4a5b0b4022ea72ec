"""Counting words, by hand."""

import pytest

from rectilinear.evaluation.stories import measure_texts


def test_counts_by_hand():
    found = measure_texts(["The cat saw. The cat saw!", "a dog"])
    assert (found.texts, found.words) == (2, 4.0)
    assert found.distinct_1 == pytest.approx(5 / 8)
    assert found.distinct_2 == pytest.approx(4 / 6)  # the-cat, cat-saw, saw-the, a-dog; none across texts
    assert found.distinct_3 == pytest.approx(3 / 4)
    assert found.repetition == 0.0


def test_runs_that_come_again():
    again = measure_texts(["a b c d a b c d a b c d", "one two three four five"])
    assert again.repetition == pytest.approx((5 / 9 + 0) / 2)


def test_words_of_several_scripts_and_apostrophes():
    assert measure_texts(["don't well-known «слон» élan", ""]).distinct_1 == 1.0
    assert measure_texts(["don't well-known «слон» élan", ""]).words == 2.0


def test_nothing_to_count():
    found = measure_texts(["", " ... "])
    assert (found.words, found.distinct_1, found.repetition) == (0.0, None, None)
