"""Asking a judge: one request a story, several at once, each answer on disk before the next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Any, get_args

from pydantic import ValidationError

from rectilinear.errors import JobError
from rectilinear.evaluation.criteria import INSTRUCTIONS, Marks
from rectilinear.evaluation.judge_endpoint import Reply, check_endpoint, complete, hidden, printable
from rectilinear.evaluation.judge_record import Judged, Judgement, JudgeName, MarkRecord, Outcome, Story
from rectilinear.evaluation.judgements import open_judgements, read_judgements, write_judgement
from rectilinear.evaluation.settings import Judging
from rectilinear.intervals import mean_over_groups
from rectilinear.progress import Progress

#: A story to try a judge with before there are any.
TRIAL = Story(index=-1, beginning="Once there was a small cat.", ending="", completion=" It slept in the sun.")

# Counts of tokens in a judgement.
_COUNTS = ("prompt_tokens", "completion_tokens")

# Letters of English a token has, roughly: for estimates only.
_LETTERS = 4

# Objects of an answer, from the last, that are looked at for marks, and repeats of the request that tries a judge.
_OBJECTS, _TRIAL_RETRIES = 100, 2

# Letters that are kept of an answer in which there is no text of a judge, and digits of a whole number.
_KEPT, _DIGITS = 10_000, 18

_DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) <= _DIGITS else float(digits))


def try_judge(judging: Judging) -> None:
    """Ask for the marks of a few words, so that a judge that would answer nothing is found before stories are written.

    Raises:
        RequestError: the endpoint refuses the key, the model or the request itself.
        JobError: it cannot be reached, turns the request away, or answers with something else.
    """
    reply = _try(judging)
    if reply.error:
        raise reply.error
    if _choice(_parse(reply.body)) is None:
        raise JobError(
            f"expected chat completions of the judge at {judging.where}, got {printable(judging, reply.body)[:80]}; "
            "try `judge_url=http://HOST:PORT/v1`"
        )


def _try(judging: Judging) -> Reply:
    return _send(judging.model_copy(update={"retries": min(judging.retries, _TRIAL_RETRIES)}), TRIAL)


def prompt_of(story: Story) -> list[dict[str, str]]:
    """The messages of a request."""
    content = f"The beginning:\n\n{story.beginning}\n\nHow the writer went on:\n\n{story.completion.strip()}"
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": content}]


def estimate_tokens(judging: Judging, stories: Sequence[Story]) -> tuple[int, int]:
    """About how many tokens requests have, and at most how many the answers, to pay for."""
    letters = sum(len(message["content"]) for story in stories for message in prompt_of(story))
    return round(letters / _LETTERS), judging.answer_tokens * len(stories)


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
        RequestError: the endpoint refuses the key, the model or the request itself; ``path`` has other lines in it.
        JobError: it cannot be reached, or keeps turning requests away. What was answered is on disk.
    """
    answers = read_judgements(path)
    todo = unanswered(stories, answers)
    if not todo:
        return answers
    check_endpoint(judging)
    answers, file = open_judgements(path)
    turn, failed, finished = Lock(), Event(), len(stories) - len(todo)
    pool = ThreadPoolExecutor(judging.concurrency)
    with file:

        def settle(story: Story) -> None:
            nonlocal finished
            if failed.is_set():  # what is asked now would be paid for in vain
                return
            try:
                judgement = _ask_one(judging, story, answers.get(story.index))
                with turn:
                    write_judgement(file, judgement)
                    answers[judgement.index] = judgement
                    finished += 1
                    progress("judge", finished, len(stories))
            except BaseException:
                failed.set()
                raise

        try:
            pool.submit(settle, todo[0]).result()  # alone, so that a wrong key is found out by one request
            for future in as_completed([pool.submit(settle, story) for story in todo[1:]]):
                future.result()
        except JobError as error:
            raise JobError(f"{error}; answers so far are kept, run again with `resume`") from None
        finally:
            pool.shutdown(cancel_futures=True)  # what was asked is waited for, and kept
    return answers


