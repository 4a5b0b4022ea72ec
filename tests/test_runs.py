"""Results are whole or not there."""

import os
from pathlib import Path

import pytest

from rectilinear.errors import JobError, RequestError
from rectilinear.runs import claim, stage


def contents(folder):
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else None for p in folder.rglob("*")}


def write(folder, names=("a", "b", "c"), text="new"):
    for name in names:
        (folder / name).write_text(text)


def stage_and_fail(out, error):
    with stage(out) as folder:
        write(folder)
        raise error


def break_second_move(error, monkeypatch):
    moves, replace = [], os.replace

    def second_fails(source, target):
        moves.append(target)
        if len(moves) == 2:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)


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
def test_nothing_appears_when_the_move_fails_half_way(error, tmp_path, monkeypatch):
    break_second_move(error, monkeypatch)
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


def test_old_results_stay_when_the_move_fails_half_way(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", "abc", "old")
    before = contents(tmp_path)
    break_second_move(OSError(5, "Input/output error"), monkeypatch)
    with pytest.raises(JobError), stage(tmp_path / "out") as folder:
        write(folder)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_no_folder_on_the_way_stays_after_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError):
        stage_and_fail(tmp_path / "deep" / "er" / "out", ZeroDivisionError)
    assert contents(tmp_path) == {}


def test_check_out_accepts_what_can_be_written(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    write(tmp_path / "full", "a", "old")
    check_out(None, False)
    check_out(tmp_path / "new" / "deep", False)
    check_out(tmp_path / "empty", False)
    check_out(tmp_path / "full", True)
    assert sorted(contents(tmp_path)) == ["empty", "full", "full/a"]


def test_check_out_refuses_the_rest(tmp_path, monkeypatch):
    write(tmp_path, "a", "old")
    with pytest.raises(RequestError, match="is not empty"):
        check_out(tmp_path, False)
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="got the file"):
            check_out(tmp_path / "a", overwrite)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RequestError, match=f"cannot write to {tmp_path}"):
        check_out(tmp_path / "new" / "deep", False)
