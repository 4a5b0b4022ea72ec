"""Scores against the float64 oracle, and against what theory says they must be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectilinear import BlockAccumulator, BlockMoments, score_block
from tests import oracle


def fold_rows(n, folds):
    return np.arange(n) * folds // n


def gather(x, y, folds=4, batches=3, **options):
    accumulator = BlockAccumulator(folds, **options)
    numbers = torch.from_numpy(fold_rows(len(x), folds))
    for fold in range(folds):
        inside = numbers == fold
        for part_x, part_y in zip(x[inside].chunk(batches), y[inside].chunk(batches), strict=True):
            accumulator.update(part_x, part_y, fold)
    return accumulator.freeze()


def score(x, y, folds=4, batches=3, **options):
    return score_block(gather(x, y, folds, batches, **options))


def sample(n, p, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64) * 2 + 1
    turn = torch.randn(p, p, generator=generator, dtype=torch.float64) / math.sqrt(p)
    d = 0.4 * torch.tanh(x @ turn) + 0.2 * torch.randn(n, p, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x + d).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_scores_equal_the_oracle(dtype, tolerance):
    x, y = sample(3001, 24, dtype=dtype)
    scores = score(x, y).all_tokens
    stored_x, stored_y = x.double().numpy(), y.double().numpy()
    linearity, update_linearity = oracle.in_sample(stored_x, stored_y)
    held_out = oracle.held_out(stored_x, stored_y, fold_rows(3001, 4))
    for got, expected, column in ((scores.linearity, linearity, 0), (scores.update_linearity, update_linearity, 1)):
        assert abs(got.in_sample - expected) < tolerance
        assert abs(got.adjusted - oracle.adjusted(expected, 3001, 24)) < tolerance
        assert abs(got.held_out - held_out[:, column].mean()) < tolerance
        assert abs(got.stderr - held_out[:, column].std(ddof=1) / 2) < tolerance


def test_identity_ratio_cosine_and_null():
    x, y = sample(2000, 10)
    block = score(x, y)
    scores = block.all_tokens
    x, y = x.numpy(), y.numpy()
    output, update = (np.sum((z - z.mean(0)) ** 2) for z in (y, y - x))
    assert scores.identity == pytest.approx(1 - update / output, abs=1e-12)
    assert scores.update_ratio == pytest.approx(math.sqrt(update / output), abs=1e-12)
    cosines = np.sum(x * y, 1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    assert block.cosine == pytest.approx(cosines.mean(), abs=1e-12)
    assert scores.null == pytest.approx(10 / 1999)


def test_independent_data_scores_the_null_in_sample_and_nothing_held_out():
    n, p, seeds = 4000, 200, 6
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        x, d = (torch.randn(n, p, generator=generator, dtype=torch.float64) for _ in range(2))
        found.append(score(x, x + d).all_tokens)
    mean = sum(scores.update_linearity.in_sample for scores in found) / seeds
    # R2 of each of the p independent columns is Beta(a, b) with mean p/(n-1).
    a, b = p / 2, (n - 1 - p) / 2
    deviation = math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)) / p / seeds)
    assert abs(mean - p / (n - 1)) < 4 * deviation
    assert abs(sum(scores.update_linearity.adjusted for scores in found) / seeds) < 5 * deviation
    for scores in found:
        assert scores.null == p / (n - 1)
        # A useless map costs held-out data about p / (n_train - p).
        assert -1.1 * p / (0.75 * n - p) < scores.update_linearity.held_out < 0


@pytest.mark.parametrize("spoil", [None, "duplicate", "dead", "massive"])
def test_an_exactly_linear_block_scores_one(spoil):
    x, _ = sample(1500, 32)
    if spoil == "duplicate":
        x[:, 3] = x[:, 9]
    elif spoil == "dead":
        x[:, 3] = 2.5
    elif spoil == "massive":
        x[:, 3] *= 1e4
    turn = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    scores = score(x, x @ turn + 1).all_tokens
    for linearity in (scores.linearity, scores.update_linearity):
        assert abs(linearity.in_sample - 1) < 1e-9
        assert abs(linearity.held_out - 1) < 1e-9
    assert scores.solution.factor.rank == (31 if spoil in ("duplicate", "dead") else 32)


def test_rare_massive_tokens_decide_the_score_and_are_told_apart():
    """The case of docs/footguns.md: 0.85 % of rows with one massive vector on independent data."""
    n, p = 20_000, 340
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, p, generator=generator) for _ in range(2))
    massive = torch.randperm(n, generator=generator)[: round(0.0085 * n)]
    vector = torch.randn(p, generator=generator)
    x[massive] += 100 * vector
    y[massive] += 100 * vector
    block = score(x, y)
    assert block.sinks == len(massive)
    assert block.sink_energy > 0.97
    assert block.all_tokens.linearity.in_sample > 0.98
    assert block.without_sinks.tokens == n - len(massive)
    assert block.without_sinks.linearity.in_sample == pytest.approx(p / n, abs=2e-3)
    regular = np.setdiff1d(np.arange(n), massive.numpy())
    for scores, rows in ((block.all_tokens, slice(None)), (block.without_sinks, regular)):
        expected = oracle.in_sample(x[rows].numpy(), y[rows].numpy())
        assert scores.linearity.in_sample == pytest.approx(expected[0], abs=1e-6)
        assert scores.update_linearity.in_sample == pytest.approx(expected[1], abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), batches=st.integers(1, 5))
def test_scaling_shifting_and_batching_change_nothing(seed, scale, batches):
    x, y = sample(200, 6, seed)
    shift = torch.full((6,), 3 * scale, dtype=torch.float64)
    plain = score(x, y, sink_ratio=1e9).all_tokens
    other = score(x * scale + shift, y * scale - shift, batches=batches, sink_ratio=1e9).all_tokens
    for name in ("linearity", "update_linearity"):
        for key, value in vars(getattr(plain, name)).items():
            assert getattr(getattr(other, name), key) == pytest.approx(value, abs=1e-9), (name, key)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16))
def test_turning_the_stream_changes_nothing(seed):
    """x and d seen in another basis: the same regression."""
    x, y = sample(300, 6, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    plain, turned = (score(a, b, sink_ratio=1e9).all_tokens for a, b in ((x, y), (x @ turn, y @ turn)))
    assert turned.update_linearity.in_sample == pytest.approx(plain.update_linearity.in_sample, abs=1e-10)
    assert turned.linearity.held_out == pytest.approx(plain.linearity.held_out, abs=1e-10)


def test_invertible_maps_of_the_input_leave_the_residual_alone():
    x, y = sample(500, 8)
    stretch = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 3 * torch.eye(8)
    plain = score(x, y).all_tokens.solution.residual
    # The update of the stretched input is y - x S, but the best map to y leaves what it left before.
    assert score(x @ stretch, y).all_tokens.solution.residual == pytest.approx(plain, rel=1e-9)


def test_merging_two_halves_equals_the_whole():
    x, y = sample(2000, 12)
    x[7] *= 50  # a sink, so that both kinds are merged
    whole = BlockAccumulator(4)
    parts = [BlockAccumulator(4), BlockAccumulator(4)]
    for fold in range(4):
        rows = slice(500 * fold, 500 * (fold + 1))
        whole.update(x[rows], y[rows], fold)
        for part, half in zip(parts, (rows, rows), strict=True):
            chosen = slice(half.start, half.start + 250) if part is parts[0] else slice(half.start + 250, half.stop)
            part.update(x[chosen], y[chosen], fold)
    one, two = score_block(whole.freeze()), score_block(parts[0].freeze() + parts[1].freeze())
    assert one.sinks == two.sinks == 1
    assert two.cosine == pytest.approx(one.cosine, abs=1e-12)
    for tokens in ("all_tokens", "without_sinks"):
        for name in ("linearity", "update_linearity"):
            a, b = (getattr(getattr(block, tokens), name) for block in (one, two))
            assert vars(a) == pytest.approx(vars(b), abs=1e-9)


def test_saved_and_loaded(tmp_path):
    x, y = sample(400, 5)
    x[3] *= 100
    moments = gather(x, y)
    torch.save(moments.to_tensors(), tmp_path / "block.pt")
    again = score_block(BlockMoments.from_tensors(torch.load(tmp_path / "block.pt")))
    assert again.sinks == 1
    assert vars(again.all_tokens.linearity) == vars(score_block(moments).all_tokens.linearity)


def test_too_few_tokens():
    x, y = sample(6, 8)
    scores = score(x, y, folds=1, batches=1).all_tokens
    assert scores.linearity.in_sample == pytest.approx(1)
    assert scores.linearity.adjusted is None
    assert scores.linearity.held_out is None
    assert scores.linearity.stderr is None
    assert scores.null == 1
    assert score(*sample(9, 8), folds=1, batches=1).all_tokens.linearity.adjusted is None
    assert score(*sample(10, 8), folds=1, batches=1).all_tokens.linearity.adjusted is not None


def test_a_block_that_does_nothing_and_one_that_forgets():
    x, _ = sample(300, 5)
    same = score(x, x).all_tokens
    assert same.linearity.in_sample == same.identity == 1
    assert same.update_linearity.in_sample is None
    bias = score(x, x + 0.3).all_tokens
    assert bias.update_linearity.in_sample is None
    assert bias.update_linearity.held_out is None
    constant = score(x, torch.full_like(x, 4.0)).all_tokens
    assert constant.linearity.in_sample is None
    assert constant.linearity.held_out is None
    rough = score(x.float(), torch.full_like(x, 4.0).float(), products=torch.float32).all_tokens
    assert 0.01 < rough.error <= 1  # nothing of a score of rounding is to be believed
    assert constant.update_linearity.in_sample == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "y"])
def test_activations_that_are_not_finite_are_refused(value, where):
    x, y = sample(50, 4, dtype=torch.float32)
    (x if where == "x" else y)[17, 2] = value
    with pytest.raises(ArithmeticError, match="NaN"):
        score(x, y)


def test_float32_products_are_taken_only_where_they_suffice():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    for exponent, expected in ((0, torch.float32), (-0.8, torch.float32), (-4, torch.float64)):
        x = torch.randn(4000, 16, generator=generator) * torch.logspace(0, exponent, 16) @ turn
        y = x + torch.randn(4000, 16, generator=generator)
        scores = score(x, y).all_tokens
        assert scores.moments.products is expected
        assert scores.update_linearity.in_sample == pytest.approx(oracle.in_sample(x, y)[1], abs=1e-6)


def test_folds_worse_conditioned_than_the_whole_are_known():
    """One well-conditioned fold hides that the fits without it are not."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    x = torch.randn(4000, 16, generator=generator)
    x[1000:] = x[1000:] * torch.logspace(0, -3, 16) @ turn
    scores = score(x, x + torch.randn(4000, 16, generator=generator)).all_tokens
    assert scores.moments.products is torch.float32
    worst = np.linalg.cond(np.corrcoef(x[1000:].numpy(), rowvar=False))
    assert scores.solution.factor.condition < 100 < worst
    assert scores.error > 1e-6


