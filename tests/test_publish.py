"""A kill, or a full disk, at every step of publishing leaves the old result, the new one, or none."""

import json
import os
import shutil

import pytest

from rectilinear.errors import JobError
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


@pytest.mark.parametrize(
    "before", [pytest.param(before, marks=[pytest.mark.slow] * (before != "result")) for before in WHOLE]
)
def test_a_full_disk_at_any_step(before, tmp_path):
    for name, earlier, root, program, code, log in trials(tmp_path, before, faults.fill):
        found = read(root / "out") if (root / "out").exists() else None
        if code:
            assert "No space left" in log.read_text(), name
            assert found == earlier, name
            assert faults.run(program, root, log)[0] == 0, (name, log.read_text())
        assert read(root / "out") == WHOLE[before], name


def killed_while_moving(root, before="result"):
    """A folder of which a run was killed in the middle of its moves; the program of that run."""
    program = command(root / "out", overwrite=before == "result")
    prepare(root, before)
    _, names = faults.run(program, root, root.parent / "log")
    moves = [at for at, name in enumerate(names, 1) if name.startswith("os.rename") and "draft" not in name]
    prepare(root, before)
    assert faults.run(program, root, root.parent / "log", moves[2])[0] == -9
    return program


def test_any_next_run_finishes_the_moves_also_one_that_is_refused(tmp_path):
    root = tmp_path / "root"
    killed_while_moving(root)
    assert "config.json" not in read(root / "out")
    assert faults.run(command(root / "out", overwrite=False), root, tmp_path / "log")[0] == 70
    assert "is not empty; try another, or `overwrite`" in (tmp_path / "log").read_text()
    assert read(root / "out") == WHOLE["result"]


def test_a_folder_that_was_removed_after_a_kill_stays_removed(tmp_path):
    root = tmp_path / "root"
    killed_while_moving(root)
    shutil.rmtree(root / "out")
    assert faults.run(command(root / "out", overwrite=False), root, tmp_path / "log")[0] == 0
    assert read(root / "out") == NEW
    assert os.listdir(root) == ["out"]


def test_another_command_takes_nothing_over(tmp_path, monkeypatch):
    root = tmp_path / "root"
    program = killed_while_moving(root, "empty")
    monkeypatch.setattr("sys.argv", ["another"])
    assert faults.run(program, root, tmp_path / "log")[0] == 70
    assert "is not empty; try another, or `overwrite`" in (tmp_path / "log").read_text()
    monkeypatch.undo()
    assert faults.run(program, root, tmp_path / "log")[0] == 0
    assert read(root / "out") == NEW
    assert os.listdir(root) == ["out"]


@pytest.mark.parametrize(
    "journal",
    [
        {},
        [],
        {"out": ".", "new": 5, "gone": []},
        {"out": "/", "new": ["etc"], "gone": []},
        {"out": "../other", "new": ["a"], "gone": []},
        {"out": ".", "new": ["../a"], "gone": []},
        {"out": ".", "new": [], "gone": ["a/b"]},
    ],
)
def test_a_journal_that_is_none_of_ours_moves_nothing(journal, tmp_path):
    staging, out = tmp_path / ".out.staging-abcdefgh", tmp_path / "out"
    write(out, {"a": "mine"})
    write(staging, {"journal.json": json.dumps(journal), "new/a": "theirs", "new/etc": "theirs"})
    before = read(tmp_path)
    with pytest.raises(JobError, match=r"cannot finish what a run that was killed was moving to .*none of ours"):
        stage_nothing(out)
    assert read(tmp_path) == before


def stage_nothing(out):
    with stage(out):
        pass


def test_a_link_and_its_target_are_one_folder(tmp_path):
    (tmp_path / "elsewhere" / "target").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "target")
    with claim(link) as out, stage(out) as new:
        write(new, NEW)
        assert sorted(os.listdir(tmp_path)) == ["elsewhere", "link"]
    assert link.is_symlink()
    assert read(tmp_path / "elsewhere") == {f"target/{name}": text for name, text in NEW.items()}
