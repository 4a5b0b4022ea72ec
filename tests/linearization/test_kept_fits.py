"""A linearization that was killed goes on from what it had fitted, and ends with the same bytes."""

import filecmp
import json
import os
import shutil
import signal
import sys

import pytest
import torch

from rectilinear.cli.main import main
from rectilinear.linearization import fit as fitting
from rectilinear.linearization.kept_fits import KeptFits, fits_folder
from tests import faults
from tests.conftest import linearize

SIZE = {"max_tokens": 1024, "seq_len": 32, "device": "cpu"}
KINDS = [
    {"kind": "affine", "target": "attention", "blocks": (0, 1, 2)},
    {"kind": "filter", "rank": 4, "target": "attention", "count": 2},
    {"kind": "folded", "blocks": (1, 2)},
    {"kind": "mean", "target": "mlp", "blocks": (0, 2)},
]


@pytest.fixture
def fitted(monkeypatch):
    """The maps that are fitted, not taken as they were kept."""
    found, own = [], fitting.fit_map

    def noting(*args, **options):
        found.append(args)
        return own(*args, **options)

    monkeypatch.setattr(fitting, "fit_map", noting)
    return found


@pytest.fixture
def kill(tmp_path, text_file):
    """A function that linearizes into ``work/out`` and is killed once some maps are there."""
    (tmp_path / "work").mkdir()

    def program(model, maps, options):
        last, own = maps, KeptFits.recall

        def recall(self, name, make):
            nonlocal last
            made = own(self, name, make)
            last -= "bias" in made
            if not last:  # all maps are there but for what is made of them
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        KeptFits.recall = recall
        linearize(str(model), text_file, out=tmp_path / "work" / "out", **SIZE, **options)

    def run(model, maps, options):
        code, _ = faults.run(lambda: program(model, maps, options), tmp_path / "work", tmp_path / "log")
        assert code == -9, (tmp_path / "log").read_text()

    return run


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("options", KINDS, ids=lambda options: options["kind"])
def test_a_run_that_was_killed_goes_on(tiny_checkpoint, text_file, tmp_path, fitted, kill, reload_here, options):
    work = tmp_path / "work"
    linearize(str(tiny_checkpoint), text_file, out=tmp_path / "usual", **SIZE, **options)
    kill(tiny_checkpoint, len(fitted), options)
    assert [path.name for path in work.iterdir() if path.name.endswith(".fits")] == [".out.fits"]
    fitted.clear()
    linearize(str(tiny_checkpoint), text_file, out=work / "out", **SIZE, **options)
    assert not fitted
    assert os.listdir(work) == ["out"]
    names = sorted(path.name for path in (tmp_path / "usual").iterdir())
    assert filecmp.cmpfiles(tmp_path / "usual", work / "out", names, shallow=False) == (names, [], [])


@needs_proc
def test_choices_that_were_fitted_are_found_again_whatever_other_budgets_are_compared(
    tiny_checkpoint, text_file, tmp_path, fitted, kill, reload_here, monkeypatch
):
    """Maps are kept by what was chosen: of another choice none is taken for one of this."""
    monkeypatch.setenv("RECTILINEAR_CACHE", str(tmp_path / "cache"))
    choice = {"choices": "affine,drop", "target": "mlp", "budget": "parameters=93%"}
    swept = [{**choice, "sweep": f"parameters={share}%"} for share in (80, 86)]
    linearize(str(tiny_checkpoint), text_file, out=tmp_path / "first", **SIZE, **swept[0])  # which keeps the costs
    kill(tiny_checkpoint, 2, swept[0])
    fitted.clear()
    linearize(str(tiny_checkpoint), text_file, out=tmp_path / "work" / "out", **SIZE, **swept[1])
    few = len(fitted)
    linearize(str(tiny_checkpoint), text_file, out=tmp_path / "usual", **SIZE, **swept[1])
    assert few < len(fitted) - few
    names = sorted(path.name for path in (tmp_path / "usual").iterdir())
    compared = filecmp.cmpfiles(tmp_path / "usual", tmp_path / "work" / "out", names, shallow=False)
    assert compared == (names, [], [])


@needs_proc
def test_with_another_configuration_it_fits_anew(tiny_checkpoint, text_file, tmp_path, fitted, kill, reload_here):
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    kill(model, 3, KINDS[0])
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-2}))
    linearize(str(model), text_file, out=tmp_path / "work" / "out", **SIZE, **KINDS[0])
    assert len(fitted) == 3


def test_another_run_fits_anew(tiny_checkpoint, text_file, tmp_path, fitted, reload_here):
    options = {**SIZE, "kind": "affine", "target": "attention", "blocks": (0, 1)}
    recipes = [{"a": 1}, {"a": 2}]
    for recipe in recipes:
        with fits_folder(tmp_path / "out", recipe) as folder:
            assert KeptFits(folder).recall("it", lambda: {"x": torch.ones(1)})["x"] == 1
            (folder / "it.safetensors").read_bytes()
        assert not folder.exists()
    linearize(str(tiny_checkpoint), text_file, out=tmp_path / "out", **options)
    assert len(fitted) == 2


def test_what_is_kept_is_of_one_recipe_and_what_is_broken_is_made_anew(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.tensor([float(len(made))])}

    folder = tmp_path / ".out.fits"
    for recipe, expected in (({"a": 1}, 1), ({"a": 1}, 1), ({"a": 2}, 2), ({"a": 1}, 3)):
        with fits_folder(tmp_path / "out", recipe) as found:
            assert float(KeptFits(found).recall("it", make)["x"]) == expected
            kept = {path.name: path.read_bytes() for path in found.iterdir()}
        folder.mkdir()  # as a kill would leave it
        for name, content in kept.items():
            (folder / name).write_bytes(content)
    (folder / "it.safetensors").write_bytes(b"{}")
    with fits_folder(tmp_path / "out", {"a": 1}) as found:
        assert float(KeptFits(found).recall("it", make)["x"]) == 4


def test_where_there_can_be_no_folder_it_is_fitted_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    with fits_folder(tmp_path / "file" / "out", {}) as folder:
        assert folder is None
        assert float(KeptFits(folder).recall("it", lambda: {"x": torch.ones(1)})["x"]) == 1


def test_after_ctrl_c_nothing_is_left(tiny_checkpoint, text_file, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("rectilinear.linearization.linearize.find_warnings", interrupted)
    arguments = ("--text", text_file, "--max-tokens", 1024, "--seq-len", 32, "--device", "cpu", "--blocks", 1)
    command = ["rectilinear", "linearize", tiny_checkpoint, *arguments, "--kind", "affine", "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert not [*tmp_path.glob(".out*fits")]
