"""The words of an explanation carry the profile's numbers."""

from rectilinear.report.explain import explain_profile
from tests.report.conftest import block


def paragraph(profile, opening):
    [found] = [text for text in explain_profile(profile) if text.startswith(opening)]
    return found


def test_numbers_are_the_profiles(profile):
    measured = paragraph(profile, "What was measured.")
    assert all(part in measured for part in ("4,096 tokens", "3 blocks", "16 numbers"))
    output = paragraph(profile, "The output.")
    assert "91.0 % to 93.0 %" in output
    assert "71.0 % to 73.0 %" in output
    update = paragraph(profile, "The update.")
    assert "62.0 % at block 1" in update
    assert "13.0 % at block 2" in update
    trust = paragraph(profile, "How far to trust it.")
    assert all(part in trust for part in ("6.25 %", "-25.00 to -10.00 points", "7.50 points"))
    sinks = paragraph(profile, "Attention sinks.")
    assert "block 1 7 of 4,096 tokens carry 87.5 %" in sinks


def test_without_sinks_it_says_so(make_profile):
    profile = make_profile(block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02)))
    assert "There are none here" in paragraph(profile, "Attention sinks.")


def test_without_held_out_scores_it_says_so(make_profile):
    assert "too few rows" in paragraph(make_profile(block(0, (0.9,), (0.6,))), "How far to trust it.")


def test_without_scores_there_is_nothing_to_explain(make_profile):
    profile = make_profile(block(0, (None,), (None,), identity=None))
    assert explain_profile(profile) == ["No block's output varied, so there is nothing to explain."]


def test_odd_profiles_have_explanations(odd_profile):
    text = " ".join(explain_profile(odd_profile))
    assert text
    assert "nan" not in text.lower()
    assert "None" not in text
