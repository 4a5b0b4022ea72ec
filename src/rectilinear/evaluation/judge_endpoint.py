"""The endpoint of a judge: what is sent where, how much of an answer is read, and what of it may be shown."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from rectilinear.errors import JobError, RectilinearError, RequestError
from rectilinear.evaluation.settings import OPENAI, Judging, public_url

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient
    from openai import APIStatusError, AsyncOpenAI

# Bytes of an answer that are read: marks and all that a judge thinks before them take far fewer.
_BYTES = 2**20

# Letters of what a server says that are shown in a message; shorter words are not taken for secrets.
_SHOWN, _SECRET = 200, 4

# Variables that have more to send with each request; their values are not shown either.
_ENVIRONMENT = ("OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")


@dataclass(frozen=True)
class Reply:
    """What came of a request.

    Attributes:
        body: what the endpoint said, as much as is read of it.
        error: what is wrong, where the endpoint did not accept the request or was not reached.
        busy: whether it only takes no more requests for now.
    """

    body: str
    error: RectilinearError | None = None
    busy: bool = False


def check_endpoint(judging: Judging) -> None:
    """See that a request could be sent.

    Raises:
        RequestError: no key for OpenAI's own endpoint, one that cannot be sent, or an environment that does not allow
            any connection.
    """
    key = _key(judging)
    if key is None and judging.where == OPENAI:
        raise RequestError("expected OPENAI_API_KEY to be set, or `judge_url` of an endpoint that needs none")
    if key is not None and not (key.isascii() and key.isprintable()):
        raise RequestError("expected a key of printable ASCII letters in OPENAI_API_KEY, got others")
    try:
        _connect(judging)
    except Exception as error:  # its message may have the user and password of a proxy in it
        raise RequestError(
            f"cannot ask the judge at {judging.where} ({type(error).__name__}); are its name, and the proxies and "
            "certificates of the environment (HTTP_PROXY, ALL_PROXY, SSL_CERT_FILE), what they should be?"
        ) from None


def complete(judging: Judging, messages: list[dict[str, str]], options: dict[str, Any]) -> Reply:
    """Send one request for a chat completion, again where it is turned away; never raises for what an endpoint does."""
    return _run(_complete(judging, messages, options))


def hidden(judging: Judging, text: str) -> str:
    """A text that came from the endpoint, without what was sent to it in secret, should it say that again."""
    for secret in sorted(_secrets(judging), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def printable(judging: Judging, text: str) -> str:
    """The beginning of a text that came from the endpoint, in one line, fit for a terminal and without secrets."""
    shown = "".join(letter if letter.isprintable() else " " for letter in hidden(judging, text))
    return " ".join(shown.split())[:_SHOWN]


def _key(judging: Judging) -> str | None:
    return judging.key or os.environ.get("OPENAI_API_KEY")


def _secrets(judging: Judging) -> set[str]:
    found = {_key(judging) or "", *(value for _, value in parse_qsl(urlsplit(judging.endpoint).query))}
    if login := _login(judging):
        found |= {*login, b64encode(":".join(login).encode()).decode()}
    lines = "\n".join(os.environ.get(name, "") for name in _ENVIRONMENT).splitlines()
    found |= {line.partition(":")[2].strip() or line.strip() for line in lines}
    found |= {secret.rpartition(" ")[2] for secret in found}  # Bearer and Basic are none
    for encode in (
        quote,
        lambda secret: quote(secret, ""),
        lambda secret: json.dumps(secret)[1:-1].replace("/", r"\/"),
    ):
        found |= {encode(secret) for secret in found}
    return {secret for secret in found if len(secret) >= _SECRET}


def _login(judging: Judging) -> tuple[str, str] | None:
    """User and password in the URL."""
    parts = urlsplit(judging.endpoint)
    return (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None


def _run(coroutine: Coroutine[Any, Any, Reply]) -> Reply:
    try:
        asyncio.get_running_loop()  # that of a notebook
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


@cache
def _bounded_client() -> type[AsyncClient]:
    """A client that reads a bounded part of each answer in a bounded time, and follows no redirects."""
    import httpx2

    class BoundedClient(httpx2.AsyncClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            """Send a request; what is read of an answer, though it break off, is the answer: it may have a price."""
            seconds, body, response = self.timeout.read, bytearray(), None
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **options | {"stream": True})
                    async for chunk in response.aiter_bytes():
                        body += chunk
                        if len(body) > _BYTES:
                            break
            except TimeoutError:
                if response is None:
                    raise httpx2.ReadTimeout(f"no answer within {seconds:g} seconds", request=request) from None
            except Exception:  # whatever an answer that breaks off, or is not encoded as it says, is to the library
                if response is None:
                    raise
            finally:
                if response is not None:
                    await response.aclose()
            headers = [(name, value) for name, value in response.headers.raw if name.lower() != b"content-encoding"]
            return httpx2.Response(response.status_code, headers=headers, content=bytes(body[:_BYTES]), request=request)

    return BoundedClient


@cache
def _certificates() -> SSLContext:
    """Whom to trust; to read it takes longer than all else of a request."""
    import httpx2

    return httpx2.create_ssl_context()


def _connect(judging: Judging) -> AsyncOpenAI:
    from openai import AsyncOpenAI

    query = parse_qsl(urlsplit(judging.endpoint).query, keep_blank_values=True)
    return AsyncOpenAI(
        api_key=_key(judging) or "none",
        base_url=judging.where,
        default_query=dict(query),
        max_retries=judging.retries,
        timeout=judging.timeout,
        http_client=_bounded_client()(auth=_login(judging), timeout=judging.timeout, verify=_certificates()),
    )


async def _complete(judging: Judging, messages: Any, options: dict[str, Any]) -> Reply:
    import openai

    try:
        async with _connect(judging) as client:
            raw = client.chat.completions.with_raw_response
            reply = await raw.create(model=judging.judge_model or "", messages=messages, **options)
            return Reply(_decoded(reply.content))
    except openai.APIStatusError as error:
        return Reply(_decoded(error.response.content), _explain(judging, error), error.status_code == 429)
    except Exception as error:  # no connection, too late, nothing of HTTP: whatever it is to the library
        reason = printable(judging, str(error) or type(error).__name__)
        return Reply("", JobError(f"cannot reach the judge at {judging.where} ({reason})"))


def _decoded(body: bytes) -> str:
    """The text of an answer: JSON has one of three encodings, whatever its header says."""
    return body.decode(json.detect_encoding(body), "replace")


def _explain(judging: Judging, error: APIStatusError) -> RectilinearError:
    """What an HTTP error means to the user."""
    where, reason = judging.where, printable(judging, str(error))
    if error.status_code in (401, 403):
        return RequestError(
            f"expected a key that {where} accepts in OPENAI_API_KEY, got {error.status_code} ({reason})"
        )
    if 300 <= error.status_code < 400:
        place = printable(judging, public_url(error.response.headers.get("location", "")))
        return RequestError(
            f"the judge at {where} sends requests on to {place or 'another place'}, where key and stories do not go "
            "unasked; try another `judge_url`"
        )
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return JobError(
            f"the judge at {where} keeps turning a request away ({reason}); try it later, or with a smaller "
            "`concurrency`"
        )
    # Models that reason refuse what others take, and name it.
    refused = getattr(error, "param", None) in ("max_tokens", "temperature")
    instead = "`reasoning`" if refused and not judging.reasoning else "--free-form"
    if error.status_code == 404:
        instead = "another `judge_url` or `judge_model`"
    return RequestError(
        f"the judge at {where} does not take such requests of model {judging.judge_model} ({reason}); try {instead}"
    )
