"""A kill, or a full disk, at every step of publishing leaves the old result, the new one, or none."""

import os
import shutil

import pytest

from rectilinear.publish import stage
from rectilinear.runs import claim
from tests import faults

pytest.importorskip("fcntl", reason="needs the locks of Unix")
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc"),
]

#: Of a checkpoint: what makes it one comes last; some files are replaced, one goes, a folder is replaced whole.
OLD = {"config.json": "old", "model.safetensors": "old", "model-2.safetensors": "old", "seed-0/a": "old", "b": "old"}
NEW = {"README.md": "new", "config.json": "new", "model.safetensors": "new", "plan.json": "new", "seed-0/a": "new"}
OTHERS = {"mine.py": "mine", "notes/x": "mine"}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def command(out, overwrite):
    def program():
        with claim(out, overwrite=overwrite) as folder, stage(folder, stale=["model-2.safetensors", "gone"]) as new:
            write(new, NEW)
        return 0

    return program


#: What is there before: nothing, an empty folder, an earlier result and others' files; and what the same then gives.
WHOLE = {"nothing": NEW, "empty": NEW, "result": NEW | OTHERS | {"b": "old"}}


def prepare(root, before):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    if before != "nothing":
        (root / "out").mkdir()
    if before == "result":
        write(root / "out", OLD | OTHERS)
    return read(root / "out") if before != "nothing" else None


def trials(tmp_path, before, act):
    """A trial at each step, with what was there before it."""
    root, log = tmp_path / "root", tmp_path / "log"
    program = command(root / "out", overwrite=before == "result")
    prepare(root, before)
    code, names = faults.run(program, root, log)
    assert code == 0
    assert read(root / "out") == WHOLE[before]
    assert os.listdir(root) == ["out"]
    assert len(names) > 15
    for at, name in enumerate(names, 1):
        earlier = prepare(root, before)
        yield name, earlier, root, program, faults.run(program, root, log, at, act)[0], log


@pytest.mark.parametrize("before", WHOLE)
def test_a_kill_at_any_step(before, tmp_path):
    for name, earlier, root, program, code, log in trials(tmp_path, before, faults.kill):
        assert code == -9, name
        found = read(root / "out") if (root / "out").exists() else None
        if found is None or "config.json" not in found:
            assert before != "nothing" or found is None, name  # the folder is there whole, or not at all
        else:
            assert {key: found.get(key) for key in earlier or {}} == earlier or found == WHOLE[before], name
        assert faults.run(program, root, log)[0] == 0, (name, log.read_text())
        assert read(root / "out") == WHOLE[before], name
        assert os.listdir(root) == ["out"], name


@pytest.mark.parametrize("before", WHOLE)
def test_a_full_disk_at_any_step(before, tmp_path):
    for name, earlier, root, program, code, log in trials(tmp_path, before, faults.fill):
        found = read(root / "out") if (root / "out").exists() else None
        if code:
            assert "No space left" in log.read_text(), name
            assert found == earlier or name.startswith("os.r"), name  # what cannot be moved or removed stays
            assert faults.run(program, root, log)[0] == 0, (name, log.read_text())
        assert read(root / "out") == WHOLE[before], name
