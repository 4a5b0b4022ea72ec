"""The figure shows the numbers of the series, and can be read for few and many points and blocks."""

import struct
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from rectilinear.measurement.dynamics import Dynamics
from rectilinear.report.plots import plot_dynamics
from rectilinear.report.write import write_result
from tests.report.conftest import block

DOUBLING = [0, *(2**power for power in range(10)), 1000, 3000, 143000]


def make(steps, blocks, update=lambda step, index: 0.5, error=0.02, name="runs/mine"):
    points = [
        {
            "step": step,
            "source": "x",
            "revision": None,
            "sha256": None,
            "blocks": [
                block(index, (0.9, 0.8 - index / 100, 0.01), (0.99, update(step, index), error))
                for index in range(blocks)
            ],
            "warnings": [],
        }
        for step in steps
    ]
    digest = "0" * 64
    shape = {"num_blocks": blocks, "width": 16, "parameters": 1000}
    software = {"rectilinear": "0", "torch": "2", "transformers": "5", "device": "cpu", "dtype": "float32"}
    return Dynamics.model_validate(
        {
            "model": {"id": name, "architecture": "LlamaForCausalLM", **shape},
            "data": {"source": "a/tales.txt", "fingerprint": digest, "tokens": 4096, "rows": 128, "seq_len": 32},
            "settings": {},
            "environment": software,
            "points": points,
            "warnings": [],
        }
    )


def axes_of(dynamics):
    """The heat map, the means and the colour bar, drawn."""
    figure = plot_dynamics(dynamics)
    figure.draw_without_rendering()
    return figure.axes


def test_the_map_shows_each_block_at_each_step():
    above, _, bar = axes_of(make([0, 10, 500], 2, lambda step, index: 0.4 + step / 1000 - index / 10))
    [mesh] = above.collections
    np.testing.assert_allclose(np.asarray(mesh.get_array()), [[0.4, 0.41, 0.9], [0.3, 0.31, 0.8]])
    assert mesh.get_clim() == pytest.approx((0.3, 0.9))
    assert bar.get_ylabel() == "update linearity, held out"
    assert above.get_ylabel() == "block"


def test_the_curves_show_the_means_and_their_intervals():
    _, below, _ = axes_of(make([0, 10, 500], 2, lambda step, index: 0.4 + step / 1000 - index / 10))
    found = {}
    for container in below.containers:
        line, _, [bars] = container.lines
        found[container.get_label()] = (
            line.get_ydata().astype(float),
            np.array([s[:, 1] for s in bars.get_segments()]),
        )
    assert found.keys() == {"output, y = x + d", "update, d"}
    means, bars = found["update, d"]
    np.testing.assert_allclose(means, [0.35, 0.36, 0.85])
    np.testing.assert_allclose(bars, [[0.29, 0.41], [0.3, 0.42], [0.79, 0.91]])
    np.testing.assert_allclose(found["output, y = x + d"][0], [0.795] * 3)


def test_bands_reach_from_the_least_to_the_most_linear_block():
    _, below, _ = axes_of(make([0, 10], 3, lambda step, index: 0.2 + index / 10))
    bands = [
        kind for kind in below.collections if type(kind).__name__ in ("PolyCollection", "FillBetweenPolyCollection")
    ]
    reach = [(band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()) for band in bands]
    assert reach == [pytest.approx((0.78, 0.8)), pytest.approx((0.2, 0.4))]


@pytest.mark.parametrize(
    ("steps", "blocks"),
    [
        ([7], 1),
        ([0, 500, 1000], 5),
        (DOUBLING, 32),
        (range(0, 15000, 250), 32),
        (range(0, 6 * 10**7, 10**6), 5),
        (range(300), 100),
    ],
    ids=["one", "three", "doubling", "sixty", "millions", "hundreds"],
)
def test_labels_do_not_overlap(steps, blocks):
    above, below, _ = axes_of(make(steps, blocks))
    for axis, start, stop in ((below.xaxis, "x0", "x1"), (above.yaxis, "y0", "y1")):
        labels = [label for label in axis.get_ticklabels() if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: getattr(box, start))
        assert boxes
        assert all(getattr(one, stop) < getattr(two, start) for one, two in pairwise(boxes))
    assert below.get_xticklabels()[-1].get_text() == f"{steps[-1]:,}"
    ticks = [tick for tick in above.get_yticks() if -0.5 < tick < blocks - 0.5]
    assert all(tick == int(tick) for tick in ticks)


