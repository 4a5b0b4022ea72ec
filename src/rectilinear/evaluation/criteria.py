"""What a judge is asked to mark, and with what words."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: A whole number from 1 to 10, of which 7.0 is one too in JSON.
Mark = Annotated[
    int,
    BeforeValidator(lambda value: int(value) if isinstance(value, float) and value.is_integer() else value),
    Field(ge=1, le=10),
]

#: What a judge is told; there is a question for each of the marks.
INSTRUCTIONS = (
    "You grade stories that young writers completed. You are given the beginning of a story and how a writer went on "
    "from it. The writer may have been stopped in the middle of a sentence, which is no fault. Judge only what the "
    "writer added. Give whole numbers from 1 (very poor) to 10 (excellent) for: grammar; creativity; consistency with "
    "the beginning; and plot, whether what happens makes sense. Answer with a JSON object that has exactly the keys "
    '"grammar", "creativity", "consistency" and "plot", and nothing else.'
)


class Marks(BaseModel):
    """What a judge is to answer with, from 1 to 10."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    grammar: Mark
    creativity: Mark
    consistency: Mark
    plot: Mark
