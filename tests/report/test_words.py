"""The words of an explanation carry the numbers of what they explain."""

from rectilinear.linearization.plan import Plan
from rectilinear.measurement.explanation import Explanation
from tests.report.conftest import block, linearity
from tests.report.test_dynamics_plot import make as make_dynamics
from tests.report.test_evaluation_table import ENVIRONMENT, make_pair, measurements


def paragraph(profile, opening):
    [found] = [text for text in profile.words() if text.startswith(opening)]
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
    assert all(part in trust for part in ("6.25 %", "-25.00 to -10.00 percentage points", "at most 7.50"))
    sinks = paragraph(profile, "Attention sinks.")
    assert "block 1, 7 of 4,096 tokens carry 87.5 %" in sinks
    assert "explains 99 % of y or more in 0 of 3 blocks where all tokens count, and in 0 where sinks" in sinks


def test_without_sinks_it_says_so(make_profile):
    profile = make_profile(block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02)))
    assert "There are none here" in paragraph(profile, "Attention sinks.")


def test_without_held_out_scores_it_says_so(make_profile):
    assert "too few rows" in paragraph(make_profile(block(0, (0.9,), (0.6,))), "How far to trust it.")


def test_without_scores_there_is_nothing_to_explain(make_profile):
    profile = make_profile(block(0, (None,), (None,), identity=None))
    assert profile.words() == ("No block's output varied, so there is nothing to explain.",)


def test_odd_profiles_have_explanations(odd_profile):
    text = " ".join(odd_profile.words())
    assert text
    assert "nan" not in text.lower()
    assert "None" not in text


def test_dynamics_have_their_course_and_whether_it_is_beyond_doubt():
    [text] = make_dynamics([0, 50, 900], 2, lambda step, _: {0: 0.6, 50: 0.3, 900: 0.4}[step]).words()
    assert "at 3 steps" in text
    assert "from 60.0 % at step 0 by way of its least, 30.0 % at step 50, to 40.0 % at step 900" in text
    assert "a fall of 20.0 percentage points, more than its 95 % interval of ± 8.5" in text
    [text] = make_dynamics([0, 50], 2, lambda step, _: 0.6 + step / 2000).words()
    assert "by way of" not in text
    assert "a rise of 2.5 percentage points, not more than its 95 % interval of ± 8.5" in text
    [text] = make_dynamics([7], 2, lambda step, _: 0.6).words()
    assert "nothing can be said" in text


def test_a_linearization_has_what_was_lost_and_gained():
    evaluation = make_pair()
    told = " ".join([*plan(blocks=(3, 5)).words(), *evaluation.words()])
    assert "The attentions of blocks 3, 5, by stand-ins of kind filter." in told
    assert "On 4,096 tokens 1.7923 for 1.5423 nats a token (+0.2500, with a" in told
    assert "1,234,567 for 1,234,567 parameters (100.0 %)" in told
    assert "a cache of 368,640 for 368,640 bytes after 288 tokens" in told
    assert "times as fast" not in told  # decoding was not timed
    larger = evaluation.model_copy(update={"parameters": 2_469_134})
    assert "2,469,134 for 1,234,567 parameters (200.0 %)" in " ".join(larger.words())


def test_an_empty_plan_has_nothing_to_say_of():
    assert plan(blocks=()).words() == ("Nothing was replaced.",)
    assert make_pair().model_copy(update={"against": None}).words() == ()


def explanation(share, residual=4.27):
    """One block whose map explains so much of the update, and the token furthest from it."""

    def scores(value):
        return linearity(value, value, 0.01) | {"adjusted": None}

    forms = {"identity": 0.5, "multiple": 0.55, "rotation": 0.625, "linear": 0.75}
    token = {"row": 0, "position": 3, "before": "a ", "token": "cat", "after": " sat", "residual": residual}
    return Explanation(
        model=measurements("/tmp/runs/tiny", 1.0)["model"],
        data={"source": "/tmp/texts/t.txt", "fingerprint": "f", "tokens": 2048, "rows": 8, "seq_len": 256},
        settings={},
        environment=ENVIRONMENT,
        target="block",
        blocks=[
            {
                "index": 3,
                "tokens": 2048,
                "sinks": 0,
                "forms": {name: {"output": scores(of), "update": scores(share)} for name, of in forms.items()},
                "ranks": {rank: {"output": scores(0.6), "update": scores(share * rank / 8)} for rank in (1, 2, 4)},
                "singular_values": [1.0] * 16,
                "effective_rank": 11.2,
                "directions": [],
                "deviating": [token],
                "least_linear": [],
                "most_linear": [],
                "text": {"tokens": ["cat"], "residuals": [residual]},
            }
        ],
    )


def test_words_of_explanations_are_defined_and_those_of_their_tables():
    made = explanation(0.25)
    assert made.headline() == (
        "Linear maps explain 25.0 % of block 3's update (effective rank 11). An effective rank of r says that this is "
        "spread as widely as over r directions of equal strength."
    )
    what, where = made.words()
    assert "a map that writes only along the 4 strongest of its 16 directions explains half of that or more" in what
    assert "of the output the shares are: doing nothing 50.0 %, a multiple of the identity 55.0 %" in what
    assert where.endswith("its squared distance is 4.27 times that of updates from their mean.")
    _, _, deviating = made.tables()
    assert "4.27" in str(deviating)
    assert "explain nothing (worse than the mean) of block 3's update" in explanation(-1.096).headline()


def plan(blocks):
    return Plan(
        model=measurements("org/tiny", 1.0)["model"],
        data={"source": "t", "fingerprint": "f", "tokens": 2048, "rows": 8, "seq_len": 256},
        settings={},
        environment=ENVIRONMENT,
        selection={"select": "named"},
        replacements=[{"kind": "filter", "target": "attention", "blocks": [index]} for index in blocks],
    )
