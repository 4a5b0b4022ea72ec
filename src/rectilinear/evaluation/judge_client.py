"""Asking a judge: one request a story, several at once, each answer on disk before the next."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from rectilinear.errors import JobError, RequestError
from rectilinear.evaluation.judge_record import Judgement, Marks, Story
from rectilinear.progress import Progress

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

INSTRUCTIONS = (
    "You grade stories that young writers completed. You are given the beginning of a story and how a writer went on "
    "from it. The writer may have been stopped in the middle of a sentence, which is no fault. Judge only what the "
    "writer added. Give whole numbers from 1 (very poor) to 10 (excellent) for: grammar; creativity; consistency with "
    "the beginning; and plot, whether what happens makes sense. Answer with a JSON object that has exactly the keys "
    '"grammar", "creativity", "consistency" and "plot", and nothing else.'
)

#: The file of a run with the answers, one a line.
JUDGEMENTS = "judgements.jsonl"

# Tokens of an answer at most: four numbers with their names, and what a judge that reasons thinks before.
_ANSWER_TOKENS, _REASONING_TOKENS = 100, 4000

_GO_ON = "answers so far are kept, run again with --resume"

# Letters of English a token has, roughly: for estimates only.
_LETTERS = 4


@dataclass(frozen=True)
class JudgeEndpoint:
    """A judge behind an OpenAI-compatible endpoint.

    Attributes:
        model: its name there.
        url: of the endpoint; None for OpenAI's own.
        concurrency: requests at once.
        retries: of a request that was turned away or failed on the way, with growing pauses or those that the server
            asks for.
        timeout: seconds for one request.
        structured: whether to ask the endpoint to hold the answer to a JSON schema.
        reasoning: whether the judge is a model that reasons before it answers: such take no temperature, and need more
            tokens.
        prices: of a million tokens of requests, and of answers; None where they are not known.
        key: that the endpoint wants; None for what is in ``OPENAI_API_KEY``.

    Raises:
        RequestError: prices that are none.
    """

    model: str
    url: str | None = None
    concurrency: int = 4
    retries: int = 6
    timeout: float = 120.0
    structured: bool = True
    reasoning: bool = False
    prices: tuple[float, float] | None = None
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.prices and not all(math.isfinite(price) and price >= 0 for price in self.prices):
            raise RequestError("expected --prices of at least 0, got {:g} {:g}".format(*self.prices))

    @property
    def where(self) -> str:
        """Its URL."""
        return self.url or "https://api.openai.com/v1"

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer, at most."""
        return _REASONING_TOKENS if self.reasoning else _ANSWER_TOKENS

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        """What so many tokens cost, in the currency of the prices; None where these are not known."""
        if self.prices is None:
            return None
        return (self.prices[0] * prompt_tokens + self.prices[1] * answer_tokens) / 1e6

    def connect(self) -> OpenAI:
        """A client.

        Raises:
            RequestError: no key for OpenAI's own endpoint, or no URL.
        """
        from openai import OpenAI

        key = self.key or os.environ.get("OPENAI_API_KEY")
        if key is None and self.url is None:
            raise RequestError("expected OPENAI_API_KEY to be set, or --judge-url of an endpoint that needs none")
        if self.url is not None and not _is_url(self.url):
            raise RequestError(f"expected --judge-url http://HOST:PORT/v1, got {self.url}")
        if key is not None and not key.isascii():
            raise RequestError("expected a key of ASCII letters in OPENAI_API_KEY, got others")
        return OpenAI(api_key=key or "none", base_url=self.url, max_retries=self.retries, timeout=self.timeout)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def prompt_of(story: Story) -> list[dict[str, str]]:
    """The messages of a request."""
    told = f"The beginning:\n\n{story.beginning}\n\nHow the writer went on:\n\n{story.completion.strip()}"
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": told}]


def estimate_tokens(judge: JudgeEndpoint, stories: Sequence[Story]) -> tuple[int, int]:
    """About how many tokens requests have, and at most how many the answers, to pay for."""
    letters = sum(len(message["content"]) for story in stories for message in prompt_of(story))
    return round(letters / _LETTERS), judge.answer_tokens * len(stories)


def read_judgements(path: Path) -> dict[int, Judgement]:
    """Answers that are on disk; a last line that was cut off is left out."""
    found: dict[int, Judgement] = {}
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    for place, line in enumerate(lines):
        try:
            judgement = Judgement.model_validate_json(line)
        except ValidationError:
            if place == len(lines) - 1:  # what a killed run was writing; the rest ends with its line
                break
            raise RequestError(f"{path}, line {place + 1}: expected an answer of a judge, got {line[:40]!r}") from None
        found[judgement.index] = judgement
    return found


