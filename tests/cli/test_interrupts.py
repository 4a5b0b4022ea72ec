"""A real process, stopped in the middle of its work, says so and leaves nothing behind."""

import os
import select
import signal
import subprocess
import sys
import time

import pytest

pty = pytest.importorskip("pty", reason="needs a Unix terminal")


def read_until(terminal, wanted, seconds=90):
    """What a process wrote to a terminal, until there is something wanted in it."""
    said, deadline = b"", time.monotonic() + seconds
    while wanted not in said:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"expected {wanted!r} within {seconds} seconds, got {said!r}"
        said += os.read(terminal, 4096)
    return said


def read_rest(terminal):
    """What is left after the process has ended."""
    said = b""
    while select.select([terminal], [], [], 0)[0]:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            break
    return said


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGINT, 130, b"rectilinear: interrupted, nothing was written"),
        (signal.SIGTERM, 143, b""),
    ],
    ids=["SIGINT", "SIGTERM"],
)
def test_interrupted_measure(number, code, says, tiny_checkpoint, environment, tmp_path):
    out = tmp_path / "new" / "out"
    size = ["--max-tokens", "160000", "--seq-len", "16", "--batch-size", "1"]
    arguments = ["measure", str(tiny_checkpoint), "--text", "stories", *size, "--device", "cpu", "--out", str(out)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rectilinear", *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env={**environment, "TERM": "xterm"},
        # Where tests run in the background, shells have processes ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        read_until(ours, b"/10000")  # the progress bar: rows are being measured
        process.send_signal(number)
        printed, _ = process.communicate(timeout=30)
        said = read_rest(ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == code
    assert printed == b""
    assert b"Traceback" not in said
    assert says in said
    assert list(tmp_path.iterdir()) == []
