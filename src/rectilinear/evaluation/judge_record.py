"""What a judge is asked of a model's stories, and what it said: the schema of ``judge.json``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rectilinear.command_lines import command_line, model_word, text_word
from rectilinear.evaluation.criteria import Marks
from rectilinear.evaluation.settings import Judging, Stories, public_url
from rectilinear.models.settings import Loading
from rectilinear.names import short_name
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord, Record, ResultFile
from rectilinear.tables import Cell, Column, Estimate, Table

#: How a request ended.
Outcome = Literal["scored", "refused", "malformed"]

#: A text as it came, but for halves of letters, which no file can hold.
Answer = Annotated[str, BeforeValidator(lambda text: text.encode("utf-8", "replace").decode())]


#: A URL without user, password, query and fragment.
PublicUrl = Annotated[str, AfterValidator(public_url)]


class Story(Record):
    """A beginning, and what the model made of it."""

    index: int
    beginning: str
    ending: str = Field(description="of the text itself: as many words as the model wrote, or as there are")
    completion: str


class Judgement(Record):
    """One answer of the judge."""

    index: int = Field(description="of the story")
    outcome: Outcome
    answer: Answer = Field(description="as it came")
    marks: Marks | None = None
    prompt_tokens: int = Field(
        default=0, description="as the endpoint counts; 0 where it does not say; of all requests for this story"
    )
    completion_tokens: int = 0


class JudgeName(Record):
    """Who is asked."""

    model: str
    url: PublicUrl = Field(description="of the endpoint")


class RunRecord(Record):
    """What a run notes beside its stories, to go on from."""

    asked: dict[str, Any] = Field(description="all that the stories depend on")
    judge: JudgeName | None = Field(description="of the answers; null before there is one")
    model: ModelRecord
    data: DataRecord
    environment: EnvironmentRecord
    warnings: tuple[str, ...] = ()


class MarkRecord(Record):
    """A mark over the stories that were given one."""

    mean: float
    stderr: float | None = Field(description="over stories; null for one")


class Judged(JudgeName):
    """What a judge made of the stories."""

    asked: int = Field(description="stories that the judge answered for")
    outcomes: dict[Outcome, int]
    marks: dict[str, MarkRecord] = Field(description="of scored stories; empty where there are none")
    prompt_tokens: int
    completion_tokens: int
    cost: float | None = Field(default=None, description="of these tokens by `prices`; null where none were given")


class TextMeasures(Record):
    """Of some texts, word by word; case and punctuation between words aside."""

    texts: int
    words: float = Field(description="mean over texts")
    distinct_1: float | None = Field(description="different words over words, of all texts; null where there are none")
    distinct_2: float | None = Field(description="the same of pairs of neighbours (arXiv 1510.03055)")
    distinct_3: float | None = Field(description="of threes")
    repetition: float | None = Field(
        description="share of runs of four words that were in the same text before, mean over texts that have any"
    )


#: Those that are shares of runs of words.
DIVERSITY = ("distinct_1", "distinct_2", "distinct_3", "repetition")


class ReferenceLoss(Record):
    """How likely another model finds texts after their beginnings."""

    model: str
    completions: float = Field(description="nats per token of what the model wrote")
    completions_stderr: float | None = Field(description="over stories")
    perplexity: float | None = Field(description="exp of it; null beyond the range of float64")
    endings: float = Field(description="nats per token of what the texts themselves go on with")
    tokens: int = Field(description="of completions")


class JudgeReport(ResultFile):
    """A model's stories: counted, compared with the texts' own endings, and judged."""

    file_name: ClassVar[str] = "judge.json"
    heading: ClassVar[str] = "Stories, counted and judged"

    schema_: Literal["rectilinear.judge/1"] = Field(default="rectilinear.judge/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    completions: TextMeasures
    endings: TextMeasures = Field(description="of what the texts themselves go on with")
    reference: ReferenceLoss | None = None
    judged: Judged | None = None
    warnings: tuple[str, ...] = ()

    def headline(self) -> str:
        """How many stories there are, and their marks."""
        marks = {} if self.judged is None else {name: mark.mean for name, mark in self.judged.marks.items()}
        given = ", ".join(f"{name} {value:.2f}" for name, value in marks.items())
        return f"{self.completions.texts:,} stories{f'; marks: {given}' if given else ''}."

    def command(self) -> str:
        """``rectilinear judge``, which asks the judge again."""
        judge = {"judge_model": self.judged.model, "judge_url": self.judged.url} if self.judged else {}
        values = {**self.settings, **judge, "reference": self.reference and self.reference.model}
        known = None if text_word(self.data) is None else model_word(self.model)
        return command_line("judge", [known], values, Stories, Judging, Loading, folder=True)

    def tables(self) -> tuple[Table, ...]:
        """What was counted in completions beside the texts' own endings, and the marks."""
        both = (self.completions, self.endings)
        rows: list[list[Cell]] = [["words of a text", *(Estimate(part.words, None, ".1f") for part in both)]]
        rows += [[name.replace("_", "-"), *(getattr(part, name) for part in both)] for name in DIVERSITY]
        if found := self.reference:
            loss = Estimate(found.completions, found.completions_stderr)
            rows.append([f"loss under {short_name(found.model)}", loss, found.endings])
        counted = Table.of(
            ["", Column("completions", ".4f"), Column("texts' own", ".4f")],
            rows,
            title=f"{short_name(self.model.id)}: {self.completions.texts:,} stories that begin as in "
            f"{short_name(self.data.source)}",
            caption="distinct-n: different runs of n words over all; repetition: runs of four that the text had before",
        )
        return (counted, _marks_table(self.judged)) if self.judged else (counted,)


def _marks_table(judged: Judged) -> Table:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in judged.outcomes.items())
    used = f"{judged.prompt_tokens:,} tokens of requests, {judged.completion_tokens:,} of answers"
    used += "" if judged.cost is None else f", for {judged.cost:.2g}"
    return Table.of(
        [Column(name, ".2f") for name in judged.marks],
        [[Estimate(mark.mean, mark.stderr) for mark in judged.marks.values()]] if judged.marks else [],
        title=f"{judged.model}: {outcomes}; {used}",
        caption="from 1 to 10, over scored stories; ±: standard error" if judged.marks else "",
    )
