"""Results are whole or not there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rectilinear.errors import JobError, RequestError
from rectilinear.publish import stage
from rectilinear.runs import Interrupted, check_same, claim

fcntl = pytest.importorskip("fcntl", reason="needs the locks of Unix")


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


def write(folder, names=("a", "b", "c"), text="new"):
    for name in names:
        (folder / name).write_text(text)


def stage_and_fail(out, error):
    with stage(out) as folder:
        write(folder)
        raise error


def test_results_appear_when_all_are_there(tmp_path):
    with stage(tmp_path / "deep" / "out") as folder:
        write(folder)
        assert not (tmp_path / "deep" / "out").exists()
    assert contents(tmp_path / "deep") == {"out": None, "out/a": "new", "out/b": "new", "out/c": "new"}


def test_a_relative_path_is_one_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with stage(Path("out")) as folder:
        write(folder, "a")
    assert contents(tmp_path) == {"out": None, "out/a": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, JobError])
def test_nothing_appears_after_an_exception(error, tmp_path):
    with pytest.raises(error):
        stage_and_fail(tmp_path / "out", error)
    assert contents(tmp_path) == {}


def test_nothing_appears_after_a_failed_write(tmp_path):
    with pytest.raises(JobError, match=r"cannot write to .*out: No space left"):
        stage_and_fail(tmp_path / "out", OSError(28, "No space left on device"))
    assert contents(tmp_path) == {}


def test_a_path_under_a_file_is_a_failed_write(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(JobError, match="cannot write to"), stage(tmp_path / "file" / "out"):
        pytest.fail("there is nowhere to write")
    assert contents(tmp_path) == {"file": "old"}


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_nothing_appears_when_the_move_fails(error, tmp_path, monkeypatch):
    def fail(source, target):
        raise error

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises((JobError, KeyboardInterrupt)), stage(tmp_path / "out") as folder:
        write(folder)
    assert contents(tmp_path) == {}


def test_overwriting_leaves_other_files(tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    write(out, ("a", "other", "sub/a"), "old")
    with stage(out) as folder:
        write(folder, "ab")
    expected = {"out": None, "out/a": "new", "out/b": "new", "out/other": "old", "out/sub": None, "out/sub/a": "old"}
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_old_results_stay_after_an_exception(error, tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "ab", "old")
    before = contents(tmp_path)
    with pytest.raises((JobError, KeyboardInterrupt)):
        stage_and_fail(tmp_path / "out", error)
    assert contents(tmp_path) == before


def test_no_folder_on_the_way_stays_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError):
        stage_and_fail(tmp_path / "deep" / "er" / "out", ZeroDivisionError)
    assert contents(tmp_path) == {}


def test_claim_accepts_what_can_be_written_and_leaves_it_as_it_was(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full", "a", "old")
    with claim(None) as nothing:
        assert nothing is None
    resumable = {"resume": True, "kept": lambda out: "a part of it"}
    for name, options in (("new/deep", {}), ("empty", {}), ("full", {"overwrite": True}), ("full", resumable)):
        with claim(tmp_path / name, **options) as folder:
            assert folder == tmp_path / name
    assert sorted(contents(tmp_path)) == ["empty", "full", "full/a"]


def test_claim_refuses_the_rest(tmp_path, monkeypatch):
    write(tmp_path, "a", "old")
    with pytest.raises(RequestError, match="is not empty; try another, or `overwrite`"):
        enter(tmp_path)
    with pytest.raises(RequestError, match="is not empty; try `resume`, another, or `overwrite`"):
        enter(tmp_path, kept=lambda out: "a part of it")
    with pytest.raises(RequestError, match="holds no run to resume; try another, or `overwrite`"):
        enter(tmp_path, resume=True)
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="got the file"):
            enter(tmp_path / "a", overwrite=overwrite)
    with pytest.raises(RequestError, match="inside the file"):
        enter(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RequestError, match=f"cannot write to {tmp_path}"):
        enter(tmp_path / "new" / "deep")
    assert contents(tmp_path) == {"a": "old"}


def enter(out, **options):
    with claim(out, **options):
        pass


def claim_elsewhere(out):
    """What a process of its own has to say to a claim; empty where it gets it."""
    program = f"from rectilinear.runs import claim\nwith claim({str(out)!r}): pass"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return ran.stderr.strip().rpartition("\n")[2]


def test_a_second_run_is_refused_while_the_first_is_there(tmp_path):
    out = tmp_path / "new" / "out"
    with claim(out):
        said = claim_elsewhere(out)
        assert f"another run (process {os.getpid()}) is writing to {out}; wait for it, or try another `out`" in said
        assert claim_elsewhere(tmp_path / "other" / "out") == ""
        enter(out)  # a function that the command calls
        assert f"process {os.getpid()}" in claim_elsewhere(out)
    assert claim_elsewhere(out) == ""
    assert contents(tmp_path) == {}


def test_a_lock_that_its_holder_removed_is_none(tmp_path, monkeypatch):
    """Between opening the file and locking it, the other run ends and takes the file with it."""
    flock, waiting = fcntl.flock, [tmp_path / ".out.lock"]

    def late(held, how):
        if waiting:
            waiting.pop().unlink()
        flock(held, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claim(tmp_path / "out"):
        assert not waiting
        assert "another run" in claim_elsewhere(tmp_path / "out")


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(held, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(tmp_path / "out") as out, stage(out) as folder:
        write(folder, "a")
    assert contents(tmp_path) == {"out": None, "out/a": "new"}


def test_a_folder_in_one_that_may_not_be_written(tmp_path, monkeypatch):
    """A mounted volume, say: nothing is written beside it."""
    access, beside = os.access, []
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    (out / ".out.lock").write_text("process 1")  # of a run that was killed
    with claim(out), claim(out), stage(out) as folder:  # a command, and the function that it calls
        write(folder, "a")
        beside += os.listdir(tmp_path)
        assert "another run" in claim_elsewhere_in(out)
    assert beside == ["out"]
    assert contents(tmp_path) == {"out": None, "out/a": "new"}


def claim_elsewhere_in(out):
    """A claim of another process that may not write beside the folder either."""
    access = f"os.access = lambda path, mode, access=os.access: str(path) != {str(out.parent)!r} and access(path, mode)"
    program = f"import os\n{access}\nfrom rectilinear.runs import claim\nwith claim({str(out)!r}, overwrite=True): pass"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stderr


def test_what_a_dead_run_left_is_no_obstacle_and_goes(tmp_path):
    out = tmp_path / "out"
    (tmp_path / ".out-backup").mkdir()
    (tmp_path / ".outer.staging-abcdefgh").mkdir()
    program = (
        "import os, signal\nfrom pathlib import Path\nfrom rectilinear.publish import stage\n"
        "from rectilinear.runs import claim\n"
        f"with claim({str(out)!r}) as out, stage(out) as folder:\n"
        "    (folder / 'a').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = [name for name in os.listdir(tmp_path) if name.startswith(".out.staging-")]
    assert len(left) == 1
    assert (tmp_path / ".out.lock").exists()
    with claim(out):
        assert not (tmp_path / left[0]).exists()
    assert sorted(os.listdir(tmp_path)) == [".out-backup", ".outer.staging-abcdefgh"]


def interrupt(out, kept):
    with claim(out, kept=kept):
        raise KeyboardInterrupt


def test_an_interrupted_run_says_what_there_is_to_go_on_from(tmp_path):
    with pytest.raises(Interrupted, match="resume from step 5"):
        interrupt(tmp_path / "out", lambda out: f"resume from step {len(out.name) + 2}")
    with pytest.raises(KeyboardInterrupt) as caught:
        interrupt(tmp_path / "out", lambda out: None)
    assert not isinstance(caught.value, Interrupted)
    assert contents(tmp_path) == {}


def test_only_the_same_request_is_resumed(tmp_path):
    check_same(tmp_path, {"steps": 5, "names": ["a"]}, {"steps": 5, "names": ["a"]})
    with pytest.raises(RequestError, match=r"got another \(seed 1 -> None, steps 5 -> 6\)"):
        check_same(tmp_path, {"steps": 5, "seed": 1}, {"steps": 6})
