"""What a measurement needs is said before it starts, and is what it takes; what does not fit is refused, or walked."""

import gc
import re
import weakref

import pytest

import rectilinear
from rectilinear import Loading, Measurement, RequestError, find_blocks
from rectilinear.core.block_moments import BlockAccumulator, bytes_of_moments
from rectilinear.measurement.collect import RowFacts, collect_moments
from rectilinear.measurement.inputs import token_inputs
from rectilinear.measurement.needs import find_needs
from rectilinear.measurement.partners import Partners
from rectilinear.models.walk import Passes, Walk
from tests.families import WIDTH, build, token_rows

ROWS = token_rows(40)


@pytest.fixture
def free(monkeypatch):
    """A function that says how much memory is free."""
    return lambda size: monkeypatch.setattr("rectilinear.measurement.needs.available_memory", lambda: size)


@pytest.mark.parametrize("folds", [1, 4])
def test_moments_take_no_more_than_is_said(folds):
    model = build("llama")
    rows = RowFacts(Partners.by_half(len(ROWS)))
    settings = Measurement(folds=folds, sink_ratio=1.2)  # so that there are sinks in every fold
    for block in collect_moments(Passes(model, ROWS.split(8)), find_blocks(model).blocks, settings, rows=rows):
        matrices = [tensor for tensor in block.to_tensors().values() if tensor.ndim == 2 and len(tensor) == WIDTH]
        size = sum(matrix.nbytes for matrix in matrices)
        assert size == bytes_of_moments(WIDTH, folds)


def needs_of(model, measurement=Measurement(), stream=None):
    return find_needs(model, find_blocks(model), token_inputs(ROWS, model.config), measurement, stream)


def test_weights_states_and_operations_are_those_of_the_model():
    model = build("llama")
    needs = needs_of(model, stream=True)
    walk = Walk(model, find_blocks(model), ROWS.split(8))
    walk.advance(1)
    assert needs.states == sum(walk.states[batch].nbytes for batch in range(5))
    assert needs.weights == sum(parameter.nbytes for parameter in model.parameters())
    own = sum(parameter.numel() for block in find_blocks(model) for parameter in block.parameters())
    assert needs.operations == ROWS.numel() * (2 * own + 3 * 6 * WIDTH**2)
    assert needs.moments == bytes_of_moments(WIDTH, 4)
    assert needs_of(model, stream=False).moments == 3 * needs.moments


def test_it_is_said_before_it_starts():
    said = []
    rectilinear.measure(build("llama"), ROWS, progress=lambda stage, done, total: said.append(stage))
    first = said.index("rows")
    assert re.search(r"measuring: 0\.00 GB of weights, 0\.00 GB of moments, 0\.0 TFLOP", " ".join(said[:first]))


@pytest.mark.parametrize("reason", ["moments", "time"])
def test_blocks_are_gone_through_one_by_one_where_moments_are_many_or_it_takes_long(free, monkeypatch, reason):
    model, stages = build("llama"), []
    usual = rectilinear.measure(model, ROWS, progress=False)
    if reason == "moments":
        free(5 * bytes_of_moments(WIDTH, 4))  # of which those of three blocks are more than half
    else:
        monkeypatch.setattr("rectilinear.measurement.needs._LONG", 0)
    found = rectilinear.measure(model, ROWS, progress=lambda stage, done, total: stages.append(stage))
    assert "rows through block 2 of 3" in stages
    assert found.to_json() == usual.to_json()


def test_one_block_has_moments_in_memory_at_a_time(monkeypatch):
    alive = weakref.WeakSet()
    most, frozen = [], BlockAccumulator.freeze

    def freeze(self):
        made = frozen(self)
        alive.add(made)
        gc.collect()
        most.append(len(alive))
        return made

    monkeypatch.setattr(BlockAccumulator, "freeze", freeze)
    rectilinear.measure(build("llama"), ROWS, loading=Loading(stream=True), progress=False)
    assert most == [1, 1, 1]


def test_what_does_not_fit_is_refused(free):
    model = build("llama")
    free(bytes_of_moments(WIDTH, 4) - 1)
    with pytest.raises(RequestError, match=r"for moments of one block of width 24, got 0\.0 GB; try fewer `folds`"):
        rectilinear.measure(model, ROWS, progress=False)
    with pytest.raises(RequestError, match=r"for moments of 3 blocks of width 24, .*; try `stream=True`"):
        rectilinear.measure(model, ROWS, loading=Loading(stream=False), progress=False)


def test_what_fits_block_by_block_alone_is_refused_where_that_cannot_be_done(free, monkeypatch):
    monkeypatch.setattr("rectilinear.models.walk.check_resumes", lambda *args: "a reason")
    free(3 * bytes_of_moments(WIDTH, 4) - 1)
    with pytest.raises(RequestError, match=r"for moments of 3 blocks"):
        rectilinear.measure(build("llama"), ROWS, progress=False)