def _ask_one(judging: Judging, story: Story, before: Judgement | None) -> Judgement:
    """The answer to one request; its tokens are added to those of an answer before.

    A story with which a judge fails that answers for another one does not keep the run from its end.
    """
    reply = _send(judging, story)
    if reply.error is None:
        return _read(judging, story, reply.body, before)
    refused = "content_filter" in reply.body
    if not refused and (reply.busy or _try(judging).error):
        raise reply.error
    outcome: Outcome = "refused" if refused else "malformed"
    return _judgement(judging, story, outcome, reply.body[:_KEPT] or str(reply.error), before)


def _send(judging: Judging, story: Story) -> Reply:
    if judging.reasoning:
        options: dict[str, Any] = {"max_completion_tokens": judging.answer_tokens}
    else:  # servers that are no OpenAI know the older name
        options = {"temperature": 0.0, "max_tokens": judging.answer_tokens}
    if judging.structured:
        schema = {"name": "marks", "strict": True, "schema": Marks.model_json_schema()}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    return complete(judging, prompt_of(story), options)


def _parse(body: str) -> Any:
    """The JSON that an answer begins with; None where there is none."""
    try:
        return _DECODER.raw_decode(body.lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _choice(found: Any) -> Any:
    """The first choice of a chat completion; None of anything else."""
    choices = found.get("choices") if isinstance(found, dict) else None
    return choices[0] or {} if isinstance(choices, list) and choices else None


def _get(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _read(judging: Judging, story: Story, body: str, before: Judgement | None) -> Judgement:
    """An answer as a judgement: marks, a refusal, or something else. Endpoints leave out, or put in, what they like."""
    found = _parse(body)
    choice = _choice(found)
    content, refusal = (_get(_get(choice, "message"), name) for name in ("content", "refusal"))
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = content if isinstance(content, str) else ""
    refused = bool(refusal) or _get(choice, "finish_reason") == "content_filter"
    marks = None if refused else read_marks(text)
    answer = (refusal if isinstance(refusal, str) else "") or text or body[:_KEPT]
    outcome: Outcome = "refused" if refused else "malformed" if marks is None else "scored"
    return _judgement(judging, story, outcome, answer, before, marks=marks, usage=_get(found, "usage"))


def _judgement(
    judging: Judging,
    story: Story,
    outcome: Outcome,
    answer: str,
    before: Judgement | None,
    *,
    marks: Marks | None = None,
    usage: Any = None,
) -> Judgement:
    used = {name: _get(usage, name) for name in _COUNTS}
    whole = {name: count if type(count) is int and count > 0 else 0 for name, count in used.items()}
    return Judgement(
        index=story.index,
        outcome=outcome,
        answer=hidden(judging, answer),
        marks=marks,
        **{name: count + (getattr(before, name) if before else 0) for name, count in whole.items()},
    )


def read_marks(text: str) -> Marks | None:
    """The marks in an answer: the last JSON object with a mark in it, whatever stands before, around or after it.

    Returns:
        None where there is none, or where that object is not exactly four whole numbers from 1 to 10.
    """
    place = len(text)
    for _ in range(_OBJECTS):
        place = text.rfind("{", 0, place)
        if place < 0:
            break
        try:
            found, _ = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError):
            continue
        if found.keys() & Marks.model_fields.keys():
            try:
                return Marks.model_validate(found)
            except ValidationError:
                return None
    return None


def summarize(whom: JudgeName, answers: dict[int, Judgement], judging: Judging) -> Judged:
    """What came of some answers of a judge: marks over the stories that were scored, tokens of all requests."""
    outcomes = Counter(answer.outcome for answer in answers.values())
    scored = [answer.marks for answer in answers.values() if answer.marks]
    marks = {}
    for name in Marks.model_fields if scored else ():
        mean, stderr = mean_over_groups([getattr(given, name) for given in scored], [1] * len(scored))
        marks[name] = MarkRecord(mean=mean, stderr=stderr)
    used = {name: sum(getattr(answer, name) for answer in answers.values()) for name in _COUNTS}
    return Judged(
        model=whom.model,
        url=whom.url,
        asked=len(answers),
        outcomes={outcome: outcomes[outcome] for outcome in get_args(Outcome)},
        marks=marks,
        **used,
        cost=judging.cost(*used.values()),
    )
