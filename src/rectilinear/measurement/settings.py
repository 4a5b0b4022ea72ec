"""How linearity is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rectilinear.models.settings import Stack


class Measurement(Stack):
    """How linearity is measured; definitions in docs/method.md."""

    folds: PositiveInt = 4
    """Contiguous folds of the rows for held-out scores; 1 for none."""
    convention: Literal["block", "paper"] = "block"
    """'paper' takes the last state after the final norm and lets padding count, as the paper did."""
    sink_ratio: Annotated[PositiveFloat, Field(allow_inf_nan=False)] = 10.0
    """A token is an attention sink if |x| exceeds this many times the median norm of the first 256 tokens."""
    products: Literal["auto", "float32", "float64"] = "auto"
    """Precision of products of activations; 'auto' is float64 where float32 would not do."""
