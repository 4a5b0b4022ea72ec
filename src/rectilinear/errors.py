"""The two ways a request ends badly; the command line turns them into exit codes.

Messages are one line: what was expected, what was found, what to try.
"""


class RectilinearError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(RectilinearError, ValueError):
    """The request cannot be met as written (exit code 2)."""


class JobError(RectilinearError, RuntimeError):
    """The request was fine, but the job failed while it ran (exit code 1)."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # Some messages begin with a heading that says nothing without what follows it.
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
