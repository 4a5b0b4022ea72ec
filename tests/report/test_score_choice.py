"""With few tokens a feature adjusted scores stand for blocks, wherever a score is told, drawn, averaged or tested."""

import pytest

from rectilinear.measurement.dynamics import mean_curve
from rectilinear.measurement.measure import Scored
from rectilinear.measurement.score_choice import WHY_ADJUSTED, ScoreChoice, are_few, from_to, in_percent
from rectilinear.report.page import make_report
from rectilinear.training.callback import _scalars
from tests.report.conftest import block
from tests.report.test_dynamics_plot import make as make_dynamics


def scores(in_sample, adjusted, held_out):
    interval = {"low": held_out - 0.1, "high": held_out + 0.1, "level": 0.95}
    return {
        "in_sample": in_sample,
        "adjusted": adjusted,
        "held_out": held_out,
        "stderr": 0.03,
        "interval": interval,
    }


def blocks():
    """Two, held out far below 0, as it is where maps are fitted on few tokens."""
    found = []
    for index, adjusted in enumerate((0.25, 0.5)):
        made = block(index, (0.9,), (0.8,))
        made["linearity"] = scores(0.95, adjusted + 0.375, -1.0)
        made["update_linearity"] = scores(0.9, adjusted, -5.75)
        made["without_sinks"] |= {name: made[name] for name in ("linearity", "update_linearity")}
        found.append(made)
    return found


@pytest.fixture
def few(make_profile):
    """A profile of 319 tokens for a width of 16, one fewer than 20 a feature."""
    profile = make_profile(*blocks())
    return profile.model_copy(update={"data": profile.data.model_copy(update={"tokens": 319})})


def enough(profile):
    return profile.model_copy(update={"data": profile.data.model_copy(update={"tokens": 320})})


def test_twenty_tokens_a_feature_are_enough():
    assert (are_few(319, 16), are_few(320, 16), are_few(5, None)) == (True, False, False)


def test_which_score_stands_for_a_block(few):
    record = few.blocks[0].update_linearity
    held_out, adjusted = ScoreChoice(), ScoreChoice(few=True)
    assert [choice.value(record) for choice in (held_out, adjusted)] == [-5.75, 0.25]
    assert [choice.of_all_rows(record) for choice in (held_out, adjusted)] == [0.9, 0.25]
    assert [choice.stderr(record) for choice in (held_out, adjusted)] == [0.03, None]
    assert held_out.half_width(record) == pytest.approx(0.1)
    assert adjusted.half_width(record) is None
    assert [choice.name([record]) for choice in (held_out, adjusted)] == ["held out", "adjusted"]
    alone = record.model_copy(update={"held_out": None, "adjusted": None})
    assert (held_out.value(alone), held_out.name([alone]), adjusted.value(alone)) == (0.9, "in sample", None)


def test_a_score_below_nothing_is_no_share():
    assert in_percent(0.5) == "50.0 %"
    assert in_percent(-1.096) == "nothing (worse than the mean)"
    assert from_to([0.25, None, 0.5]) == "25.0 % to 50.0 %"
    assert from_to([-1.096, 0.949]) == "between nothing (worse than the mean) and 94.9 %"
    assert from_to([-2.0, -1.0]) == "nothing (worse than the mean)"
    assert from_to([None]) == "no share that is known"


def test_words_and_summary_of_few_tokens(few):
    assert few.headline() == (
        "Averaged over blocks and without sinks, linear maps explain 37.5 % of updates (adjusted); block by block they "
        "explain 62.5 % to 87.5 % of outputs."
    )
    words = " ".join(few.words())
    assert "A linear map explains 62.5 % to 87.5 % of the variation of y" in words
    assert "explains 50.0 % at block 1, the most linear one, and 25.0 % at block 0" in words
    assert WHY_ADJUSTED in words
    assert "percentage points" not in words
    assert "575" not in words
    assert "nothing (worse than the mean) of updates" in enough(few).headline()


def test_the_figure_of_few_tokens(few):
    [chart] = few.charts()
    _, update = chart.panels
    lines = {line.label: line for line in update.lines}
    assert lines["adjusted"].y == (0.25, 0.5)
    assert lines["adjusted"].low == ()
    assert lines["in sample"].y == (0.9, 0.9)
    assert not [label for label in lines if "held out" in label]
    assert WHY_ADJUSTED in chart.caption
    [chart] = enough(few).charts()
    assert chart.panels[1].lines[0].y == (-5.75, -5.75)
    assert WHY_ADJUSTED not in chart.caption


def test_means_of_few_tokens_are_adjusted_and_not_tested(few):
    plenty = enough(few).model_copy(update={"model": few.model.model_copy(update={"id": "org/other"})})
    section, *_ = make_report(few, plenty).sections
    means, differences = section.tables
    assert [(row[-1].value, row[-1].stderr) for row in means.rows] == [(0.375, None), (-5.75, pytest.approx(0.03))]
    assert differences.rows[0][-1] is None
    assert "no p where scores are adjusted" in differences.caption
    assert "adjusted below 20 tokens a feature" in means.title
    assert section.charts[0].panels[1].lines[0].y == (0.25, 0.5)
    assert section.headline.endswith(
        "(adjusted or held out): 37.5 % in tiny-model; nothing (worse than the mean) in other."
    )
    assert any("adjusted scores stand for those of tiny-model," in warning for warning in section.warnings)
    tested, *_ = make_report(enough(few), plenty).sections
    assert tested.tables[1].rows[0][-1] == pytest.approx(1.0)


def test_no_more_tokens_than_features_give_no_score(few):
    def without(record):
        return record.model_copy(update={"adjusted": None, "in_sample": 1.0})

    bare = [
        one.model_copy(
            update={
                "linearity": without(one.linearity),
                "update_linearity": without(one.update_linearity),
                "without_sinks": one.without_sinks.model_copy(
                    update={"update_linearity": without(one.update_linearity)}
                ),
            }
        )
        for one in few.blocks
    ]
    profile = few.model_copy(update={"blocks": tuple(bare), "data": few.data.model_copy(update={"tokens": 16})})
    assert profile.headline() == "16 tokens are too few to score blocks of width 16: measure at least 320."
    assert profile.words()[0].startswith("16 tokens are too few")


def test_dynamics_of_few_tokens(few):
    made = make_dynamics([0, 10], 2)
    points = tuple(point.model_copy(update={"blocks": few.blocks}) for point in made.points)
    dynamics = made.model_copy(update={"points": points, "data": few.data})
    assert [(point.mean, point.half_width) for point in mean_curve(dynamics)] == [(0.375, None)] * 2
    [chart] = dynamics.charts()
    cells, _ = chart.panels
    assert cells.cells == ((0.25, 0.25), (0.5, 0.5))
    assert cells.color == "update linearity, adjusted"
    assert WHY_ADJUSTED in chart.caption
    assert "intervals over parts" not in chart.caption
    assert WHY_ADJUSTED in dynamics.words()
    [table] = dynamics.tables()
    assert "adjusted for the number of tokens" in table.caption


def test_what_is_logged_of_few_tokens(few):
    found = _scalars(Scored({"block": few.blocks}, 16, few.data, 8, ()))
    assert found["update_linearity/mean"] == 0.375
    assert [found[f"update_linearity/block_{index:02d}"] for index in (0, 1)] == [0.25, 0.5]
    found = _scalars(Scored({"block": few.blocks}, 8, few.data, 8, ()))
    assert found["update_linearity/block_00"] == -5.75  # of half the width the tokens are enough
