"""The two ways a request ends badly; the command line turns them into exit codes.

Messages are one line: what was expected, what was found, what to try.
"""


class RectilinearError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(RectilinearError, ValueError):
    """The request cannot be met as written (exit code 2)."""


class JobError(RectilinearError, RuntimeError):
    """The request was fine, but the job failed while it ran (exit code 1)."""
