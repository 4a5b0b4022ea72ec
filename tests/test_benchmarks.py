"""Scripts that are ready for machines which are not at hand."""

import ast
import re
import subprocess
import sys
from importlib import import_module

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("script", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_scripts_import_what_there_is(script):
    """They are run by hand, long after what they import has moved."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rectilinear"):
            for name in node.names:
                assert hasattr(import_module(node.module), name.name), f"{node.module} has no {name.name}"


@pytest.mark.slow
def test_the_script_for_accelerators_runs():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "tiny"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"check is_right +True", done.stdout)
    assert done.stdout.count("times a forward pass") == 3
    assert "failed" not in done.stdout
