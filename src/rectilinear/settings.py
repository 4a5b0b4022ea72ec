"""What every settings object shares: fields that are the Python interface, the command line, the checks and the record.

An option is written once, as a field with its type, bounds, default and a sentence about it. The command line is
generated from the fields (``--seq-len`` from ``seq_len``), and results record them.
"""

from __future__ import annotations

import inspect
import math
import operator
import re
import reprlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec, TypeVar

from cyclopts import Parameter
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from rectilinear.errors import RequestError, try_nearest

_Kind = TypeVar("_Kind", bound="Settings")
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

# No number of tokens, rows or steps is above this, which arithmetic of 64 bits takes; no decoder has so many blocks.
_LARGEST, _MOST_BLOCKS = 10**15, 10_000


class Settings(BaseModel):
    """Base of settings objects: frozen, and refused with one line where a value cannot be.

    Raises:
        RequestError: an unknown field, or a value of the wrong type or out of range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        for field in cls.model_fields.values():  # their docs may be of several lines
            field.description = " ".join((field.description or "").split())

    @field_validator("*", mode="wrap")
    @classmethod
    def _can_be(cls, given: Any, parse: ValidatorFunctionWrapHandler, field: ValidationInfo) -> Any:
        """Refuse what no field can take, whatever its type."""
        if isinstance(given, str) and (not given.strip() or "\0" in given):
            raise ValueError(f"expected a text for `{field.field_name}`, got {given!r}; try without it")
        value = parse(given)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"expected `{field.field_name}` to be a finite number, got {number}")
            if isinstance(number, int) and abs(number) > _LARGEST:
                got = reprlib.repr(given)
                raise ValueError(f"expected `{field.field_name}` to be a number up to {_LARGEST:,}, got {got}")
        return value

    if not TYPE_CHECKING:  # editors complete the fields, which a signature of its own would hide

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise RequestError(first_reason(error)) from None

    def part(self, kind: type[_Kind]) -> _Kind:
        """Those of these settings that a kind with fewer fields has."""
        return kind(**self.model_dump(include=set(kind.model_fields), exclude_unset=True))

    def refuse_unused(self, when: str, *names: str) -> None:
        """Raise `RequestError` for fields that were given and would change nothing."""
        for name in names:
            if name in self.model_fields_set:
                raise RequestError(f"expected no `{name}` {when}, where it changes nothing; try without it")


def takes_settings(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have a function refuse, by a `TypeError`, what is no settings object of the class of a parameter's default."""
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    kinds = {name: type(default) for name, default in defaults.items() if isinstance(default, Settings)}

    @wraps(function)
    def checked(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        for name in options.keys() - defaults.keys():
            places = [
                f"`{own}={kind.__name__}({name}=...)`" for own, kind in kinds.items() if name in kind.model_fields
            ]
            if places:
                raise TypeError(f"{function.__qualname__}() takes `{name}` as {' or '.join(places)}")
        for name, value in (*zip(defaults, args, strict=False), *options.items()):
            if name in kinds and not isinstance(value, kinds[name]):
                wanted, got = kinds[name].__name__, type(value).__name__
                place = next((f"; try `{other}={got}(...)`" for other in kinds if isinstance(value, kinds[other])), "")
                raise TypeError(f"{function.__qualname__}() expected {wanted}(...) for `{name}`, got {got}{place}")
        return function(*args, **options)

    return checked


def first_reason(error: ValidationError, option: str = "") -> str:
    """The first thing that is wrong, in one line: which field or ``option``, what is allowed there, what was found."""
    first, *others = error.errors()
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ValueError):  # of a check of ours, which names the field itself
        return str(cause)
    path = _path(first["loc"])
    where = option or (f"`{path}`" if path else "the file")
    if first["type"] == "extra_forbidden":
        return f"expected options that are there, got `{path}`"
    if first["type"] == "json_invalid":
        return f"expected JSON, got something else: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"expected {where}, got none"
    ways = [first, *(other for other in others if _path(other["loc"]) == path)]  # one for each member of a union
    expected = " or ".join(way["msg"].removeprefix("Input should be ").partition(", unable")[0] for way in ways)
    got = "" if isinstance(first["input"], dict) else f", got {reprlib.repr(first['input'])}"
    near = try_nearest(str(first["input"]), re.findall(r"'([^']+)'", expected))
    return f"expected {where} to be {expected}{got}{near}"


def _path(location: tuple[int | str, ...]) -> str:
    """A field's place in a model, without the names of types that pydantic adds."""
    types = r"int|float|bool|str|(function-|constrained-|literal\[).*"
    return ".".join(str(part) for part in location if not re.fullmatch(types, str(part)))


def in_flags(text: str) -> str:
    """A message in which fields are named as the command line names options: ``--seq-len 128`` for `seq_len=128`."""
    return re.sub(
        r"`([a-z_]+)(?:\.\d+)?(?:=([^`]*))?`",
        lambda m: f"--{m[1].replace('_', '-')}" + (f" {m[2]}" if m[2] else ""),
        text,
    )


def words_of(value: Any) -> list[str] | None:
    """The words between the commas of a text, or of the texts that a command line gives; None for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not (isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts)):
        return None
    return [word.strip() for text in texts for word in text.split(",") if word.strip()]


def _parse_indices(value: Any) -> Any:
    """``2-4,7`` as numbers; numbers of other libraries as Python's."""
    words = words_of(value)
    numbers: list[str] = []
    if words is None:
        try:
            numbers = [str(operator.index(each)) for each in value]
        except TypeError:
            return value
    found: list[int] = []
    for word in words or numbers:
        ends = re.fullmatch(r"0*(\d{1,9})(?:-0*(\d{1,9}))?", word, re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < _MOST_BLOCKS:
            shown = reprlib.repr(word)
            raise ValueError(f"expected `blocks=2-4,7` (indices, counted from 0), got {shown}; for a path try `stack`")
        found += range(first, last + 1)
    if words == []:  # in Python, no numbers are a request like any other
        raise ValueError("expected `blocks=2-4,7` (indices, counted from 0), got none")
    return found


def as_ranges(indices: Sequence[int]) -> str:
    """Indices in ascending order as `Indices` reads them: ``2-4,7``, with a space after the comma."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def parse_names(value: Any, field: ValidationInfo) -> Any:
    """Names of a field: ``a,b`` as words. A text without any is a slip, not what a request without names looks like."""
    if (words := words_of(value)) == []:
        raise ValueError(f"expected `{field.field_name}=a,b`, got no name; try without it")
    return value if words is None else words


#: Numbers that are finite, above 0 or from 0 on.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: How a field is read that the command line takes as one word, which the field's own check parses.
ONE_WORD = Parameter(n_tokens=1, accepts_keys=False)

#: Names: a list of them, or a text such as ``a,b``.
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names), ONE_WORD, Parameter(metavar="A,B")]

#: Indices of blocks, counted from 0: numbers, or a text such as ``2-4,7``.
Indices = Annotated[tuple[int, ...], BeforeValidator(_parse_indices), ONE_WORD]

#: What of a block is meant: all of it, or a part.
Target = Literal["block", "attention", "mlp"]

#: How a text's hidden states become one: their mean, or that of its last token.
Pooling = Literal["mean", "last"]

#: Rows in a forward pass; ``"auto"`` halves it when memory runs out.
BatchSize = Annotated[PositiveInt | Literal["auto"], Parameter(metavar="N|auto", show_choices=False)]

#: Precision of weights; ``"auto"`` is the checkpoint's own.
DType = Literal["auto", "float32", "bfloat16", "float16"]
