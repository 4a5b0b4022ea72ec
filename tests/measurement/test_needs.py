"""What a measurement needs is said before it starts, and is what it takes; what does not fit is refused, or walked."""

import re

import pytest

import rectilinear
from rectilinear import Loading, Measurement, RequestError, find_blocks
from rectilinear.core.block_moments import bytes_of_moments
from rectilinear.measurement.collect import RowFacts, collect_moments
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


def test_weights_states_and_operations_are_those_of_the_model():
    model = build("llama")
    blocks = find_blocks(model).blocks
    needs = find_needs(model, blocks, WIDTH, ROWS.numel(), Measurement(), stream=True)
    walk = Walk(model, find_blocks(model), ROWS.split(8))
    walk.advance(1)
    assert needs.states == sum(walk.states[batch].nbytes for batch in range(5))
    assert needs.weights == sum(parameter.nbytes for parameter in model.parameters())
    own = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    assert needs.operations == ROWS.numel() * (2 * own + 3 * 6 * WIDTH**2)
    assert needs.moments == bytes_of_moments(WIDTH, 4)
    assert find_needs(model, blocks, WIDTH, 1, Measurement(), stream=False).moments == 3 * needs.moments


def test_it_is_said_before_it_starts():
    said = []
    rectilinear.measure(build("llama"), ROWS, progress=lambda stage, done, total: said.append(stage))
    first = next(place for place, stage in enumerate(said) if stage == "rows")
    assert re.search(r"measuring: 0\.00 GB of weights, 0\.00 GB of moments, 0\.0 TFLOP", " ".join(said[:first]))


def test_blocks_are_gone_through_one_by_one_where_moments_of_all_are_too_many(free):
    model, stages = build("llama"), []
    usual = rectilinear.measure(model, ROWS, progress=False)
    free(5 * bytes_of_moments(WIDTH, 4))  # of which those of three blocks are more than half
    found = rectilinear.measure(model, ROWS, progress=lambda stage, done, total: stages.append(stage))
    assert "rows through block 2 of 3" in stages
    assert found.to_json() == usual.to_json()


def test_what_does_not_fit_is_refused(free):
    model = build("llama")
    free(bytes_of_moments(WIDTH, 4) - 1)
    with pytest.raises(RequestError, match=r"for moments of one block of width 24, got 0\.0 GB; try fewer `folds`"):
        rectilinear.measure(model, ROWS, progress=False)
    with pytest.raises(RequestError, match=r"for moments of 3 blocks of width 24, .*; try `stream=True`"):
        rectilinear.measure(model, ROWS, loading=Loading(stream=False), progress=False)
