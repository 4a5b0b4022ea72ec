"""Two ways to run the command line: a real process, and this one, which is quicker."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest

from rectilinear.cli.main import main


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of processes: nothing in it makes a pipe look like a terminal."""
    force = {"FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "GITHUB_ACTIONS"}
    return {name: value for name, value in os.environ.items() if name not in force}


@pytest.fixture(scope="session")
def process(environment):
    """A function that runs ``python -m rectilinear`` with some arguments."""

    def run(*args) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "rectilinear", *map(str, args)],
            capture_output=True,
            encoding="utf-8",
            env=environment,
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def command(monkeypatch, capfd):
    """A function that runs the command line in this process."""

    def run(*args) -> Ran:
        monkeypatch.setattr(sys, "argv", ["rectilinear", *map(str, args)])
        capfd.readouterr()
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ran(ended.value.code or 0, *capfd.readouterr())

    return run
