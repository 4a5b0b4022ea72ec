"""What others wrote (names, data, answers of servers), so that it can be shown and written."""

from __future__ import annotations

import re
from typing import Any

# What steers a terminal, turns the direction of a line, or is no character; ends of lines and tabs are neither.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""A text with escapes: ``\x1b`` for a control character, ``\udce9`` for a byte of a name that is no UTF-8."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def writable(value: Any) -> Any:
    r"""What JSON can have, with escapes such as ``\udce9`` for halves of surrogate pairs, which have no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {writable(key): writable(each) for key, each in value.items()}
    return [*map(writable, value)] if isinstance(value, (list, tuple)) else value