def ask(
    judge: JudgeEndpoint, stories: Sequence[Story], path: Path, progress: Progress | None = None
) -> dict[int, Judgement]:
    """Have stories judged that have no answer on disk yet.

    Each answer is appended to the file as it comes. When this is stopped, requests that are under way are waited for,
    so that none is paid for twice; only a kill loses those, ``concurrency`` at most.

    Args:
        judge: whom to ask.
        stories: to be judged.
        path: ``judgements.jsonl``.
        progress: called with (stage, done, total).

    Returns:
        All answers, by index of the story.

    Raises:
        RequestError: the endpoint refuses the key, the model or the request itself.
        JobError: it cannot be reached, or keeps turning requests away. What was answered is on disk.
    """
    done = read_judgements(path)
    todo = [story for story in stories if story.index not in done]
    if not todo:
        return done
    client = judge.connect()
    whole = "".join(answer.model_dump_json() + "\n" for answer in done.values())
    if path.exists() and path.read_text(encoding="utf-8") != whole:  # a line was cut off
        path.write_text(whole, encoding="utf-8")
    turn = Lock()
    pool = ThreadPoolExecutor(judge.concurrency)
    with path.open("a", encoding="utf-8") as file:

        def settle(story: Story) -> None:
            judgement = _ask_one(judge, client, story)
            with turn:
                file.write(judgement.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
                done[judgement.index] = judgement
                if progress:
                    progress("judge", len(done), len(stories))

        try:
            pool.submit(settle, todo[0]).result()  # alone, so that a wrong key is found out by one request
            for future in as_completed([pool.submit(settle, story) for story in todo[1:]]):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # what was asked is waited for, and kept
    return done


def _ask_one(judge: JudgeEndpoint, client: OpenAI, story: Story) -> Judgement:
    import openai
    from openai.types.chat import ChatCompletion

    if judge.reasoning:
        options: dict[str, Any] = {"max_completion_tokens": judge.answer_tokens}
    else:  # servers that are no OpenAI know the older name
        options = {"temperature": 0.0, "max_tokens": judge.answer_tokens}
    if judge.structured:
        schema = {"name": "marks", "strict": True, "schema": Marks.model_json_schema()}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    messages: Any = prompt_of(story)
    try:
        reply = client.chat.completions.create(model=judge.model, messages=messages, **options)
    except openai.APIStatusError as error:
        if "content_filter" in str(error.body):
            return Judgement(index=story.index, outcome="refused", answer=str(error.body))
        raise _told(judge, error) from error
    except (openai.APIError, ValueError) as error:  # no connection, too late, nothing of HTTP or JSON
        raise JobError(f"cannot reach the judge at {judge.where} ({error}); {_GO_ON}") from error
    if not isinstance(reply, ChatCompletion) or not reply.choices:
        said = " ".join(str(reply).split())[:80]
        raise JobError(
            f"expected chat completions of the judge at {judge.where}, got {said}; try --judge-url "
            f"http://HOST:PORT/v1; {_GO_ON}"
        )
    return _read(story, reply)


def _told(judge: JudgeEndpoint, error: Any) -> Exception:
    """What an HTTP error means to the user."""
    said = " ".join(str(error).split())[:200]
    if error.status_code in (401, 403):
        return RequestError(
            f"expected a key that {judge.where} accepts in OPENAI_API_KEY, got {error.status_code} ({said})"
        )
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return JobError(
            f"the judge at {judge.where} keeps turning a request away ({said}); {_GO_ON}, perhaps later or with a "
            "smaller --concurrency"
        )
    # Models that reason refuse what others take, and name it.
    refused = getattr(error, "param", None) in ("max_tokens", "temperature")
    instead = "--reasoning" if refused and not judge.reasoning else "--free-form"
    if error.status_code == 404:
        instead = "another --judge-url or --judge-model"
    return RequestError(
        f"the judge at {judge.where} does not take such requests of model {judge.model} ({said}); try {instead}"
    )


def _read(story: Story, reply: ChatCompletion) -> Judgement:
    """A reply as a judgement: marks, a refusal, or something else. Endpoints leave out what they like."""
    choice = reply.choices[0]
    content, refusal = (getattr(choice.message, name, None) for name in ("content", "refusal"))
    text = content if isinstance(content, str) else ""
    refused = bool(refusal) or choice.finish_reason == "content_filter"
    marks = None if refused else _marks(text)
    return Judgement(
        index=story.index,
        outcome="refused" if refused else "malformed" if marks is None else "scored",
        answer=str(refusal) if refusal else text,
        marks=marks,
        prompt_tokens=getattr(reply.usage, "prompt_tokens", None) or 0,
        completion_tokens=getattr(reply.usage, "completion_tokens", None) or 0,
    )


def _marks(text: str) -> Marks | None:
    """Marks in an answer that is a JSON object, perhaps in a fence; None for anything else."""
    plain = text.strip()
    if plain.startswith("```") and plain.endswith("```"):
        plain = plain.strip("`").removeprefix("json").strip()
    try:
        return Marks.model_validate(json.loads(plain))
    except (ValueError, ValidationError):
        return None
