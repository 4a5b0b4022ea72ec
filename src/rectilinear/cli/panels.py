"""The options that commands share, in the panels that ``--help`` shows them in."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Group, Parameter

from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Access, Loading, Stack
from rectilinear.runs import Output, ResumableOutput, Runtime
from rectilinear.text.settings import Rows, Source

MODEL, TEXT, WORK, LINEARITY, RUNTIME = (
    Group(name, sort_key=place) for place, name in enumerate(("Model", "Text", "What to do", "Linearity", "Runtime"))
)

ModelArgument = Annotated[str, Parameter(help="Hub id, path, or 'storyteller' (built in).", group=MODEL)]
TextOption = Annotated[
    str,
    Parameter(
        help="A .txt (documents separated by a line <|endoftext|>), .jsonl or .parquet file, a folder of these, a Hub "
        "dataset id, or 'stories' (generated).",
        group=TEXT,
    ),
]
AccessOptions = Annotated[Access, Parameter("*", group=MODEL)]
LoadingOptions = Annotated[Loading, Parameter("*", group=MODEL)]
SourceOptions = Annotated[Source, Parameter("*", group=TEXT)]
RowsOptions = Annotated[Rows, Parameter("*", group=TEXT)]
StackOptions = Annotated[Stack, Parameter("*", group=WORK)]
MeasurementOptions = Annotated[Measurement, Parameter("*", group=WORK)]
OutputOptions = Annotated[Output, Parameter("*", group=RUNTIME)]
ResumableOutputOptions = Annotated[ResumableOutput, Parameter("*", group=RUNTIME)]
RuntimeOptions = Annotated[Runtime, Parameter("*", group=RUNTIME)]
TokenizerOption = Annotated[
    str | None, Parameter(help="Hub id or path of the tokenizer; the model's own when not given.", group=TEXT)
]
TaskOption = Annotated[
    str, Parameter(help="boolq, cb, copa, multirc, rte, wic or wsc of SuperGLUE, or reward: preferences.", group=WORK)
]
