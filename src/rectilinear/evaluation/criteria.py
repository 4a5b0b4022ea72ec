"""What a judge is asked to mark, and with what words."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _whole(value: Any) -> Any:
    """7 for 7.0, which is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Mark = Annotated[int, BeforeValidator(_whole), Field(ge=1, le=10)]


class Marks(BaseModel):
    """What a judge is to answer with, from 1 to 10."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    grammar: Mark
    creativity: Mark
    consistency: Mark
    plot: Mark


# How each criterion is put to the judge; one for each of the marks.
_QUESTIONS = {
    "grammar": "grammar",
    "creativity": "creativity",
    "consistency": "consistency with the beginning",
    "plot": "plot, whether what happens makes sense",
}


def _join(words: list[str], mark: str) -> str:
    return f"{f'{mark} '.join(words[:-1])}{mark if mark == ';' else ''} and {words[-1]}"


INSTRUCTIONS = (
    "You grade stories that young writers completed. You are given the beginning of a story and how a writer went on "
    "from it. The writer may have been stopped in the middle of a sentence, which is no fault. Judge only what the "
    "writer added. Give whole numbers from 1 (very poor) to 10 (excellent) for: "
    f"{_join([_QUESTIONS[name] for name in Marks.model_fields], ';')}. Answer with a JSON object that has exactly the "
    f"keys {_join([f'{chr(34)}{name}{chr(34)}' for name in Marks.model_fields], ',')}, and nothing else."
)
