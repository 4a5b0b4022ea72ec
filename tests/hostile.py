"""Input that nobody would write on purpose: bytes, values of JSON, lines of data files and values of options."""

import json
import os
from collections import Counter
from functools import wraps

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: ``make faults`` tries many examples, and ordinary tests some.
MANY = os.environ.get("RECTILINEAR_FAULTS") == "all"


#: How many inputs each property test tried.
TRIED: Counter[str] = Counter()


def examples(few, many, **more):
    """Stands below `given`: a property test tries a few examples, or many under ``make faults``, and counts them."""

    def counting(test):
        @wraps(test)
        def counted(*arguments, **inputs):
            TRIED[name] += 1
            return test(*arguments, **inputs)

        name = f"{test.__module__}.{test.__qualname__}".replace(".<locals>", "")
        limits = {"deadline": None, "suppress_health_check": list(HealthCheck), **more}
        return settings(max_examples=many if MANY else few, **limits)(counted)

    return counting


#: Characters that texts seldom have: control characters, halves of surrogate pairs, turned lines, no characters at all.
ODD = "\0\x1b[31m\x07\r\x0b\x85\u2028\u202e\ud83d\udce9\ufeff\ufffe\U0010ffff"
texts = st.one_of(st.text(max_size=20), st.text(st.sampled_from(ODD + "abc {}%"), max_size=20), st.just(""))

numbers = st.one_of(
    st.integers(-3, 3),
    st.floats(),  # NaN and infinities are among them
    st.sampled_from([2**31, 2**63 - 1, 2**63, 10**12, 10**30, -(10**30), 10**400, 1e-320]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)

#: What is not JSON, or only just.
_STRANGE = [
    '{"text": ' + "1" * 5000 + "}",
    "[" * 100_000,
    '{"text": ' + '{"a":' * 3000 + "1" + "}" * 3001,
    '{"text": "\\ud83d"}',
    '{"\\ud83d": "text"}',
    '{"text": "\\u0000"}',
    '{"text": NaN}',
    '{"text": 1e999}',
    '{"text": "one", "text": 2}',
    '{"text": "' + "long " * 40_000 + '"}',
    "\ufeff{}",
    "null",
    '"text"',
    "{",
]
lines = st.one_of(st.sampled_from(_STRANGE), values.map(lambda value: json.dumps(value, ensure_ascii=True)))

#: Encodings of files, of which UTF-8, with and without a mark, is the right one.
encodings = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252", "shift_jis"])


@st.composite
def records(draw, columns):
    """A line with some of the columns that are wanted, which may have anything in them."""
    record = {column: draw(st.one_of(texts, values)) for column in columns if draw(st.integers(0, 9))}
    return json.dumps({**record, **draw(st.dictionaries(texts, values, max_size=1))})


@st.composite
def files(draw, of=lines):
    """The bytes of a file of lines, perhaps in another encoding, perhaps cut or with a few bytes changed."""
    text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(draw(st.lists(of, max_size=6)))
    content = bytearray(text.encode(draw(encodings), "replace"))
    for place in draw(st.lists(st.integers(0, max(0, len(content) - 1)), max_size=2)):
        if content:
            content[place] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.sampled_from([None, None, len(content) // 2]))])
