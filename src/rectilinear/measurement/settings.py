"""How linearity is measured."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from rectilinear.models.settings import Stack
from rectilinear.settings import Positive

#: Tokens for each dimension of the hidden states below which scores and fits are warned about.
TOKENS_A_FEATURE = 20


class Measurement(Stack):
    """How linearity is measured; definitions in docs/method.md."""

    folds: PositiveInt = 4
    """Contiguous folds of the rows for held-out scores; 1 for none."""
    convention: Literal["block", "paper"] = "block"
    """'paper' takes the last state after the final norm and lets padding count, as the paper did."""
    sink_ratio: Positive = 10.0
    """A token is an attention sink of a block if the norm of its input, output or update exceeds this many times the
    median of the first 256 tokens."""
    products: Literal["auto", "float32", "float64"] = "auto"
    """Precision of products of activations; 'auto' is float64 where float32 would not do."""
