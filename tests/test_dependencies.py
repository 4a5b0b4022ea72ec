"""What pyproject.toml asks for, what the lock names and what `make oldest` tests agree."""

import re
import tomllib
from importlib.metadata import requires

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CUDA = re.compile(r"(nvidia|cuda|triton)")
LINE = re.compile(r"(?P<name>[a-z0-9]+(-[a-z0-9]+)*)==(?P<version>[a-z0-9.]+)( ; (?P<marker>[^#]+))?")


def versions_in(name):
    """The versions that a file of requirements names, by package; several where they differ by system or Python."""
    found = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        parts = LINE.fullmatch(line)
        assert parts, f"{name} has more than names, versions and markers: {line!r}"
        found.setdefault(parts["name"], []).append(Version(parts["version"]))
    return found


def direct(extra):
    """The requirements of this package with an extra, by name."""
    project, found = PROJECT["project"], {}
    lines = [*project["dependencies"], f"rectilinear[{extra}]"]
    while lines:
        requirement = Requirement(lines.pop())
        if requirement.name == "rectilinear":
            lines += [line for name in requirement.extras for line in project["optional-dependencies"][name]]
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


@pytest.mark.parametrize(("file", "extra"), [("lock.txt", "dev"), ("oldest.txt", "test")])
def test_what_is_asked_for_is_pinned_within_its_bounds(file, extra):
    pinned = versions_in(file)
    for name, requirement in direct(extra).items():
        assert all(version in requirement.specifier for version in pinned[name]), name


def test_lower_bounds_are_the_versions_that_are_tested():
    pinned = versions_in("oldest.txt")
    for name, requirement in direct("test").items():
        lowest = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
        assert lowest == pinned[name], f"{requirement} has no lower bound, or another than `make oldest` tests"


@pytest.mark.parametrize("file", ["lock.txt", "oldest.txt"])
def test_pins_hold_on_every_machine(file):
    pinned = versions_in(file)
    assert not [name for name in pinned if CUDA.match(name)]
    assert not [name for name, versions in pinned.items() if any(version.local for version in versions)]


def test_the_lock_names_all_that_comes_along():
    pinned, seen, todo = versions_in("lock.txt"), set(), list(direct("dev").values())
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen or CUDA.match(name):
            continue
        seen.add((name, *requirement.extras))
        assert name in pinned
        environments = [default_environment() | {"extra": extra} for extra in ("", *requirement.extras)]
        further = map(Requirement, requires(name) or ())
        todo += [one for one in further if one.marker is None or any(map(one.marker.evaluate, environments))]
    assert len(seen) > 100


def test_tools_check_the_oldest_python():
    (oldest,) = [bound.version for bound in Requirement(f"python{PROJECT['project']['requires-python']}").specifier]
    tools = PROJECT["tool"]
    assert tools["mypy"]["python_version"] == oldest
    assert tools["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"--python-version {oldest}" in (ROOT / "Makefile").read_text(encoding="utf-8")
