"""``rectilinear compare`` prints and writes what the function gives, and runs no model."""

import json
from itertools import pairwise

import pytest

import rectilinear
from rectilinear import Evaluating, Loading, Rows
from tests.conftest import build_llama


@pytest.fixture(scope="module")
def results(tiny_checkpoint, save_checkpoint, text_file, tmp_path_factory):
    """Folders of three models' evaluations."""
    out = tmp_path_factory.mktemp("results")
    models = {"dense": tiny_checkpoint}
    models |= {f"smaller-{seed}": save_checkpoint(build_llama(blocks=2, seed=seed), "smaller") for seed in (1, 2)}
    asked, rows = Evaluating(speed=False, batch_size=8), Rows(max_tokens=1024, seq_len=32)
    for name, model in models.items():
        rectilinear.evaluate(model, text_file, asked, rows=rows, loading=Loading(device="cpu")).save(out / name)
    return [out / name for name in models]


def table_of(text):
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line[:1] == "│"]


def test_it_writes_and_prints_what_the_function_gives(command, results, tmp_path, monkeypatch):
    monkeypatch.setattr("rectilinear.models.load.load_model", None)
    ran = command("compare", *results[:2], "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["comparison.json", "pareto.png", "pareto.svg"]
    found = rectilinear.compare(*results[:2])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == json.loads(found.to_json())
    shown = {name: cells for name, *cells in table_of(ran.out)}
    between = found.models[0].differences
    assert shown["loss (nats a token)"][2] == f"{between.loss:+.4f} ± {between.loss_stderr:.4f}"
    assert shown["perplexity"][2] == f"x {between.perplexity_ratio:.3f}"


def test_several_models_stand_beside_the_first(command, results):
    ran = command("compare", *results)
    assert (ran.code, ran.err) == (0, "")
    below = {before[0]: (before[1:], after[1:]) for before, after in pairwise(table_of(ran.out)) if not after[0]}
    found = rectilinear.compare(*results)
    losses = [found.against.loss, *(each.measured.loss for each in found.models)]
    numbers, changes = below["loss (nats a token)"]
    assert [cell.split(" ±")[0] for cell in numbers] == [f"{loss:.4f}" for loss in losses]
    assert [cell.split(" ±")[0] for cell in changes] == ["", *(f"{e.differences.loss:+.4f}" for e in found.models)]


def test_wrong_requests(command, results, tmp_path):
    for arguments, says in (
        (results[:1], "expected results of at least two models to compare, got those of one"),
        ((results[0], tmp_path), f"expected evaluation.json, probe.json or judge.json in {tmp_path}, got none"),
    ):
        ran = command("compare", *arguments, "--out", tmp_path / "out")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"rectilinear: error: {says}\n"
        assert list(tmp_path.iterdir()) == []
