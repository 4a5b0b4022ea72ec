"""The demo, as a new user runs it."""

import json

import pytest


@pytest.mark.slow
def test_the_demo_profiles_the_built_in_decoder_and_explains_it(process, tmp_path):
    ran = process("demo", "--out", tmp_path / "demo")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(file.name for file in (tmp_path / "demo").iterdir()) == ["profile.json", "profile.png", "profile.svg"]
    profile = json.loads((tmp_path / "demo" / "profile.json").read_text())
    assert profile["model"]["num_blocks"] == 8
    assert profile["data"]["source"] == "stories"
    assert profile["data"]["tokens"] > 90_000
    scores = [block["update_linearity"]["in_sample"] for block in profile["blocks"]]
    assert 0 < min(scores) < max(scores) < 1
    said = " ".join(ran.out.split())
    for paragraph in ("What was measured.", "The output.", "The update.", "How far to trust it.", "Attention sinks."):
        assert paragraph in said
    assert f"{100 * max(scores):.1f} % at block {scores.index(max(scores))}" in said
    assert f"{100 * min(scores):.1f} % at block {scores.index(min(scores))}" in said
