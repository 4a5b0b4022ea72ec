"""Pooled states are means and last tokens of the states that a model gives one text at a time."""

import copy

import pytest
import torch

from rectilinear import JobError
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.pooled import pool_states
from tests.families import build


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_they_are_those_of_single_texts(family, pooling):
    model = build(family)
    rng = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 50, (length,), generator=rng) for length in (9, 2, 5, 7, 1, 3)]
    found = pool_states(model, find_blocks(model), texts, 3, pooling)
    for text, pooled in zip(texts, found, strict=True):
        with torch.no_grad():
            states = model(text[None], output_hidden_states=True).hidden_states
        # The last of these is after the final norm, which pooled states are not.
        own = [state[0].mean(0) if pooling == "mean" else state[0, -1] for state in states[:-1]]
        torch.testing.assert_close(pooled[: len(own)], torch.stack(own), rtol=1e-4, atol=1e-5)
    assert found.shape == (6, len(find_blocks(model)) + 1, own[0].shape[-1])
    assert found.dtype == torch.float32


def test_they_are_in_order_whatever_the_batch():
    model = build("llama")
    texts = [torch.tensor([5, 6, 7, 8]), torch.tensor([9]), torch.tensor([3, 4])]
    one, all_of_them = (pool_states(model, find_blocks(model), texts, size) for size in (1, 8))
    torch.testing.assert_close(one, all_of_them, rtol=1e-4, atol=1e-5)


def test_states_that_are_not_finite_have_a_depth():
    model = copy.deepcopy(build("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(JobError, match="got others at depth 2"):
        pool_states(model, find_blocks(model), [torch.tensor([5, 6])], 1)
