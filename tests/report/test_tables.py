"""The table shows each block's numbers."""

import io

import pytest
from rich.console import Console

from rectilinear.measurement.profile_warnings import find_warnings
from rectilinear.report.terminal import show
from tests.report.conftest import block

USUAL = ((0.9, 0.8, 0.01), (0.6, 0.5, 0.02))


def printed(profile, width=140):
    console = Console(file=io.StringIO(), width=width)
    show(profile, console)
    return console.file.getvalue()


def rows(text):
    """The body of the table, its lines written as ``cell|cell``."""
    body = [line.strip("│").split("│") for line in text.splitlines() if line[:1] == "│"]
    return ["|".join(cell.strip() for cell in cells) for cells in body]


def test_each_block_has_a_row_of_its_numbers(profile):
    assert rows(printed(profile, 160)) == [
        # block, linearity, held out, identity, update linearity, held out, null, |d|/|y|, cosine, sinks, without them
        "0|0.9100|0.8100 ± 0.0125|0.7100|0.6100|0.5100 ± 0.0250|0.0625|0.250|0.750|0|0.3100|0.3200",
        "1|0.9200|0.8200 ± 0.0250|0.7200|0.6200|0.5200 ± 0.0500|0.0625|0.250|0.750|7, 5 first (87.5%)|0.3100|0.3200",
        "2|0.9300|0.8300 ± 0.0500|0.7300|0.1300|-0.1200 ± 0.0750|0.0625|0.250|0.750|0|0.3100|0.3200",
    ]


def test_without_sinks_there_are_no_columns_for_them(make_profile):
    text = printed(make_profile(block(0, *USUAL)))
    assert "sinks" not in text
    assert rows(text) == [
        "0|0.9000|0.8000 ± 0.0100|0.5000|0.6000|0.5000 ± 0.0200|0.0625|0.250|0.750",
    ]


def test_values_that_are_not_there_are_dashes(make_profile):
    text = printed(make_profile(block(3, (None,), (None,), identity=None), block(4, (0.9,), (0.6,))))
    assert rows(text) == [
        "3|-|-|-|-|-|0.0625|-|0.750",
        "4|0.9000|-|0.5000|0.6000|-|0.0625|0.250|0.750",
    ]


def test_the_title_names_model_and_text(profile):
    assert "tiny-model: 3 blocks of width 16, 4,096 tokens of tales.txt" in " ".join(printed(profile).split())


def test_one_block_is_no_plural(make_profile):
    assert ": 1 block of width 16" in printed(make_profile(block(0, *USUAL)))


@pytest.mark.parametrize("name", ["model[final]", "model[bold]"])
def test_square_brackets_in_names_are_letters(name, make_profile):
    assert name in printed(make_profile(block(0, *USUAL), name=name))


def test_warnings_come_after_the_table_as_they_are(make_profile):
    warnings = ("rank-deficient [bold] Gram: rank 3 of 16 (block 0)", "another [/] warning")
    lines = printed(make_profile(block(0, *USUAL), warnings=warnings)).splitlines()
    assert lines[-2:] == [f"warning: {warning}" for warning in warnings]


def test_odd_profiles_have_tables(odd_profile):
    assert [int(row.split("|")[0]) for row in rows(printed(odd_profile))] == [b.index for b in odd_profile.blocks]


def test_on_a_narrow_terminal_a_table_is_split_and_no_number_is_cut(make_profile):
    profile = make_profile(block(0, (0.91, 0.81, 0.0125), (0.61, 0.51, 0.025), identity=0.71))
    console = Console(width=80, file=io.StringIO())
    show(profile, console)
    lines = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert len(lines) == 2
    assert [line[0] for line in lines] == ["0", "0"]  # which block it is
    whole = " ".join(lines[0])
    assert whole == "0 0.9100 0.8100 ± 0.0125 0.7100 0.6100 0.5100 ± 0.0250"


@pytest.mark.parametrize("folds", [2, 3, 4, 8])
def test_of_few_folds_it_is_said_how_wide_an_interval_is(profile, folds):
    data = profile.data.model_copy(update={"rows": 8, "tokens": 10**6})
    found = " ".join(find_warnings({"block": profile.blocks}, data, 2, folds))
    times = {2: "12.7", 3: "4.3"}.get(folds)
    assert ("folds is known so poorly" in found) is bool(times)
    if times:
        assert f"over {folds} folds is known so poorly that the 95 % interval is {times} times as far" in found
