"""Loss against cost: paired where models are compared, no frontier through noise, and names that can be read."""

from itertools import combinations

import pytest

from rectilinear.evaluation.evaluation_charts import evaluations_section
from rectilinear.evaluation.record import Differences, Measurements, TimedRecord
from rectilinear.report.point_names import Box, find_sides
from rectilinear.report.static import draw
from tests.report.test_evaluation_table import make, measurements

NAMES = ["all-attentions-as-windows", "every-second-block-affine", "last-blocks-dropped"]


def evaluations(middles=None, against=True, parameters=(1_000_000, 1_000_500, 1_200_000)):
    """Three models, the faster the better, all against a larger one; of each the middle half of tokens a second."""
    dense = measurements("org/dense", 1.5, parameters=1_234_567, tokens_per_second={"decode": 17.0})
    found = []
    for place, name in enumerate(NAMES):
        speed = TimedRecord(decode=18.0 - place, decode_middle=middles and middles[place])
        model = make().model.model_copy(update={"id": f"/tmp/{name}", "sha256": str(place) * 64})
        made = make(parameters=parameters[place])
        change = {"loss": 0.25 - place / 100, "loss_stderr": 0.01, "perplexity_ratio": None, "parameters": 0}
        change |= {"loss_interval": {"low": 0.2 - place / 100, "high": 0.3 - place / 100, "level": 0.95}}
        differences = Differences(**change, tokens_per_second={}, cache_bytes=None)
        update = {"model": model, "loss": 1.75 - place / 100, "tokens_per_second": speed}
        update |= {"against": Measurements(**dense), "differences": differences} if against else {}
        found.append(made.model_copy(update=update))
    return found


def panels(found):
    """By title, of each panel its lines by label."""
    [chart] = evaluations_section(found).charts
    return {panel.title: {line.label: line for line in panel.lines} for panel in chart.panels}, chart


def test_losses_of_models_that_are_compared_are_differences():
    found, chart = panels(evaluations())
    line = found["Against size"]["a model, 95 % interval of the difference"]
    assert line.names == ("all-attent…s-as-windows", "every-seco…block-affine", "last-blocks-dropped", "dense")
    assert line.y == pytest.approx((0.25, 0.24, 0.23, 0.0))
    assert line.low[:3] == pytest.approx((0.2, 0.19, 0.18))
    assert (line.low[3], line.high[3]) == (None, None)  # of the model that all are compared with
    assert {panel.y.label for panel in chart.panels} == {"loss above that of dense, nats a token"}
    assert "of each loss alone" not in chart.caption


def test_losses_of_models_that_are_not_compared_have_their_own_intervals():
    found, chart = panels(evaluations(against=False))
    line = found["Against size"]["a model, 95 % interval"]
    assert line.y == (1.75, 1.74, 1.73)
    assert "Intervals are of each loss alone" in chart.caption
    assert evaluations_section(evaluations(against=False)).headline == (
        "Of 3 models on one text, last-blocks-dropped has the least loss, 1.7300 nats a token, and "
        "all-attentions-as-windows the largest, 1.7500."
    )


def test_of_two_references_there_is_none():
    first, *others = evaluations()
    elsewhere = first.against.model_copy(update={"model": first.model.model_copy(update={"id": "b", "sha256": "b"})})
    found, _ = panels([first.model_copy(update={"against": elsewhere}), *others])
    assert "a model, 95 % interval" in found["Against size"]


@pytest.mark.parametrize(
    ("middles", "drawn", "said"),
    [
        (None, False, "no frontier where timings of models overlap, or were written without their spread"),
        ([(16, 20), (15, 19), (14, 18)], False, "no frontier where timings of models overlap"),
        ([(17.9, 18.1), (16.9, 17.1), (15.9, 16.1)], True, "Bars across are the middle half of the timings."),
    ],
    ids=["not known", "overlapping", "apart"],
)
def test_a_frontier_is_not_drawn_through_noise(middles, drawn, said):
    found, chart = panels(evaluations(middles, against=False))
    assert "frontier" in found["Against size"]
    speed = found["Against speed"]
    assert ("frontier" in speed) is drawn
    assert said in chart.caption
    if middles:
        slow, fast = zip(*middles, strict=True)
        assert speed["a model, 95 % interval"].left == pytest.approx([1000 / each for each in fast])
        assert speed["a model, 95 % interval"].right == pytest.approx([1000 / each for each in slow])


def test_names_are_within_their_panels_and_apart():
    _, chart = panels(evaluations([(17.9, 18.1), (16.9, 17.1), (15.9, 16.1)]))
    for width in ("single", "double"):
        figure = draw(chart, width=width)
        figure.draw_without_rendering()
        for axes in figure.axes:
            panel = axes.get_window_extent()
            found = [text.get_window_extent() for text in axes.texts]
            assert len(found) >= 3
            assert all(panel.x0 <= box.x0 and box.x1 <= panel.x1 for box in found)
            assert all(panel.y0 <= box.y0 and box.y1 <= panel.y1 for box in found)
            assert not any(one.overlaps(two) for one, two in combinations(found, 2))


def test_sides_of_points():
    panel = Box(0, 0, 100, 100)
    assert find_sides([(10, 50)], [(40, 10)], panel, 3) == [(1, 1)]
    assert find_sides([(95, 50)], [(40, 10)], panel, 3) == [(-1, 1)]  # no room on the right
    assert find_sides([(95, 95)], [(40, 10)], panel, 3) == [(-1, -1)]
    one, two = find_sides([(50, 50), (50, 50)], [(40, 10), (40, 10)], panel, 3)
    assert one != two
    [side] = find_sides([(50, 50)], [(40, 10)], panel, 3, [Box(60, 0, 61, 100)])
    assert side == (-1, 1)  # a bar stands on the right
