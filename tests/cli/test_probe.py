"""``rectilinear probe``: what it writes, prints and draws."""

import json
import re

import pytest

from tests.superglue import write_superglue


@pytest.mark.slow
def test_it_writes_a_record_and_a_figure(process, tiny_checkpoint, tmp_path):
    data, out = write_superglue(tmp_path / "data", train=30, validation=15), tmp_path / "out"
    options = ("--seq-len", 64, "--folds", 3, "--pooling", "last", "--max-examples", 24, "--device", "cpu")
    ran = process("probe", tiny_checkpoint, "--task", "cb", "--data", data, *options, "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert sorted(file.name for file in out.iterdir()) == ["probe.json", "probe.png", "probe.svg"]
    assert not re.search(r"[\x1b\r\x08]", ran.out)
    written = json.loads((out / "probe.json").read_text())
    told = {name: written["settings"][name] for name in ("seq_len", "folds", "pooling", "max_examples")}
    assert told == {"seq_len": 64, "folds": 3, "pooling": "last", "max_examples": 24}
    assert [point["depth"] for point in written["points"]] == [0, 1, 2, 3]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line[:1] == "│"]
    for point, row in zip(written["points"], rows, strict=False):
        accuracy = point["metrics"]["accuracy"]
        assert row[0].split()[0] == str(point["depth"])
        assert row[2:4] == [f"{point['cross_validated']:.4f}", f"{accuracy['value']:.4f} ± {accuracy['stderr']:.4f}"]
    assert rows[4][0] == "constant"
    svg = (out / "probe.svg").read_text()
    assert all(words in svg for words in ("Linear probes of cb", "commonest answer", "accuracy"))


def test_a_wrong_request(command, tiny_checkpoint, tmp_path):
    ran = command("probe", tiny_checkpoint, "--task", "boolqq", "--data", tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "try boolq" in ran.err
