"""Figures show the profile's numbers, and can be printed."""

import struct
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from rectilinear.report.plots import plot_profile
from rectilinear.report.write import write_result
from tests.report.conftest import block

USUAL = ((0.9, 0.8, 0.01), (0.6, 0.5, 0.02))


def lines_of(axes):
    """Label -> (x, y) of what a reader of the legend finds."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle[0] if hasattr(handle, "lines") else handle for handle in handles]
    return {label: tuple(map(list, line.get_data())) for label, line in zip(labels, lines, strict=True)}


def band_of(axes):
    """The (low, high) ends of the band at each place."""
    [band] = [each for each in axes.collections if hasattr(each, "get_paths")]
    ends = {}
    for x, y in band.get_paths()[0].vertices:
        ends.setdefault(x, []).append(y)
    return [(min(ends[x]), max(ends[x])) for x in sorted(ends)]


def test_left_is_the_output_and_right_the_update(profile):
    left, right = plot_profile(profile).axes
    assert "output" in left.get_title(loc="left")
    assert "update" in right.get_title(loc="left")
    without = "held out, without sinks"
    sinks = {"sinks carry 1% or more": ([1], [0.0])}
    assert (
        lines_of(left)
        == {
            "in sample": ([0, 1, 2], [0.91, 0.92, 0.93]),
            "held out, 95 % interval": ([0, 1, 2], [0.81, 0.82, 0.83]),
            without: ([0, 1, 2], [0.21, 0.21, 0.21]),
            "identity (do nothing)": ([0, 1, 2], [0.71, 0.72, 0.73]),
            "null (independent tokens)": ([0, 1, 2], [0.0625, 0.0625, 0.0625]),
        }
        | sinks
    )
    assert (
        lines_of(right)
        == {
            "in sample": ([0, 1, 2], [0.61, 0.62, 0.13]),
            "held out, 95 % interval": ([0, 1, 2], [0.51, 0.52, -0.12]),
            without: ([0, 1, 2], [0.22, 0.22, 0.22]),
            "null (independent tokens)": ([0, 1, 2], [0.0625, 0.0625, 0.0625]),
        }
        | sinks
    )


def test_bands_are_intervals(profile):
    left, right = plot_profile(profile).axes
    np.testing.assert_allclose(band_of(left), [(0.7725, 0.8475), (0.745, 0.895), (0.68, 0.98)])
    np.testing.assert_allclose(band_of(right), [(0.435, 0.585), (0.37, 0.67), (-0.345, 0.105)])


def test_in_sample_scores_are_drawn_where_they_differ(make_profile):
    figure = plot_profile(make_profile(block(0, (0.505, 0.5, 0.01), (0.4, 0.3, 0.01))))
    assert ["in sample" in lines_of(axes) for axes in figure.axes] == [False, True]


def test_high_scores_are_told_apart_by_their_distances_from_one(make_profile):
    blocks = [block(index, (0.9995, score, 0.0001), (0.6, 0.5, 0.02)) for index, score in enumerate((0.9, 0.99, 0.999))]
    figure = plot_profile(make_profile(*blocks))
    left, right = figure.axes
    places = left.transData.transform([(0, score) for score in (0.9, 0.99, 0.999)])[:, 1]
    np.testing.assert_allclose(np.diff(places)[0], np.diff(places)[1], rtol=1e-6)
    assert [text.get_text() for text in left.get_yticklabels()] == ["0.0", "0.5", "0.9", "0.99", "0.999", "0.9999"]
    assert left.get_ylim()[1] > 0.9995
    assert right.get_yscale() == "linear"


def test_a_score_of_one_can_be_drawn_among_high_ones(make_profile, tmp_path):
    write_result(make_profile(block(0, (1.0, 1.0, 0.0), (1.0, 1.0, 0.0)), block(1, *USUAL)), tmp_path)
    assert (tmp_path / "profile.png").stat().st_size


def test_legends_are_within_their_figures(make_profile):
    blocks = [block(index, (0.99, 0.9, 0.01), (0.6, 0.5, 0.02), sinks=3) for index in range(30)]
    figure = plot_profile(make_profile(*blocks))
    figure.draw_without_rendering()
    [legend] = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_what_was_written_without_intervals_is_not_said_to_have_them(make_profile):
    older = block(0, *USUAL)
    for scores in (older, older["without_sinks"]):
        for name in ("linearity", "update_linearity"):
            del scores[name]["interval"]
    del older["without_sinks"]["sinks_by"]
    left, _ = plot_profile(make_profile(older)).axes
    assert "held out" in lines_of(left)
    assert not any("interval" in label for label in lines_of(left))


def test_the_legend_names_each_line_once(profile):
    figure = plot_profile(profile)
    [legend] = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert sorted(named) == sorted({*lines_of(figure.axes[0]), *lines_of(figure.axes[1])})


def test_names_that_legends_leave_out_are_in_them(profile, make_profile):
    [legend] = plot_profile(profile, other(make_profile, "_$hidden$")).legends
    assert "_$hidden$" in [text.get_text() for text in legend.get_texts()]


def test_without_sinks_there_is_no_line_for_them(make_profile):
    figure = plot_profile(make_profile(block(0, *USUAL)))
    for axes in figure.axes:
        assert not [label for label in lines_of(axes) if "sinks" in label]


def test_the_title_names_model_and_text(profile):
    assert plot_profile(profile).get_suptitle() == "tiny-model, 4,096 tokens of tales.txt"


def test_names_with_dollar_signs(make_profile, tmp_path):
    profile = make_profile(block(0, *USUAL), name=r"a$\b$")
    write_result(profile, tmp_path)
    assert r"a$\b$" in (tmp_path / "profile.svg").read_text()


def test_every_score_is_within_view(profile):
    for axes in plot_profile(profile).axes:
        (low, high), (first, last) = axes.get_ylim(), axes.get_xlim()
        assert low < -0.12
        assert high > 0.93
        assert first < 0
        assert last > 2


def test_the_last_block_is_within_view_when_others_are_left_out(make_profile):
    for axes in plot_profile(make_profile(block(0, *USUAL), block(5, *USUAL))).axes:
        assert axes.get_xlim()[1] > 5


def test_missing_values_leave_gaps(make_profile):
    profile = make_profile(block(0, (None,), (None,), identity=None), block(1, *USUAL))
    for axes, score, held_out in zip(plot_profile(profile).axes, (0.9, 0.6), (0.8, 0.5), strict=True):
        lines = lines_of(axes)
        np.testing.assert_equal(lines["in sample"][1], [np.nan, score])
        np.testing.assert_equal(lines["held out, 95 % interval"][1], [np.nan, held_out])


def test_png_is_wide_enough_to_print(profile, tmp_path):
    write_result(profile, tmp_path)
    content = (tmp_path / "profile.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 2000
    assert height >= 600


def test_svg_is_xml_with_text_that_can_be_searched(profile, tmp_path):
    write_result(profile, tmp_path)
    root = ElementTree.parse(tmp_path / "profile.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"block", "in sample", "identity (do nothing)", "null (independent tokens)"} <= texts


def test_svg_is_the_same_bytes_each_time(profile, tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_result(profile, tmp_path / name)
        found.append((tmp_path / name / "profile.svg").read_bytes())
    assert found[0] == found[1]


def test_plotting_leaves_the_style_of_others_alone(profile, tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_result(profile, tmp_path)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.filterwarnings("error")
def test_odd_profiles_have_figures(odd_profile, tmp_path):
    write_result(odd_profile, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["profile.json", "profile.png", "profile.svg"]


def check_ticks(profile):
    for axes in plot_profile(profile).axes:
        ticks = axes.get_xticks()
        assert all(tick == int(tick) for tick in ticks)
        assert all(a < b for a, b in pairwise(ticks))


def test_blocks_are_marked_at_whole_numbers(profile, make_profile):
    check_ticks(profile)
    check_ticks(make_profile(*(block(index, *USUAL) for index in range(40))))


def test_a_single_block_is_marked_at_a_whole_number(make_profile):
    check_ticks(make_profile(block(0, *USUAL)))


def other(make_profile, name="org/other"):
    return make_profile(block(0, (0.7, 0.6, 0.01), (0.4, 0.3, 0.02)), block(1, (0.7,), (0.35,)), name=name)


def test_several_profiles_are_told_apart_by_their_models(profile, make_profile):
    figure = plot_profile(profile, other(make_profile))
    output, _, update, without = figure.axes
    depths = [1 / 6, 0.5, 5 / 6], [0.25, 0.75]
    assert lines_of(output) == {"tiny-model": (depths[0], [0.81, 0.82, 0.83]), "other": (depths[1], [0.6, 0.7])}
    assert lines_of(update) == {"tiny-model": (depths[0], [0.51, 0.52, -0.12]), "other": (depths[1], [0.3, 0.35])}
    assert lines_of(without)["other"][1] == [0.22, 0.22]
    assert without.get_xlabel() == "depth of the block, of 1"
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["tiny-model", "other"]


def test_models_of_one_depth_are_compared_block_by_block(make_profile):
    profiles = [make_profile(block(0, *USUAL), block(1, *USUAL), name=name) for name in ("one", "two")]
    figure = plot_profile(*profiles)
    assert len(figure.axes) == 2  # there are no sinks to leave out
    assert lines_of(figure.axes[1])["two"] == ([0, 1], [0.5, 0.5])
    assert figure.axes[1].get_xlabel() == "block"


def test_one_model_on_several_texts_is_told_apart_by_these(make_profile):
    profiles = [make_profile(block(0, *USUAL), source=source) for source in ("a/one.txt", "a/two.txt")]
    assert [*lines_of(plot_profile(*profiles).axes[0])] == ["tiny-model on one.txt", "tiny-model on two.txt"]


def test_axes_of_ones_own(profile, make_profile):
    from matplotlib.figure import Figure

    mine = Figure()
    first, *others = mine.subplots(1, 3)
    assert plot_profile(profile, ax=first) is mine
    assert lines_of(first) == lines_of(plot_profile(profile).axes[1])
    assert first.get_legend() is not None
    assert plot_profile(profile, other(make_profile), ax=others) is mine
    assert [axes.get_title(loc="left") for axes in others] == [
        f"Linearity of the update, d{end}" for end in ("", ", without sinks")
    ]
    assert len(mine.axes) == 3
    assert mine.get_suptitle() == ""