def test_uneven_steps_are_said_to_be_not_to_scale():
    assert axes_of(make([0, 5, 10], 2))[1].get_xlabel() == "training step"
    assert axes_of(make(DOUBLING, 2))[1].get_xlabel() == "training step (a column a point, not to scale)"


def test_scores_far_below_zero_do_not_hide_the_others():
    above, below, bar = axes_of(make([0, 10], 2, lambda step, index: -50.0 if step else 0.5))
    assert above.collections[0].get_clim() == pytest.approx((-0.3, 0.5))
    assert below.get_ylim() == pytest.approx((-0.3, 1.02))
    assert bar.get_ylim()[0] == pytest.approx(-0.3)


def test_small_differences_are_not_made_large():
    above, *_ = axes_of(make([0, 10], 2, lambda step, index: 0.71 + step / 1e4))
    low, high = above.collections[0].get_clim()
    assert high - low == pytest.approx(0.2)
    assert low <= 0.71 < high


@pytest.mark.filterwarnings("error")
def test_blocks_without_scores_are_hatched(tmp_path):
    whole = make([0, 10], 3, error=None)
    first, second = whole.points
    missing = second.model_copy(update={"blocks": second.blocks[:2]})
    dynamics = whole.model_copy(update={"points": (first, missing)})
    above, *_ = axes_of(dynamics)
    assert np.ma.getmaskarray(above.collections[0].get_array()).tolist() == [[False] * 2, [False] * 2, [False, True]]
    assert "hatched: no score" in above.get_title(loc="left")
    assert "hatched" not in axes_of(whole)[0].get_title(loc="left")
    write_result(dynamics, tmp_path)
    empty = second.model_copy(update={"blocks": ()})
    write_result(whole.model_copy(update={"points": (empty,)}), tmp_path)


def test_in_sample_scores_are_not_called_held_out():
    dynamics = make([0], 1, lambda step, index: None)
    above, below, bar = axes_of(dynamics)
    assert (bar.get_ylabel(), below.get_ylabel()) == ("update linearity", "share of variance")
    assert above.collections[0].get_array().item() == 0.99


def test_files_can_be_printed_searched_and_are_the_same_each_time(tmp_path):
    dynamics = make([0, 10, 500], 3, name=r"a$\b$")
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_result(dynamics, tmp_path / name)
        found.append((tmp_path / name / "dynamics.svg").read_bytes())
    assert found[0] == found[1]
    content = (tmp_path / "one" / "dynamics.png").read_bytes()
    assert struct.unpack(">I", content[16:20])[0] >= 2000
    root = ElementTree.fromstring(found[0])
    texts = {"".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"block", "training step (a column a point, not to scale)", r"a$\b$, 4,096 tokens of tales.txt"} <= texts


def test_plotting_leaves_the_style_of_others_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_dynamics(make([0, 10], 2))
    assert dict(matplotlib.rcParams) == before


def test_several_trainings_share_their_steps():
    one = make([0, 10, 500], 2, lambda step, index: 0.4 + step / 1000, name="runs/one")
    two = make([0, 250, 500], 2, lambda step, index: 0.6 - step / 1000, name="runs/two")
    [axes] = plot_dynamics(one, two).axes
    found = {}
    for container in axes.containers:
        line = container.lines[0]
        found[container.get_label()] = [*map(round, line.get_xdata())], [*line.get_ydata()]
    assert found == {
        "one": ([0, 1, 3], pytest.approx([0.4, 0.41, 0.9])),
        "two": ([0, 2, 3], pytest.approx([0.6, 0.35, 0.1])),
    }
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "10", "250", "500"]
    assert axes.get_ylabel() == "share of variance, held out"


def test_axes_of_ones_own():
    from matplotlib.figure import Figure

    mine = Figure()
    above, below = mine.subplots(2, 1)
    dynamics = make([0, 10], 2)
    assert plot_dynamics(dynamics, ax=(above, below)) is mine
    assert (len(above.collections), len(below.containers)) == (1, 2)
    [alone] = (another := Figure()).subplots(1, 1, squeeze=False).flat
    assert plot_dynamics(dynamics, ax=alone) is another
    assert (alone.get_ylabel(), len(another.axes)) == ("share of variance, held out", 1)
