"""Stories that a model completes, counted and judged (as in TinyStories, arXiv 2305.07759)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.evaluation.extras import require
from rectilinear.evaluation.judge_client import (
    INSTRUCTIONS,
    JUDGEMENTS,
    JudgeEndpoint,
    ask,
    estimate_tokens,
    read_judgements,
)
from rectilinear.evaluation.judge_record import Judged, Judgement, JudgeReport, MarkRecord, Marks, Story
from rectilinear.evaluation.reference import measure_reference
from rectilinear.evaluation.text_measures import measure_texts
from rectilinear.models.batches import reporting_exhausted_memory
from rectilinear.models.blocks import find_blocks, text_config
from rectilinear.models.completion import complete
from rectilinear.models.load import DType
from rectilinear.models.origin import Origin
from rectilinear.models.records import record_environment, record_model
from rectilinear.models.settings import Loading
from rectilinear.progress import Progress
from rectilinear.results import DataRecord, EnvironmentRecord, ModelRecord
from rectilinear.runs import stage
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.sources import open_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Files of a run, beside ``judge.json`` and the answers so far: what was asked for, and the stories.
REQUEST, STORIES = "request.json", "stories.jsonl"

#: Called before the judge is asked, with stories that are left and about how many tokens these and their answers have.
Announce = Callable[[int, int, int], None]


@dataclass(frozen=True)
class StoryRecipe:
    """All that stories depend on.

    Attributes:
        model: Hub id, path, or ``"storyteller"``.
        text: source of the beginnings; see `rectilinear.text.sources.open_text`.
        count: how many stories.
        beginning_words: words of a beginning; only documents of twice as many are taken.
        max_new_tokens: that the model may write.
        temperature: of sampling; 0 for the likeliest tokens.
        seed: of sampling, and of generated text.
        batch_size: stories at once; drawn stories depend on it.
        column, config, split: of the text.
        revision, dtype: of the model.

    Raises:
        RequestError: a value out of range.
    """

    model: str
    text: str = "stories"
    count: int = 100
    beginning_words: int = 40
    max_new_tokens: int = 200
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16
    column: str = "text"
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    dtype: DType = "auto"

    def __post_init__(self) -> None:
        for name in ("count", "beginning_words", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise RequestError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"expected a temperature of at least 0, got {self.temperature}")


@reporting_exhausted_memory
def judge(
    recipe: StoryRecipe,
    out: str | Path,
    judge: JudgeEndpoint | None = None,
    *,
    reference: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    trust_remote_code: bool = False,
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> JudgeReport:
    """Have a model complete held-out beginnings, measure what it wrote, and have it judged.

    Args:
        recipe: which model, which stories.
        out: folder for the stories, the answers as they come, and ``judge.json``.
        judge: whom to ask; None to do without.
        reference: Hub id or path of another model, whose loss of the completions is measured.
        resume: go on with the run of the same recipe in ``out``: stories that are there are not written again, those
            that have an answer are not asked again.
        overwrite: begin anew in a folder that is not empty.
        device, trust_remote_code: for loading; see `rectilinear.models.load`.
        announce: called before the judge is asked, with the number of stories and about the tokens of requests and, at
            most, answers; whatever it raises ends the job, and nothing was paid for.
        progress: called with (stage, done, total).

    Raises:
        RequestError: the request cannot be met: no such model or text, too few documents, a folder of something else,
            an endpoint that refuses key, model or request.
        JobError: the judge cannot be reached or keeps turning requests away; memory or disk that do not suffice.
    """
    if judge:
        require("openai", "judge")
        judge.connect()  # what is wrong with the request shows before there are stories
    out = Path(out).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise RequestError(f"expected a folder for --out, got the file {out}")
    if out.is_dir() and any(out.iterdir()) and not (overwrite or resume):
        raise RequestError(f"--out {out} is not empty; try --resume, another folder, or --overwrite")
    asked = asdict(recipe)
    loading = Loading(trust_remote_code=trust_remote_code, device=device, dtype=recipe.dtype)
    origin = Origin(recipe.model, loading.model_copy(update={"revision": recipe.revision}))
    other = None if reference is None else Origin(reference, loading)
    if other:  # before anything is paid for
        other.skeleton()
        other.tokenizer()
    if not (resume and _found(out, asked)):
        _write_stories(origin, recipe, asked, out, progress)
    kept = json.loads((out / REQUEST).read_text(encoding="utf-8"))
    lines = (out / STORIES).read_text(encoding="utf-8").split("\n")  # texts may have other ends of lines in them
    stories = [Story.model_validate_json(line) for line in lines if line]
    answers = read_judgements(out / JUDGEMENTS)
    if judge:
        _bind(judge, kept, out, answers)
        left = [story for story in stories if story.index not in answers]
        if announce and left:
            announce(len(left), *estimate_tokens(judge, left))
        answers = ask(judge, stories, out / JUDGEMENTS, progress)
    judged = _summarize(kept["judge"], answers, judge) if answers else None
    compared = None
    if other:
        compared = measure_reference(other.name, other.load(head=True), other.tokenizer(), stories, progress)
    report = JudgeReport(
        model=ModelRecord.model_validate(kept["model"]),
        data=DataRecord.model_validate(kept["data"]),
        settings={**asdict(recipe), "instructions": INSTRUCTIONS if judged else None},
        environment=EnvironmentRecord.model_validate(kept["environment"]),
        completions=measure_texts([story.completion for story in stories]),
        endings=measure_texts([story.ending for story in stories]),
        reference=compared,
        judged=judged,
        warnings=tuple(_warnings(stories, judged)),
    )
    with stage(out) as folder:
        report.save(folder)
    return report


def _found(out: Path, asked: dict[str, Any]) -> bool:
    """Whether the folder has stories of this recipe."""
    if not (out / REQUEST).exists():
        if out.is_dir() and any(out.iterdir()):
            raise RequestError(f"--out {out} holds no run to resume; try another folder, or --overwrite")
        return False
    try:
        before = json.loads((out / REQUEST).read_text(encoding="utf-8"))["asked"]
    except (ValueError, KeyError) as error:
        raise RequestError(f"expected a run of rectilinear judge in {out}, got an unreadable {REQUEST}") from error
    for name, value in asked.items():
        if before.get(name) != value:
            raise RequestError(
                f"--out {out} holds a run with {name} {before.get(name)}, got {value}; try the same, another folder, "
                "or --overwrite"
            )
    return True


def _bind(judge: JudgeEndpoint, kept: dict[str, Any], out: Path, answers: Collection[int]) -> None:
    """Note whom is asked, beside the stories: answers of two judges are not to be mixed."""
    own = {"model": judge.model, "url": judge.where}
    if answers and kept["judge"] != own:
        theirs = "{model} at {url}".format(**kept["judge"])
        raise RequestError(
            f"--out {out} holds answers of {theirs}, got {judge.model} at {judge.where}; try the same, or another "
            "folder"
        )
    kept["judge"] = own
    with stage(out) as folder:
        (folder / REQUEST).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _write_stories(origin: Origin, recipe: StoryRecipe, asked: dict[str, Any], out: Path, progress: Any) -> None:
    """Complete the beginnings, and keep them with what they came from."""
    documents = open_text(recipe.text, column=recipe.column, config=recipe.config, split=recipe.split, seed=recipe.seed)
    begun = [*islice(_beginnings(documents, recipe.beginning_words), recipe.count)]
    if len(begun) < recipe.count:
        raise RequestError(
            f"expected {recipe.count} documents of at least {2 * recipe.beginning_words} words in {recipe.text}, got "
            f"{len(begun)}; try a smaller --count or --beginning-words"
        )
    origin.skeleton()
    tokenizer = origin.tokenizer()
    model: PreTrainedModel = origin.load(head=True)  # type: ignore[assignment]
    if not hasattr(model, "generate"):
        raise RequestError(f"expected a model that generates, got {type(model).__name__}")
    stories: list[Story] = []
    for start in range(0, len(begun), recipe.batch_size):
        batch = begun[start : start + recipe.batch_size]
        written = complete(
            model,
            tokenizer,
            [beginning for beginning, _ in batch],
            max_new_tokens=recipe.max_new_tokens,
            temperature=recipe.temperature,
            seed=recipe.seed + start,
        )
        stories += [
            Story(
                index=start + place, beginning=beginning, ending=_first_words(rest, len(text.split())), completion=text
            )
            for place, ((beginning, rest), text) in enumerate(zip(batch, written, strict=True))
        ]
        if progress:
            progress("stories", len(stories), len(begun))
    data = DataRecord(
        source=recipe.text,
        fingerprint=fingerprint([text for both in begun for text in both]),
        tokens=sum(len(tokenizer(beginning)["input_ids"]) for beginning, _ in begun),
        rows=len(begun),
        seq_len=None,
    )
    stack = find_blocks(model)
    width = text_config(model.config).hidden_size
    about = {
        "asked": asked,
        "judge": None,
        "model": record_model(model, origin, stack, width).model_dump(mode="json"),
        "data": data.model_dump(mode="json"),
        "environment": record_environment(model).model_dump(mode="json"),
    }
    with stage(out, stale=[JUDGEMENTS, JudgeReport.file_name]) as folder:
        (folder / REQUEST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        lines = "".join(story.model_dump_json() + "\n" for story in stories)
        (folder / STORIES).write_text(lines, encoding="utf-8")


def _beginnings(documents: Iterator[str], words: int) -> Iterator[tuple[str, str]]:
    """The first words of documents that are long enough, and the rest of these, both as they are written."""
    for document in map(str.strip, documents):
        if len(document.split()) >= 2 * words:
            beginning = _first_words(document, words)
            yield beginning, document[len(beginning) :]


def _first_words(text: str, words: int) -> str:
    """The beginning of a text, up to the end of a word."""
    found = re.match(rf"(?:\s*\S+){{0,{words}}}", text)
    return found[0] if found and words else ""


def _summarize(whom: dict[str, str], answers: dict[int, Judgement], judge: JudgeEndpoint | None) -> Judged:
    outcomes = Counter(answer.outcome for answer in answers.values())
    scored = [answer.marks for answer in answers.values() if answer.marks]
    marks = {name: _mean([getattr(given, name) for given in scored]) for name in Marks.model_fields} if scored else {}
    used = [sum(getattr(answer, f"{kind}_tokens") for answer in answers.values()) for kind in ("prompt", "completion")]
    return Judged(
        model=whom["model"],
        url=whom["url"],
        asked=len(answers),
        outcomes={outcome: outcomes[outcome] for outcome in ("scored", "refused", "malformed")},
        marks=marks,
        prompt_tokens=used[0],
        completion_tokens=used[1],
        cost=judge and judge.cost(*used),
    )


def _mean(values: Sequence[int]) -> MarkRecord:
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else None
    return MarkRecord(mean=mean, stderr=spread)


def _warnings(stories: Sequence[Story], judged: Judged | None) -> Iterator[str]:
    empty = sum(not story.completion.strip() for story in stories)
    if empty:
        yield f"{empty} of {len(stories)} completions are empty: the model ended the text at once"
    if judged and judged.asked < len(stories):
        yield f"the judge answered for {judged.asked} of {len(stories)} stories; for the others try --resume with it"
    if judged and judged.outcomes["scored"] < judged.asked:
        lost = {name: count for name, count in judged.outcomes.items() if count and name != "scored"}
        told = ", ".join(f"{count} {name}" for name, count in lost.items())
        yield f"of {judged.asked} answers {told}, which are in no mean; see {JUDGEMENTS}"
