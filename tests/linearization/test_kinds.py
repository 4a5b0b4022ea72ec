"""Kinds are found by being there, say what they are, and are told apart nowhere else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rectilinear
from rectilinear import Affine, Drop, Filter, Folded, RequestError
from rectilinear.linearization import kinds
from rectilinear.linearization.kinds import KINDS, make_kind
from rectilinear.models.released_code import FILES

FOLDER = Path(kinds.__file__).parent


def test_each_kind_is_a_file_of_its_own():
    assert {name: kind.__module__.rpartition(".")[2] for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert {"affine", "drop", "filter", "folded"} <= KINDS.keys()
    assert {file.stem for file in FOLDER.glob("*.py")} == {*KINDS, "__init__", "base"}


def test_a_new_file_is_a_new_kind_of_the_function_and_the_command(tmp_path):
    """In a process with a copy of the package that has one file more."""
    package = Path(rectilinear.__file__).parent
    script = f"""
import shutil, sys
shutil.copytree({str(package)!r}, "rectilinear", ignore=shutil.ignore_patterns("storyteller", "__pycache__"))
with open("rectilinear/linearization/kinds/twice.py", "w") as file:
    file.write('''
from typing import ClassVar
from pydantic import PositiveInt
from rectilinear.linearization.kinds.base import Kind
class Twice(Kind):
    "Each block two times."
    name: ClassVar[str] = "twice"
    times: PositiveInt = 2
    "How often a block runs."
''')
sys.path.insert(0, ".")
from rectilinear.cli.main import main
from rectilinear.linearization.kinds import make_kind
print(make_kind("twice", {{"times": 3}}))
sys.argv = ["rectilinear", "linearize", *sys.argv[1:]]
main()
"""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", f"import shutil; shutil.rmtree('rectilinear', True)\n{script}", *arguments],
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
        )
        return done.stdout, done.stderr

    out, err = run("--help")
    assert out.startswith("twice\n"), err
    assert "twice: Each block two times." in " ".join(out.replace("│", " ").split())
    assert "--times" in out
    _, err = run("storyteller", "--text", "stories", "--kind", "drop", "--times", "3", "--count", "1", "--out", "o")
    assert err == "rectilinear: error: expected no --times with --kind drop, where it changes nothing; try without it\n"


def test_kinds_are_compared_nowhere():
    """No name of a kind stands in a comparison or a match outside of the files of kinds."""
    source = Path(rectilinear.__file__).parent
    # What a checkpoint's own code reads is the config that it was written with.
    travelling = {source / "models" / file for file in FILES}
    found = []
    for file in {*source.rglob("*.py")} - {*FOLDER.glob("*.py")} - travelling:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Compare, ast.MatchValue)):
                words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                found += [
                    f"{file.name}:{node.lineno}" for name in KINDS if name in words and "kind" in ast.unparse(node)
                ]
    assert found == []


def test_help_needs_no_torch():
    script = (
        "import sys; sys.argv = ['rectilinear', 'linearize', '--help']; from rectilinear.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_they_describe_themselves():
    described = {
        Drop(): "drop",
        Folded(): "folded",
        Affine(): "affine",
        Affine(rank=3): "affine, rank 3",
        Filter(rank=24, taps=2, rates=[1, 0.5]): "filter, rank 24, 2 taps, rates 1, 0.5",
        Filter(rates=()): "filter, 3 taps, rates none",
    }
    assert {kind: str(kind) for kind in described} == described


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("magic", {}, "expected `kind` to be one of affine, bounded, drop, .*, got 'magic'"),
        (None, {}, "expected `kind` to be one of .*, got None"),
        ("drop", {"rank": 2}, "expected no `rank` with `kind=drop`"),
        ("affine", {"rates": "1"}, "expected no `rates` with `kind=affine`"),
        ("filter", {"colour": "red"}, "expected no `colour` with `kind=filter`"),
        ("filter", {"taps": 65}, "`taps` to be less than or equal to 64, got 65"),
        ("affine", {"rank": 0}, "`rank` to be greater than 0, got 0"),
    ],
)
def test_what_they_cannot_take_is_refused(name, options, says):
    with pytest.raises(RequestError, match=says):
        make_kind(name, options)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.keeps_weights])
def test_parameters_are_known_before_the_fit(kind, linearize):
    from tests.families import build

    for target in {"block", "attention", "mlp"} - KINDS[kind].impossible.keys():
        made = linearize(build("llama"), kind=kind, target=target, blocks=[1])
        [replacement] = made.plan.replacements
        assert replacement.by.parameters(made.plan.model.width, target) == replacement.fit.parameters_after
        before = made.plan.parameters.before
        assert (
            made.plan.parameters.after == before - replacement.fit.parameters_before + replacement.fit.parameters_after
        )
