"""Where states differ by no more than the rounding of their dtype there is nothing to score, and beyond it there is."""

from itertools import pairwise

import pytest
import torch

from rectilinear import BlockMoments, score_block
from tests.core.test_scores import gather

WIDTH, TOKENS, DEPTH = 24, 2048, 32
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def walk(x, seed, dtype, tremble):
    """The states of a residual stream of blocks with two sums each, rounded as a dtype does it, depth by depth."""
    generator = torch.Generator().manual_seed(seed)
    yield x
    for _ in range(DEPTH):
        for _ in range(2):
            map_ = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
            # What a matrix product in that dtype leaves, which differs from token to token as the order of sums does.
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64) * torch.finfo(dtype).eps / 2
            update = torch.tanh(x.double() @ map_) * 0.3
            x = (x.double() + update * (1 + tremble * noise)).to(dtype)
        yield x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_states_that_are_the_same_but_for_rounding_have_no_scores(dtype, seed):
    """Every token is the same: all that differs is what every block adds of rounding to that of those before."""
    token = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    states = [*walk(token.to(dtype).expand(TOKENS, WIDTH), seed, dtype, 1.0)]
    for x, y in pairwise(states):
        scores = score_block(gather(x, y)).all_tokens
        assert scores.linearity.in_sample is scores.linearity.held_out is None
        assert scores.update_linearity.in_sample is scores.update_linearity.held_out is None


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("sums", [1, 2])
def test_an_update_that_is_rounding_has_no_score_though_the_output_has(dtype, sums):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    y = x
    for _ in range(sums):  # half a unit in the last place, at most, up or down
        y = y + y * (torch.rand(x.shape, generator=generator) - 0.5).to(dtype) * torch.finfo(dtype).eps
    scores = score_block(gather(x, y)).all_tokens
    assert scores.update_linearity.in_sample is scores.update_linearity.held_out is None
    assert scores.linearity.held_out > 0.999


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_update_that_stands_out_from_rounding_is_scored(dtype):
    """Rounded once, a linear update of 4 eps is seen to be one: a twelfth of a square eps is noise, of 16 in all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]
    y = (x.double() + 4 * torch.finfo(dtype).eps * (x.double() @ turn)).to(dtype)
    assert score_block(gather(x, y)).all_tokens.update_linearity.held_out > 0.98


def test_a_tiny_update_of_small_features_beside_a_large_one_has_no_score():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, WIDTH, generator=generator)
    x[:, 0] = 0
    y = x.clone()
    y[:, 0] = 1e-12 * torch.randn(TOKENS, generator=generator)
    scores = score_block(gather(x, y)).all_tokens
    assert scores.update_linearity.held_out is None
    assert scores.linearity.held_out > 0.999


def test_the_coarsest_dtype_counts_and_is_kept(tmp_path):
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    fine, coarse = gather(x, x + 1), gather(x, (x + 1).bfloat16())
    assert (fine.eps, coarse.eps) == (torch.finfo(torch.float32).eps, torch.finfo(torch.bfloat16).eps)
    assert (fine + coarse).eps == coarse.eps
    torch.save(coarse.to_tensors(), tmp_path / "block.pt")
    assert BlockMoments.from_tensors(torch.load(tmp_path / "block.pt")).eps == coarse.eps
