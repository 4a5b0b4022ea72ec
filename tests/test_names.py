"""Models and texts are called by the ends of their ids and paths, and no two alike."""

from pathlib import Path
from types import SimpleNamespace as Some

from rectilinear.names import distinct_names, labels, short_names


def test_names_of_models():
    assert short_names(["a/x", "b/x", "x", "a/y/"]) == ["x", "x-2", "x-3", "y"]
    assert short_names(["x-2", "x", "b/x"]) == ["x-2", "x", "x-3"]
    assert short_names([".", ".."]) == [Path.cwd().name, Path.cwd().parent.name]


def test_as_many_folders_as_tell_models_apart():
    assert distinct_names(["/tmp/real/smol", "org/other"]) == ["smol", "other"]
    assert distinct_names(["/tmp/a/final", "/tmp/b/final", "x/y"]) == ["a/final", "b/final", "y"]
    assert distinct_names(["/a/run/final", "/b/run/final"]) == ["a/run/final", "b/run/final"]
    assert distinct_names(["final", "a/final", "final"]) == ["final", "a/final", "final"]
    assert distinct_names(["", "."]) == ["", Path.cwd().name]


def result(model, text=None, tokens=100):
    return Some(model=Some(id=model), data=text and Some(source=text, tokens=tokens))


def test_results_are_told_apart_by_no_more_than_it_takes():
    one, two = result("/m/one", "/t/valid.txt"), result("/m/one", "/t/score.txt")
    assert labels([one, result("org/two", "/t/valid.txt")]) == ["one", "two"]
    assert labels([one, two, result("org/two", "/t/valid.txt")]) == ["one on valid.txt", "one on score.txt", "two"]
    longer = result("/m/one", "/t/valid.txt", 2000)
    assert labels([one, longer]) == ["one on 100 tokens of valid.txt", "one on 2,000 tokens of valid.txt"]
    assert labels([one, one]) == ["one on valid.txt (1)", "one on valid.txt (2)"]
    assert labels([result("/m/one"), result("/m/one")]) == ["one (1)", "one (2)"]
    assert labels([Some(against=Some(model=Some(id="/m/one")), data=None)]) == ["one"]
