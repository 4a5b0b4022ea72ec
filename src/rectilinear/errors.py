"""The two ways a request ends badly; the command line turns them into exit codes.

Messages are one line: what was expected, what was found, what to try.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec


class RectilinearError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(RectilinearError, ValueError):
    """The request cannot be met as written (exit code 2)."""


class JobError(RectilinearError, RuntimeError):
    """The request was fine, but the job failed while it ran (exit code 1)."""


def broken_promise(library: str, promise: str) -> JobError:
    """The error to raise where a number rests on what a library (its distribution) no longer does: ``promise``."""
    return JobError(
        f"expected {library} to {promise}, which version {version(library)} does not do here; "
        "try a version that README says was tested"
    )


def require(module: str, extra: str) -> None:
    """Say how to install what an extra of this package brings.

    Raises:
        RequestError: it is not installed.
    """
    if find_spec(module) is None:
        raise RequestError(f"expected {module} to be installed; try pip install 'rectilinear[{extra}]'")


def try_nearest(got: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """``; try NAME`` for the name that is most like what was got; "" where none is like enough."""
    return "".join(f"; try {near}" for near in get_close_matches(got, [*names], 1, cutoff))


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Some messages begin with a heading that says nothing without what follows it.
    line = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    # In ours what is between backticks is an option.
    return line if isinstance(error, RectilinearError) else line.replace("`", "'")
