"""How linearity is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from rectilinear.errors import RequestError
from rectilinear.models.settings import Named, Stack
from rectilinear.settings import ONE_WORD, Indices, Positive, Settings, Target, parse_names

#: Tokens for each dimension of the hidden states below which scores and fits are warned about.
TOKENS_A_FEATURE = 20


class Sinks(Settings):
    """Which tokens are attention sinks."""

    sink_ratio: Positive = 10.0
    """A token is an attention sink of a block if the norm of its input, output or update exceeds this many times the
    median of the first 256 tokens."""


class Measurement(Stack, Sinks):
    """How linearity is measured; definitions in docs/method.md."""

    target: Annotated[tuple[Target, ...], BeforeValidator(parse_names), ONE_WORD, Parameter(metavar="A,B")] = ("block",)
    """What of a block is measured, several in one pass: block, attention, mlp."""
    folds: PositiveInt = 4
    """Contiguous folds of the rows for held-out scores; 1 for none."""
    convention: Literal["block", "paper"] = "block"
    """'paper' takes the last state after the final norm and lets padding count, as the paper did."""
    products: Literal["auto", "float32", "float64"] = "auto"
    """Precision of products of activations; 'auto' is float64 where float32 would not do."""

    pairs: Annotated[bool, Parameter(negative=())] = False
    """Also score the way from every depth to every later one, in a pass of its own; memory grows with depth squared."""

    pairs_columns: PositiveInt | None = None
    """Columns of a random projection through which pairs see later states, along a walk where weights are on disk;
    when not given, pairs are exact where that fits in memory, else through as many columns as fit."""

    reuse: Annotated[bool, Field(exclude=True), Parameter(negative="--no-reuse")] = True
    """Take scores of earlier runs on the same model, text and settings where there are any, and keep new ones."""

    @model_validator(mode="after")
    def _check_target(self) -> Measurement:
        if self.convention == "paper" and {*self.target} - {"block"}:
            raise ValueError("expected `target=block` with `convention=paper`, which is about whole blocks")
        if self.convention == "paper" and self.pairs:
            raise ValueError("expected no `pairs` with `convention=paper`, which is about one block after the other")
        if not self.pairs:
            self.refuse_unused("without `pairs`", "pairs_columns")
        if not self.target:
            raise ValueError("expected a `target`, got none; try `target=block`")
        if len({*self.target}) < len(self.target):
            raise ValueError(f"expected each `target` once, got {','.join(self.target)}")
        return self

    def check_one_target(self, command: str) -> None:
        """Raise `RequestError` where several parts, or pairs, are to be measured and a command takes one part."""
        if self.pairs:
            self.refuse_unused(f"for {command}", "pairs")
        if len(self.target) > 1:
            raise RequestError(f"expected one `target` for {command}, got {','.join(self.target)}; try one at a time")


class Explaining(Named, Sinks):
    """Which maps are explained, and what of them."""

    blocks: Annotated[Indices, ONE_WORD, Parameter(metavar="2-4,7")]
    """Blocks to explain, counted from 0, such as 2-4,7."""
    target: Target = "block"
    """What of a block is explained: block, attention or mlp."""
    folds: Annotated[int, Field(ge=2)] = 4
    """Contiguous folds of the rows for held-out scores; tokens are looked at in the last one."""
    deviating: PositiveInt = 10
    """How many of the tokens that deviate most are listed."""
    depths: Annotated[bool, Parameter(negative=())] = False
    """Also the geometry of hidden states at every depth, and what they say of the next token."""