@pytest.mark.parametrize("tokens", [132, 140, 160, 200, 260, 400])
def test_what_rounding_does_to_maps_of_few_tokens_is_known(tokens):
    """They are worse conditioned than the map of all tokens, and far off on those held out."""
    x, y = sample(tokens, 64, dtype=torch.float32)
    x = x * torch.logspace(0, -1.5, 64)
    rough, exact = (score(x, y, 2, products=products).all_tokens for products in (torch.float32, torch.float64))
    off = abs(rough.update_linearity.held_out - exact.update_linearity.held_out)
    assert off < max(rough.error, 1e-6)


@pytest.mark.parametrize("scale", [0.1, 0.01, 1e-3, 1e-4])
def test_outputs_much_smaller_than_inputs(scale):
    """|Y|^2 is what is left when parts far larger cancel."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 64, generator=generator)
    y = scale * torch.tanh(x @ torch.randn(64, 64, generator=generator) / 4)
    scores = score(x, y).all_tokens
    expected = oracle.in_sample(x, y)
    assert scores.linearity.in_sample == pytest.approx(expected[0], abs=1e-6)
    assert scores.linearity.held_out == pytest.approx(oracle.held_out(x, y, fold_rows(8192, 4))[:, 0].mean(), abs=1e-6)
    if scale < 0.01:
        assert scores.moments.products is torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spoil", ["duplicate", "dead"])
def test_columns_that_vary_in_one_fold_only(spoil, dtype):
    """The other folds' fit must not see what is left of that fold's rounding."""
    x, y = sample(4000, 16, dtype=dtype)
    x[:3000, 3] = x[:3000, 9] if spoil == "duplicate" else 2.5
    found = score(x, y).all_tokens
    expected = oracle.held_out(x, y, fold_rows(4000, 4))
    assert found.update_linearity.held_out == pytest.approx(expected[:, 1].mean(), abs=1e-6 * abs(expected).max())


@pytest.mark.parametrize(
    ("scales", "marks"),
    [
        ((100, 100), (1, 1, 0)),
        ((1, 100), (0, 1, 1)),
        ((100, 1), (1, 0, 1)),
        ((5.5, -5.5), (0, 0, 1)),
        ((5, 5), (0, 0, 0)),
    ],
)
def test_a_sink_is_told_by_input_output_and_update(scales, marks):
    """A block may make an outlier out of an ordinary token, keep one, take it back, or turn a token around."""
    x, y = sample(2000, 12)
    x, d = x / x.norm(dim=1, keepdim=True), y - x
    d = d / d.norm(dim=1, keepdim=True)
    y = x + d
    x[40], y[40] = scales[0] * x[40], scales[1] * x[40]  # y, too, of the length of x before
    scores = score(x, y)
    assert scores.sink_counts.marks == marks
    assert scores.sinks == (1 if any(marks) else 0)
    regular = np.setdiff1d(np.arange(2000), [40] * scores.sinks)
    expected = oracle.in_sample(x[regular].numpy(), y[regular].numpy())
    found = scores.without_sinks
    assert (found.linearity.in_sample, found.update_linearity.in_sample) == pytest.approx(expected, abs=1e-9)


def test_places_of_sinks_are_counted():
    x, y = sample(1000, 8)
    x[[0, 10, 20, 35]] *= 100
    places = torch.stack([torch.arange(1000) % 10, 7 * (torch.arange(1000) % 5)], 1)
    parts = []
    for half in (slice(0, 500), slice(500, 1000)):
        accumulator = BlockAccumulator(1)
        for rows in (slice(half.start, half.start + 100), slice(half.start + 100, half.stop)):
            accumulator.update(x[rows], y[rows], 0, places[rows])
        parts.append(accumulator.freeze())
    counts = BlockMoments.from_tensors((parts[0] + parts[1]).to_tensors()).counts
    assert (counts.marks[0], counts.positions, counts.ids) == (4, {0: 3, 5: 1}, {0: 4})


def test_an_empty_reference_makes_no_sinks():
    x, y = sample(2000, 8)
    x[:256] = 0
    block = score(x, y, sink_ratio=50)
    assert block.sinks == 0
    assert block.without_sinks.tokens == 2000


def test_sinks_do_not_depend_on_how_tokens_arrive():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=generator).double() / torch.rand(4000, 1, generator=generator)
    y = x + torch.randn(4000, 8, generator=generator, dtype=torch.float64)
    found = {size: score(x, y, folds=1, batches=4000 // size).sinks for size in (1, 7, 100, 4000)}
    assert len(set(found.values())) == 1
    marks = [
        norms > 10 * np.sort(norms[:256])[127]  # the lower of the two in the middle, as torch has it
        for norms in (np.linalg.norm(states.numpy(), axis=1) for states in (x, y, y - x))
    ]
    assert found[100] == np.any(marks, axis=0).sum() > marks[0].sum() // 2 > 0
