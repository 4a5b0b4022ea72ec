"""The examples of ``--help``, one after the other in one folder, as a reader would run them."""

import inspect
import os
import re
import shlex
import socket
import subprocess
import sys
from importlib import import_module

import pytest

from rectilinear.cli.main import COMMANDS
from tests.judges import serving
from tests.superglue import write_superglue

# What others read comes before them.
ORDER = ("inspect", "measure", "explain", "linearize", "pretrain", "dynamics", "probe", "judge", "finetune", "evaluate")


def examples(name):
    """The command lines in a command's help."""
    doc = inspect.getdoc(getattr(import_module(f"rectilinear.cli.{name}"), name))
    return [" ".join(found.split()) for found in re.findall(r"Example: (.*(?:\n(?!\n).*)*)", doc)]


def test_every_command_has_examples_that_need_nothing_of_a_network():
    for name in COMMANDS:
        assert examples(name)
        for line in examples(name):
            assert line.startswith(f"rectilinear {name}")
            assert not re.search(r"\b[A-Z]{3,}\b|[\w-]+/[\w-]+-\d+[mb]\b", line), line  # no names to fill in


@pytest.mark.slow
def test_examples_run_as_printed(tmp_path):
    write_superglue(tmp_path / "superglue")
    try:
        socket.create_server(("127.0.0.1", 8000)).close()
    except OSError:
        pytest.skip("needs port 8000, which another program has")
    with serving(port=8000):
        rest = [name for name in COMMANDS if name not in (*ORDER, "demo")]  # which has a test of its own
        for name in (*ORDER, *rest):
            for line in examples(name):
                run(line, tmp_path)
    assert (tmp_path / "page" / "report.html").stat().st_size


def run(line, folder):
    """A command in a folder, which is to succeed."""
    options = {"cwd": folder, "env": {**os.environ, "OPENAI_API_KEY": "none"}, "capture_output": True, "text": True}
    ran = subprocess.run([sys.executable, "-m", *shlex.split(line)], timeout=600, **options)
    assert ran.returncode == 0, f"{line}\n{ran.stderr[-2000:]}"
    assert "Traceback" not in ran.stderr
    out = re.search(r"--out (\S+)", line)
    assert out is None or any((folder / out[1]).iterdir()), line
