"""What can be said of texts without a judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from pydantic import Field

from rectilinear.results import Record

#: What is counted in texts beside their words.
DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "repetition")

# Words of the runs that are looked for again in a text.
_REPEATED = 4


class TextMeasures(Record):
    """Of some texts, word by word; case and punctuation between words aside."""

    texts: int
    words: float = Field(description="mean over texts")
    distinct_1: float | None = Field(description="different words over words, of all texts; null where there are none")
    distinct_2: float | None = Field(description="the same of pairs of neighbours (arXiv 1510.03055)")
    distinct_3: float | None = Field(description="of threes")
    repetition: float | None = Field(
        description="share of runs of four words that were in the same text before, mean over texts that have any"
    )


def measure_texts(texts: Sequence[str]) -> TextMeasures:
    """Diversity and repetition of texts.

    Distinct n-grams become a smaller share the more text there is: compare texts of like length and number.
    """
    words = [_words(text) for text in texts]
    repeated = [share for share in map(_repetition, words) if share is not None]
    return TextMeasures(
        texts=len(texts),
        words=sum(map(len, words)) / max(1, len(texts)),
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        distinct_3=_distinct(words, 3),
        repetition=sum(repeated) / len(repeated) if repeated else None,
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower())


def _runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [*zip(*(islice(words, start, None) for start in range(length)), strict=False)]


def _distinct(texts: Sequence[Sequence[str]], length: int) -> float | None:
    runs = [run for words in texts for run in _runs(words, length)]
    return len({*runs}) / len(runs) if runs else None


def _repetition(words: Sequence[str]) -> float | None:
    counts = Counter(_runs(words, _REPEATED))
    return 1 - len(counts) / counts.total() if counts else None
