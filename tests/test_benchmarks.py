"""Scripts that are ready for machines which are not at hand."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_script_for_accelerators_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "tiny"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"check is_right +True", done.stdout)
    assert done.stdout.count("times a forward pass") == 3
    assert "failed" not in done.stdout
