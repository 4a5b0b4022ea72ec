"""The options that commands share, in the panels that ``--help`` shows them in."""

from __future__ import annotations

from typing import Annotated, TypeVar

from cyclopts import Group, Parameter

MODEL, TEXT, WORK, LINEARITY, RUNTIME = (
    Group(name, sort_key=place) for place, name in enumerate(("Model", "Text", "What to do", "Linearity", "Runtime"))
)

_Settings = TypeVar("_Settings")

# The fields of a settings object as options, in a panel: ``TextOptions[Rows]``.
ModelOptions = Annotated[_Settings, Parameter("*", group=MODEL)]
TextOptions = Annotated[_Settings, Parameter("*", group=TEXT)]
WorkOptions = Annotated[_Settings, Parameter("*", group=WORK)]
LinearityOptions = Annotated[_Settings, Parameter("*", group=LINEARITY)]
RuntimeOptions = Annotated[_Settings, Parameter("*", group=RUNTIME)]

ModelArgument = Annotated[str, Parameter(help="Hub id, path, or 'storyteller' (built in).", group=MODEL)]
TextOption = Annotated[
    str,
    Parameter(
        help="A .txt (documents separated by a line <|endoftext|>), .jsonl or .parquet file, a folder of these, a Hub "
        "dataset id, or 'stories' (generated).",
        group=TEXT,
    ),
]
TaskOption = Annotated[
    str, Parameter(help="boolq, cb, copa, multirc, rte, wic or wsc of SuperGLUE, or reward: preferences.", group=WORK)
]
