"""Decoders that transformers does not have, as the examples build them: measured as stored activations say."""

import runpy
from pathlib import Path

import pytest
import torch

import rectilinear
from tests import oracle
from tests.activations import stored

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name, built):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return runpy.run_path(str(EXAMPLES / f"{name}.py"))[built]().eval()


@pytest.mark.parametrize(
    ("name", "built", "stack", "length", "keep"),
    [
        ("measure_nanogpt", "GPT", lambda model: model.transformer["h"], 60, slice(None)),
        # A sequence of 24 segments, each after four tokens of memory.
        ("measure_recurrent_memory", "RecurrentMemory", lambda model: model.blocks, 24 * 16, slice(4, None)),
    ],
)
def test_scores_are_those_of_stored_activations(name, built, stack, length, keep):
    model = example(name, built)
    rows = torch.randint(100, (6, length), generator=torch.Generator().manual_seed(1))
    profile = rectilinear.measure(model, rows, rectilinear.Measurement(folds=2), progress=False)
    assert profile.data.tokens == rows.numel()
    expected = stored(stack(model), model, rows[:, None], lambda hidden: hidden[0, keep])
    for block, (x, y) in zip(profile.blocks, expected, strict=True):
        found = block.linearity.in_sample, block.update_linearity.in_sample
        assert found == pytest.approx(oracle.in_sample(x, y), abs=1e-6)
