"""Asking a judge: one request a story, several at once, each answer on disk before the next."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from rectilinear.errors import JobError, RequestError
from rectilinear.evaluation.bootstrap import mean_over_groups
from rectilinear.evaluation.criteria import INSTRUCTIONS, Marks
from rectilinear.evaluation.judge_record import Judged, Judgement, MarkRecord, Outcome, Story
from rectilinear.evaluation.settings import Judging
from rectilinear.progress import Progress

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

#: The file of a run with the answers, one a line; of several for one story the last counts.
JUDGEMENTS = "judgements.jsonl"

#: A story to try a judge with before there are any.
TRIAL = Story(index=-1, beginning="Once there was a small cat.", ending="", completion=" It slept in the sun.")

# Counts of tokens in a judgement.
_COUNTS = ("prompt_tokens", "completion_tokens")

# Letters of English a token has, roughly: for estimates only.
_LETTERS = 4

# Objects of an answer, from the last, that are looked at for marks, and repeats of the request that tries a judge.
_OBJECTS, _TRIAL_RETRIES = 100, 2


def connect(judging: Judging) -> OpenAI:
    """A client of the judge's endpoint.

    Raises:
        RequestError: no key for OpenAI's own endpoint, or one that cannot be sent.
    """
    from openai import OpenAI

    key = judging.key or os.environ.get("OPENAI_API_KEY")
    if key is None and judging.judge_url is None:
        raise RequestError("expected OPENAI_API_KEY to be set, or `judge_url` of an endpoint that needs none")
    if key is not None and not key.isascii():
        raise RequestError("expected a key of ASCII letters in OPENAI_API_KEY, got others")
    return OpenAI(
        api_key=key or "none", base_url=judging.judge_url, max_retries=judging.retries, timeout=judging.timeout
    )


def try_judge(judging: Judging) -> None:
    """Ask for the marks of a few words, so that a judge that would answer nothing is found before stories are written.

    Raises:
        RequestError: the endpoint refuses the key, the model or the request itself.
        JobError: it cannot be reached, or turns the request away.
    """
    quick = judging.model_copy(update={"retries": min(judging.retries, _TRIAL_RETRIES)})
    _ask_one(quick, connect(quick), TRIAL)


def prompt_of(story: Story) -> list[dict[str, str]]:
    """The messages of a request."""
    content = f"The beginning:\n\n{story.beginning}\n\nHow the writer went on:\n\n{story.completion.strip()}"
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": content}]


def estimate_tokens(judging: Judging, stories: Sequence[Story]) -> tuple[int, int]:
    """About how many tokens requests have, and at most how many the answers, to pay for."""
    letters = sum(len(message["content"]) for story in stories for message in prompt_of(story))
    return round(letters / _LETTERS), judging.answer_tokens * len(stories)


def read_judgements(path: Path) -> dict[int, Judgement]:
    """Answers that are on disk, the last one of each story; a last line that was cut off is left out."""
    return {judgement.index: judgement for judgement in _read_lines(path)}


def _read_lines(path: Path) -> list[Judgement]:
    found: list[Judgement] = []
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for place, line in enumerate(lines):
        try:
            found.append(Judgement.model_validate_json(line))
        except ValidationError:
            if place == len(lines) - 1:  # what a killed run was writing; the rest ends with its line
                break
            raise RequestError(f"{path}, line {place + 1}: expected an answer of a judge, got {line[:40]!r}") from None
    return found


def unanswered(stories: Sequence[Story], answers: dict[int, Judgement]) -> list[Story]:
    """Stories that a judge is still to be asked about: those without an answer, or with one that has no marks in it."""
    return [story for story in stories if story.index not in answers or answers[story.index].outcome == "malformed"]


def ask(judging: Judging, stories: Sequence[Story], path: Path, progress: Progress) -> dict[int, Judgement]:
    """Have stories judged that have no answer on disk yet, or a malformed one.

    Each answer is appended to ``judgements.jsonl`` at ``path`` as it comes. When this is stopped, requests that are
    under way are waited for, so that none is paid for twice; only a kill loses those, ``concurrency`` at most.

    Returns:
        All answers, by index of the story.

    Raises:
        RequestError: the endpoint refuses the key, the model or the request itself.
        JobError: it cannot be reached, or keeps turning requests away. What was answered is on disk.
    """
    lines = _read_lines(path)
    answers = {judgement.index: judgement for judgement in lines}
    todo = unanswered(stories, answers)
    if not todo:
        return answers
    client = connect(judging)
    whole = "".join(judgement.model_dump_json() + "\n" for judgement in lines)
    if path.exists() and path.read_text(encoding="utf-8") != whole:  # a line was cut off
        path.write_text(whole, encoding="utf-8")
    turn, finished = Lock(), len(stories) - len(todo)
    pool = ThreadPoolExecutor(judging.concurrency)
    with path.open("a", encoding="utf-8") as file:

        def settle(story: Story) -> None:
            nonlocal finished
            judgement = _ask_one(judging, client, story, answers.get(story.index))
            with turn:
                file.write(judgement.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
                answers[judgement.index] = judgement
                finished += 1
                progress("judge", finished, len(stories))

        try:
            pool.submit(settle, todo[0]).result()  # alone, so that a wrong key is found out by one request
            for future in as_completed([pool.submit(settle, story) for story in todo[1:]]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # what was asked is waited for, and kept
    return answers


def _ask_one(judging: Judging, client: OpenAI, story: Story, before: Judgement | None = None) -> Judgement:
    """The answer to one request; its tokens are added to those of an answer before."""
    import openai
    from openai.types.chat import ChatCompletion

    if judging.reasoning:
        options: dict[str, Any] = {"max_completion_tokens": judging.answer_tokens}
    else:  # servers that are no OpenAI know the older name
        options = {"temperature": 0.0, "max_tokens": judging.answer_tokens}
    if judging.structured:
        schema = {"name": "marks", "strict": True, "schema": Marks.model_json_schema()}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    messages: Any = prompt_of(story)
    go_on = "" if story is TRIAL else "; answers so far are kept, run again with `resume`"
    try:
        reply = client.chat.completions.create(model=judging.judge_model or "", messages=messages, **options)
    except openai.APIStatusError as error:
        if "content_filter" in str(error.body):
            return Judgement(index=story.index, outcome="refused", answer=str(error.body))
        raise _explain(judging, error, go_on) from error
    except (openai.APIError, ValueError, RecursionError) as error:  # no connection, too late, nothing of HTTP or JSON
        raise JobError(f"cannot reach the judge at {judging.where} ({error}){go_on}") from error
    if not isinstance(reply, ChatCompletion) or not isinstance(reply.choices, list) or not reply.choices:
        got = " ".join(str(reply).split())[:80]
        raise JobError(
            f"expected chat completions of the judge at {judging.where}, got {got}; try "
            f"`judge_url=http://HOST:PORT/v1`{go_on}"
        )
    return _read(story, reply, before)


def _explain(judging: Judging, error: Any, go_on: str) -> Exception:
    """What an HTTP error means to the user."""
    reason = " ".join(str(error).split())[:200]
    if error.status_code in (401, 403):
        return RequestError(
            f"expected a key that {judging.where} accepts in OPENAI_API_KEY, got {error.status_code} ({reason})"
        )
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return JobError(
            f"the judge at {judging.where} keeps turning a request away ({reason}){go_on}; try it later, or with a "
            "smaller `concurrency`"
        )
    # Models that reason refuse what others take, and name it.
    refused = getattr(error, "param", None) in ("max_tokens", "temperature")
    instead = "`reasoning`" if refused and not judging.reasoning else "--free-form"
    if error.status_code == 404:
        instead = "another `judge_url` or `judge_model`"
    return RequestError(
        f"the judge at {judging.where} does not take such requests of model {judging.judge_model} ({reason}); try "
        f"{instead}"
    )


def _read(story: Story, reply: ChatCompletion, before: Judgement | None) -> Judgement:
    """A reply as a judgement: marks, a refusal, or something else. Endpoints leave out, or put in, what they like."""
    choice = reply.choices[0]
    message = getattr(choice, "message", None)
    content, refusal = (getattr(message, name, None) for name in ("content", "refusal"))
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = content if isinstance(content, str) else ""
    refused = bool(refusal) or getattr(choice, "finish_reason", None) == "content_filter"
    marks = None if refused else read_marks(text)
    used = {name: getattr(reply.usage, name, None) for name in _COUNTS}
    whole = {name: count if isinstance(count, int) and count > 0 else 0 for name, count in used.items()}
    return Judgement(
        index=story.index,
        outcome="refused" if refused else "malformed" if marks is None else "scored",
        answer=str(refusal) if refusal else text,
        marks=marks,
        **{name: count + (getattr(before, name) if before else 0) for name, count in whole.items()},
    )


def read_marks(text: str) -> Marks | None:
    """The marks in an answer: the last JSON object with a mark in it, whatever stands before, around or after it.

    Returns:
        None where there is none, or where that object is not exactly four whole numbers from 1 to 10.
    """
    decoder = json.JSONDecoder()
    place = len(text)
    for _ in range(_OBJECTS):
        place = text.rfind("{", 0, place)
        if place < 0:
            break
        try:
            found, _ = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if found.keys() & Marks.model_fields.keys():
            try:
                return Marks.model_validate(found)
            except ValidationError:
                return None
    return None


def summarize(whom: dict[str, str], answers: dict[int, Judgement], judging: Judging) -> Judged:
    """What came of some answers of a judge: marks over the stories that were scored, tokens of all requests."""
    outcomes = Counter(answer.outcome for answer in answers.values())
    scored = [answer.marks for answer in answers.values() if answer.marks]
    marks = {}
    for name in Marks.model_fields if scored else ():
        mean, stderr = mean_over_groups([getattr(given, name) for given in scored], [1] * len(scored))
        marks[name] = MarkRecord(mean=mean, stderr=stderr)
    used = {name: sum(getattr(answer, name) for answer in answers.values()) for name in _COUNTS}
    return Judged(
        model=whom["model"],
        url=whom["url"],
        asked=len(answers),
        outcomes={outcome: outcomes[outcome] for outcome in get_args(Outcome)},
        marks=marks,
        **used,
        cost=judging.cost(*used.values()),
    )
