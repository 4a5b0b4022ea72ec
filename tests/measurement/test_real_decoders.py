"""What is known of decoders that people use, which are not downloaded: they are in the folder `RECTILINEAR_REAL`."""

import os
from pathlib import Path

import pytest

import rectilinear
from rectilinear import Loading, Rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2():
    folder = Path(os.environ.get("RECTILINEAR_REAL", "none")) / "smollm2-135m"
    if not folder.is_dir():
        pytest.skip("needs SmolLM2-135M in smollm2-135m of the folder that RECTILINEAR_REAL names")
    return folder


def test_a_block_that_makes_an_outlier_is_told_by_its_output(smollm2, shared):
    """Block 11 of SmolLM2-135M lifts the first token of each row, whose input is ordinary."""
    rows, text = Rows(max_tokens=16_384, seq_len=512), shared / "data/wikitext2/score.txt"
    profile = rectilinear.measure(smollm2, text, rows=rows, loading=Loading(device="cpu"), progress=False)
    block = profile.blocks[11]
    without, by = block.without_sinks, block.without_sinks.sinks_by
    assert block.update_linearity.in_sample > 0.95
    assert without.update_linearity.in_sample == pytest.approx(0.568, abs=0.003)  # by float64 least squares, too
    assert (without.sinks, by.input, by.output, by.update, by.first_of_row) == (32, 0, 32, 32, 32)
    for later in profile.blocks[12:23]:
        assert later.linearity.in_sample > 0.995 > 0.97 > later.without_sinks.linearity.in_sample
