"""Results show themselves where they are looked at: as text, as HTML in a notebook, as a data frame."""

from xml.etree import ElementTree

import pytest

from rectilinear.tables import Column, Estimate, Table
from tests.report.conftest import block
from tests.report.test_dynamics_plot import make

USUAL = ((0.9, 0.8, 0.01), (0.6, 0.5, 0.02))


@pytest.fixture(params=["profile", "dynamics"])
def result(request, make_profile):
    """Results of each kind whose texts would be markup if they were not escaped."""
    name, warning = "<b>&[i]", "few <i>tokens</i> & [bold]"
    if request.param == "profile":
        return make_profile(block(0, *USUAL), block(1, *USUAL), name=name, warnings=(warning,))
    return make([0, 12000], 2, name=name).model_copy(update={"warnings": (warning,)})


def parse(html):
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_as_text_it_is_its_table_with_title_caption_and_warnings(result):
    lines = repr(result).splitlines()
    assert lines[0].startswith("<b>&[i]: 2 blocks of width 16")
    assert lines[-1] == "warning: few <i>tokens</i> & [bold]"
    assert "0.5000 ± 0.0200" in repr(result)
    assert str(result) == repr(result)
    body = lines[1 : 1 + 3]
    assert len({len(line) for line in body}) == 1  # in columns


def test_in_a_notebook_it_is_a_table_and_all_texts_are_texts(result):
    root = parse(result._repr_html_())
    assert {element.tag for element in root.iter()} <= {"div", "p", "table", "thead", "tbody", "tr", "th", "td"}
    said = ["".join(element.itertext()) for element in root.iter("p")]
    assert said[0].startswith("<b>&[i]: 2 blocks of width 16")
    assert said[-1] == "warning: few <i>tokens</i> & [bold]"
    [table] = result.tables()
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert rows[0] == [" ".join(column.name.split()) for column in table.columns]
    assert rows[1:] == [[*texts] for texts in table.texts()]


def test_as_a_data_frame_it_has_numbers_and_their_errors(result):
    frame = result.to_frame()
    assert len(frame) == 2
    if "block" in frame:
        assert frame["held out"].tolist() == [0.8, 0.8]
        assert frame["held out stderr"].tolist() == [0.01, 0.01]
        assert frame["held out'"].tolist() == [0.5, 0.5]  # of the update
        assert frame["null"].tolist() == [0.0625, 0.0625]
    else:
        assert frame["step"].tolist() == [0, 12000]
        assert frame["update linearity"].tolist() == [0.5, 0.5]
        assert frame["update linearity stderr"].tolist() == [0.02, 0.02]


def test_cells_that_are_not_there():
    table = Table.of([Column("a", ".2f"), "b"], [[None, "x"], [Estimate(1.234), None]])
    assert str(table).split() == ["a", "b", "-", "x", "1.23", "-"]
    assert table.to_frame()["a stderr"].isna().all()


def test_a_table_without_rows_is_its_heading():
    assert str(Table.of(["a", "b"], [], title="nothing")).splitlines() == ["nothing", "a  b"]
