"""What is asked of models, and how: tasks of the harness, probes, stories and their judge."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from rectilinear.errors import RequestError
from rectilinear.models.settings import Stack
from rectilinear.settings import BatchSize, Names, NonNegative, Pooling, Positive, Settings
from rectilinear.text.settings import Source, TaskSource

# Tokens of an answer at most: four numbers with their names, and what a judge that reasons thinks before.
_ANSWER_TOKENS, _REASONING_TOKENS = 100, 4000

_PYTHON_ONLY = Parameter(parse=False)

#: The endpoint when none is given.
OPENAI = "https://api.openai.com/v1"


class Evaluating(Settings):
    """What a model is evaluated on beside a text, and how."""

    tasks: Names = ()
    """Tasks, groups or tags of lm-evaluation-harness, or superglue, the paper's columns: a,b."""
    data: str | Path | None = None
    """Folder with the tasks' data, TASK/val.jsonl of SuperGLUE or task.jsonl; the Hub when not given."""
    limit: PositiveInt | None = None
    """Documents of each task, at most."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question; each task's own number when not given."""
    apply_chat_template: bool = False
    """Put prompts into the tokenizer's chat template, examples as earlier turns."""
    system_instruction: str | None = None
    """Text before the prompts of tasks; each task's own when not given."""

    include: tuple[Path, ...] = ()
    """Folder with results of rectilinear probe and judge of these models, at any depth; may be repeated."""
    speed: Annotated[bool, Parameter(negative="--no-speed")] = True
    """Time the reading of a prompt and decoding from it."""
    batch_size: Annotated[BatchSize, Parameter(group="Runtime")] = "auto"
    """Rows, or requests of tasks, in a forward pass; 'auto' halves it when memory runs out."""

    @model_validator(mode="after")
    def _check_use(self) -> Evaluating:
        if not self.tasks:
            asked = ("data", "limit", "num_fewshot", "apply_chat_template", "system_instruction")
            self.refuse_unused("without `tasks`", *asked)
        return self


class Probing(TaskSource, Stack):
    """What probes read, and how they are fitted."""

    seq_len: PositiveInt = 256
    """Tokens of a text, which loses its beginning where it is longer."""
    pooling: Pooling = "mean"
    """State of a text: the mean over its tokens, or that of its last token."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the cross-validation that chooses penalties."""


class Stories(Source):
    """Which stories a model completes, and how; together with the model, all that they depend on."""

    text: str = "stories"
    """Held-out text that the beginnings are taken from, as for rectilinear measure."""
    count: PositiveInt = 100
    """Number of stories."""
    beginning_words: PositiveInt = 40
    """Words of a beginning; only documents of twice as many words are taken."""
    max_new_tokens: PositiveInt = 200
    """Tokens that the model writes, at most."""
    temperature: NonNegative = 1.0
    """Temperature of sampling; 0 takes the likeliest tokens."""
    batch_size: Annotated[PositiveInt, Parameter(group="Runtime")] = 16
    """Stories to write at once; drawn stories depend on it."""


def public_url(url: str) -> str:
    """A URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"[?#].*", "", re.sub(r"//[^/?#]*@", "//", url, count=1))


def _check_url(url: str | None, name: str = "judge_url") -> str | None:
    if not url:
        return None
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # An @ further on may end a password with a slash in it, of which half would be taken for the host.
        valid = valid and url.isprintable() and " " not in url and url.count("@") <= parts.netloc.count("@") <= 1
    except ValueError:
        valid = False
    if not valid:
        got = "one that cannot be read, with user, query or fragment" if {*"@?#"} & {*url} else repr(url)
        raise RequestError(f"expected `{name}=http://HOST:PORT/v1`, got {got}")
    return url


def _check_prices(prices: tuple[float, float] | None) -> tuple[float, float] | None:
    if prices and not all(math.isfinite(price) and price >= 0 for price in prices):
        raise RequestError("expected `prices` of at least 0, got {:g} {:g}".format(*prices))
    return prices


class Judging(Settings):
    """Which judge behind an OpenAI-compatible endpoint marks stories, and how it is asked."""

    judge_model: str | None = None
    """Name of the judge at its endpoint; when not given, stories are only written and measured."""
    judge_url: Annotated[str | None, AfterValidator(_check_url), Field(repr=False)] = None
    """URL of an OpenAI-compatible endpoint, http://HOST:PORT/v1; that of OPENAI_BASE_URL, else OpenAI's, when not
    given. OPENAI_API_KEY has the key."""
    concurrency: PositiveInt = 4
    """Requests at once."""
    structured: Annotated[bool, Parameter(negative="--free-form")] = True
    """Have the endpoint hold answers to a JSON schema."""
    reasoning: bool = False
    """The judge reasons before it answers: it takes no temperature and needs longer answers."""
    prices: Annotated[tuple[float, float] | None, AfterValidator(_check_prices)] = None
    """Prices of a million tokens of requests and of answers, for an estimate."""
    reference: str | None = None
    """Another model, whose loss of the completions is measured; its default revision."""
    dry_run: bool = False
    """Write the stories, estimate the tokens, ask nothing."""
    retries: Annotated[NonNegativeInt, _PYTHON_ONLY] = 6
    """How often a request that was turned away or failed on the way is repeated, after growing pauses or those that
    the server asks for."""
    timeout: Annotated[Positive, _PYTHON_ONLY] = 120.0
    """Seconds for one request and all of its answer."""
    key: Annotated[str | None, _PYTHON_ONLY, Field(repr=False)] = None
    """Key for the endpoint; that of OPENAI_API_KEY when not given."""

    @model_validator(mode="after")
    def _check_use(self) -> Judging:
        if self.judge_model is None and self.judge_url is not None:
            raise RequestError(f"expected `judge_model`, the name of a model at {self.where}, got none")
        if self.judge_model is None:
            self.refuse_unused("without `judge_model`", "concurrency", "structured", "reasoning", "prices", "dry_run")
        return self

    @property
    def where(self) -> str:
        """The endpoint's URL, without user, password, query and fragment: what is recorded."""
        return public_url(self.endpoint)

    @property
    def endpoint(self) -> str:
        """The endpoint's URL as it was given, here or in the environment.

        Raises:
            RequestError: OPENAI_BASE_URL is no URL.
        """
        return self.judge_url or _check_url(os.environ.get("OPENAI_BASE_URL"), "OPENAI_BASE_URL") or OPENAI

    @property
    def answer_tokens(self) -> int:
        """Tokens of an answer, at most."""
        return _REASONING_TOKENS if self.reasoning else _ANSWER_TOKENS

    def cost(self, prompt_tokens: int, answer_tokens: int) -> float | None:
        """What so many tokens cost, in the currency of the prices; None where these are not known."""
        if self.prices is None:
            return None
        return (self.prices[0] * prompt_tokens + self.prices[1] * answer_tokens) / 1e6
