"""Faults at every step that a program takes on disk: what it opens to write, moves, makes, removes and flushes.

A program runs in a fork of this process and is killed, or meets a full disk, at a step that is counted: so all of them
can be tried, one after the other, and no chance is involved.
"""

import errno
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

#: Events of Python that come before something on disk changes; https://docs.python.org/3/library/audit_events.html
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


class Steps:
    """Counts what is changed below a folder, and does something at one of the steps."""

    def __init__(self, root, at=None, act=None):
        self.root, self.at, self.act, self.names = str(root), at, act, []

    def watch(self):
        """Begin, in a process that ends with the program: a hook stays."""
        fsync = os.fsync

        def flush(file):
            number = file if isinstance(file, int) else file.fileno()
            self.step("fsync", os.readlink(f"/proc/self/fd/{number}"))
            return fsync(file)

        os.fsync = flush
        sys.addaudithook(self.heard)

    def heard(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                self.step("open", path)
        elif event in CHANGES:
            self.step(event, arguments[0])

    def step(self, what, path):
        name = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else ""
        if name.startswith(self.root):
            self.names.append(f"{what} {os.path.relpath(name, self.root)}")
            if self.at == len(self.names):
                self.act()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fill():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def report(**found):
    """Add a line of JSON to the file that ``RECTILINEAR_FAULTS_REPORT`` names, if it names one."""
    if file := os.environ.get("RECTILINEAR_FAULTS_REPORT"):
        with open(file, "a") as lines:
            lines.write(json.dumps(found) + "\n")


def run(program, root, log, at=None, act=kill, after=None):
    """Run a program in a fork; its exit code (negative: the signal) and the names of its steps, as far as it came.

    Args:
        program: a function that returns an exit code.
        root: folder below which steps are counted.
        log: file for what it prints, outside of the root.
        at: number of the step at which to act; None for none.
        act: what is done there, instead of the step or before it.
        after: seconds after which it is killed, wherever it is by then; None for never.
    """
    counted = Path(f"{log}.steps")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
            os.dup2(sys.stdout.fileno(), 1)
            os.dup2(sys.stdout.fileno(), 2)
            steps = Steps(root, at, act)
            steps.watch()
            code = program()
        except SystemExit as exit:
            code = exit.code
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            counted.write_text("\n".join(steps.names))
            os._exit(code or 0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # which a child that is done does not mind
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), counted.read_text().split("\n") if counted.exists() else []
