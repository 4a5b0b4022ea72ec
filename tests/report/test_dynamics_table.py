"""The table shows the means over blocks at each step."""

import io

from rich.console import Console

from rectilinear.report.terminal import show
from tests.report.conftest import block
from tests.report.test_dynamics_plot import make
from tests.report.test_tables import rows


def printed(dynamics):
    console = Console(file=io.StringIO(), width=140)
    show(dynamics, console)
    return console.file.getvalue()


def test_each_step_has_a_row_of_its_numbers():
    text = printed(make([0, 12000], 2, lambda step, index: 0.5 + index / 10 - step / 1e5))
    assert rows(text) == [
        "0|0.5500 ± 0.0200|(0) 0.500|(1) 0.600|0.7950 ± 0.0100|(1) 0.790|(0) 0.800",
        "12,000|0.4300 ± 0.0200|(0) 0.380|(1) 0.480|0.7950 ± 0.0100|(1) 0.790|(0) 0.800",
    ]
    assert "mine: 2 blocks of width 16 at 2 steps, 4,096 tokens of tales.txt" in text


def test_scores_that_are_not_there_are_dashes():
    dynamics = make([7], 1)
    empty = type(dynamics.points[0]).model_validate(
        {**dynamics.points[0].model_dump(), "blocks": [block(0, (None,), (0.6,), identity=None)]}
    )
    assert rows(printed(dynamics.model_copy(update={"points": (empty,)}))) == ["7|0.6000|(0) 0.600|(0) 0.600|-|-|-"]


def test_a_warning_is_printed_once_with_the_steps_it_is_of():
    dynamics = make([0, 5, 9], 1)
    told = (("few [/] tokens", "odd"), ("few [/] tokens",), ("few [/] tokens", "odd"))
    points = [point.model_copy(update={"warnings": said}) for point, said in zip(dynamics.points, told, strict=True)]
    dynamics = dynamics.model_copy(update={"points": tuple(points), "warnings": ("of the series",)})
    assert dynamics.all_warnings() == ("of the series", "few [/] tokens", "step 0, 9: odd")
    assert "warning: few [/] tokens\n" in printed(dynamics)
