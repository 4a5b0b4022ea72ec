"""The demo, as a new user runs it."""

import json
from pathlib import Path

import pytest

from rectilinear.models.load import resolve


@pytest.mark.slow
def test_the_demo_takes_the_built_in_decoder_through_all_of_it(process, tmp_path):
    out = tmp_path / "demo"
    ran = process("demo", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    figures = [f"{name}.{kind}" for name in ("dynamics", "profile") for kind in ("json", "png", "svg")]
    others = ["evaluation.json", "figures", "linearized", "report.html"]
    assert sorted(file.name for file in out.iterdir()) == sorted([*figures, *others])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(
        heading in page for heading in ("How linear each block is", "How linearity changed", "What was replaced")
    )
    assert f"open {out / 'report.html'}" in ran.out.replace("\n", "")
    said = " ".join(ran.out.split())

    profile = json.loads((out / "profile.json").read_text())
    assert profile["model"]["num_blocks"] == 8
    assert profile["data"]["source"] == "stories"
    assert profile["data"]["tokens"] > 90_000
    scores = [block["update_linearity"]["in_sample"] for block in profile["blocks"]]
    assert 0 < min(scores) < max(scores) < 1
    for paragraph in ("What was measured.", "The output.", "The update.", "How far to trust it.", "Attention sinks."):
        assert paragraph in said
    assert f"{100 * max(scores):.1f} % at block {scores.index(max(scores))}" in said
    assert f"{100 * min(scores):.1f} % at block {scores.index(min(scores))}" in said

    dynamics = json.loads((out / "dynamics.json").read_text())
    assert dynamics["model"]["id"] == "storyteller"
    training = json.loads((Path(resolve("storyteller")) / "training.json").read_text())
    assert [dynamics["points"][place]["step"] for place in (0, -1)] == [0, training["steps"]]
    assert "Over training." in said

    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["differences"]["parameters"] < 0 < evaluation["differences"]["loss"] < 1
    assert 0.45 < evaluation["differences"]["cache_bytes"] < 0.55
    assert f"({evaluation['differences']['loss']:+.4f}, with a 95 % interval from" in said
    plan = json.loads((out / "linearized" / "plan.json").read_text())
    assert [replacement["kind"] for replacement in plan["replacements"]] == ["filter"] * 4
    assert "A story that begins:" in said
