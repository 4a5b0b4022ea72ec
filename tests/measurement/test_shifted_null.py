"""The shifted null: what inputs of other rows explain of updates, against a float64 computation from stored states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rectilinear import Measurement, measure
from rectilinear.core.block_moments import BlockAccumulator, BlockMoments
from rectilinear.core.scores import score_block
from rectilinear.core.shifted import ShiftedAccumulator
from rectilinear.measurement.partners import Pairing, Partners, Schedule
from tests.conftest import VOCABULARY, build_llama

ROWS, LENGTH, WIDTH = 12, 8, 4


def by_hand(x, d, partners, apart=None):
    """``[rows, seq_len, width]`` float64 and each row's partner: the score of all pairs, or of those without sinks."""
    usual = np.ones(x.shape[:2], bool) if apart is None else ~apart
    pairs = [(row, other) for row, other in enumerate(partners) if other is not None]
    kept = [usual[row] & usual[other] for row, other in pairs]
    inputs = np.concatenate([x[other][keep] for (_, other), keep in zip(pairs, kept, strict=True)])
    updates = np.concatenate([d[row][keep] for (row, _), keep in zip(pairs, kept, strict=True)])
    inputs, updates = inputs - inputs.mean(0), updates - updates.mean(0)
    tokens = x[usual] - x[usual].mean(0)
    cross = inputs.T @ updates
    return np.trace(cross.T @ np.linalg.pinv(tokens.T @ tokens) @ cross) / (updates**2).sum()


def states(seed=0, rows=ROWS):
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, LENGTH, WIDTH)) + random.normal(size=(rows, 1, WIDTH))
    d = random.normal(size=(rows, LENGTH, WIDTH)) + random.normal(size=(rows, 1, WIDTH))
    return x, d


def gathered(x, d, partners, sizes, folds=3, bos=None):
    """Moments of rows that come in batches of some sizes, in the order that their pairing asks for."""
    accumulator = BlockAccumulator(folds, bos=bos)
    starts = np.cumsum([0, *sizes])
    schedule = Schedule.of(sizes, partners)
    pairing = Pairing(schedule.pairs)
    for batch in schedule.order:
        rows = range(starts[batch], starts[batch + 1])
        pairs = pairing.take(rows)
        places = torch.tensor([[place, 5 if place == 2 else 9] for _ in rows for place in range(LENGTH)])
        part_x, part_d = (torch.from_numpy(part[rows]).flatten(0, 1) for part in (x, d))
        pairs = pairs and replace(pairs, lengths=(LENGTH,) * len(rows))
        accumulator.update(part_x, part_x + part_d, rows[0] * folds // len(x), places, pairs)
    return accumulator.freeze()


DOCUMENTS = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7])[:, None].expand(-1, LENGTH).clone()


def test_partners_are_the_nearest_earlier_rows_without_a_document_in_common():
    documents = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [3, 3], [3, 3], [4, 4], [4, 5]])
    assert Partners.of(documents).how == "half"  # a quarter would have none
    longer = torch.cat([documents, torch.tensor([[6, 6]])])
    assert Partners.of(longer) == Partners((None, None, 0, 0, 3, 3, 5, 5, 7), "document")
    assert Partners.of(torch.zeros(5, 2, dtype=torch.int32)) == Partners((3, 4, None, 0, 1), "half")
    assert Partners.of(torch.zeros(1, 2, dtype=torch.int32)) == Partners((None,), "half")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.booleans(), st.integers(0, 5))
def test_pairs_are_complete_whatever_the_batches(sizes, by_document, seed):
    rows = sum(sizes)
    documents = np.sort(np.random.default_rng(seed).integers(0, rows, (rows, 2)).flatten()).reshape(rows, 2)
    partners = Partners.of(torch.from_numpy(documents)) if by_document else Partners.by_half(rows)
    schedule, starts, given_, kept = Schedule.of(sizes, partners), np.cumsum([0, *sizes]), [], set()
    pairing = Pairing(schedule.pairs)
    assert sorted(schedule.order) == [*range(len(sizes))]
    for batch in schedule.order:
        own = range(starts[batch], starts[batch + 1])
        if pairs := pairing.take(own):
            assert {row for pair in pairs.pairs for row in pair} <= {*kept, *own}
            given_ += pairs.pairs
            kept = pairs.inputs | pairs.updates
    wanted = [(other, row) for row, other in enumerate(partners.rows) if other is not None]
    assert sorted(given_) == sorted(wanted)
    assert not kept
    if not by_document:  # what is kept does not grow with the text
        assert all(abs(one - other) == (rows + 1) // 2 for one, other in wanted)


@pytest.mark.parametrize("sizes", [(12,), (5, 1, 6), (1,) * 12])
@pytest.mark.parametrize("partners", [Partners.of(DOCUMENTS), Partners.by_half(ROWS)], ids=["document", "half"])
def test_score_is_that_of_the_formula_however_rows_are_batched(partners, sizes):
    x, d = states()
    scores = score_block(gathered(x, d, partners, sizes)).all_tokens
    assert scores.null_shifted == pytest.approx(by_hand(x, d, partners.rows), rel=1e-9)


def test_pairs_with_sinks_are_kept_apart():
    x, d = states()
    x[3, 5] *= 1000
    x[:, 0] *= 1000  # of which each is paired with another
    d[:, 1] *= 1000
    apart = np.zeros((ROWS, LENGTH), bool)
    apart[:, :2], apart[3, 5] = True, True
    partners = Partners.by_half(ROWS)
    scores = score_block(gathered(x, d, partners, (4, 4, 4)))
    assert scores.sinks == 2 * ROWS + 1
    assert scores.all_tokens.null_shifted == pytest.approx(by_hand(x, d, partners.rows), rel=1e-9)
    assert scores.without_sinks.null_shifted == pytest.approx(by_hand(x, d, partners.rows, apart), rel=1e-9)


def test_bos_is_apart_whatever_its_norms_are():
    x, d = states()
    apart = np.zeros((ROWS, LENGTH), bool)
    apart[:, 2] = True  # which `gathered` gives the id 5
    partners = Partners.by_half(ROWS)
    scores = score_block(gathered(x, d, partners, (4, 4, 4), bos=5))
    assert (scores.sinks, scores.sink_counts.bos, scores.sink_counts.marks) == (ROWS, ROWS, (0, 0, 0))
    assert scores.without_sinks.null_shifted == pytest.approx(by_hand(x, d, partners.rows, apart), rel=1e-9)


def test_moments_merge_and_are_stored():
    x, d = states()
    whole, *parts = (
        gathered(x[rows], d[rows], Partners.by_half(len(x[rows])), [2] * (len(x[rows]) // 2))
        for rows in (slice(None), slice(0, 6), slice(6, None))
    )
    stored = BlockMoments.from_tensors(whole.to_tensors())
    assert score_block(stored).all_tokens.null_shifted == score_block(whole).all_tokens.null_shifted
    both = parts[0] + parts[1]
    within = [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]
    assert score_block(both).all_tokens.null_shifted == pytest.approx(by_hand(x, d, within), rel=1e-9)


def test_independent_tokens_reach_the_null_of_independent_tokens():
    random = np.random.default_rng(3)
    x, d = random.normal(size=(2, 400, LENGTH, WIDTH))
    scores = score_block(gathered(x, d, Partners.by_half(400), (400,))).all_tokens
    assert scores.null_shifted == pytest.approx(scores.null, rel=0.7)


def test_what_tokens_depend_on_raises_it_as_it_raises_the_score_of_unrelated_data():
    """Rows of one token repeated: as good as one token each, which p / (n - 1) does not know."""
    random = np.random.default_rng(4)
    x, d = (np.repeat(part[:, :1], LENGTH, 1) for part in random.normal(size=(2, 200, LENGTH, WIDTH)))
    scores = score_block(gathered(x, d, Partners.by_half(200), (200,))).all_tokens
    assert scores.null < 0.003
    assert scores.null_shifted == pytest.approx(WIDTH / 200, rel=0.7)
    assert scores.update_linearity.in_sample == pytest.approx(WIDTH / 200, rel=0.7)


def test_of_padded_batches_tokens_at_the_same_place_are_paired():
    model, ids = build_llama(), torch.randint(VOCABULARY, (6, 10), generator=torch.Generator().manual_seed(0))
    masks = torch.ones_like(ids)
    for row, length in enumerate((10, 7, 4, 9, 10, 2)):
        masks[row, length:] = 0
    states = []
    hooks = [
        block.register_forward_hook(lambda _, args, output: states.append((args[0], output)))
        for block in model.model.layers
    ]
    with torch.no_grad():
        model(ids, attention_mask=masks)
    for hook in hooks:
        hook.remove()
    batches = [{"input_ids": ids[rows], "attention_mask": masks[rows]} for rows in (slice(0, 4), slice(4, 6))]
    profile = measure(model, batches, progress=False)
    assert profile.settings["partners"] == "half"
    for block, (x, y) in zip(profile.blocks, states, strict=True):
        x, d, real = x.double().numpy(), (y.double() - x.double()).numpy(), masks.bool().numpy()
        pairs = [(row, other, real[row] & real[other]) for row, other in enumerate((3, 4, 5, 0, 1, 2))]
        theirs = np.concatenate([x[other][keep] for _, other, keep in pairs])
        ours = np.concatenate([d[row][keep] for row, _, keep in pairs])
        cross = (theirs - theirs.mean(0)).T @ (ours - ours.mean(0))
        tokens = x[real] - x[real].mean(0)
        expected = np.trace(cross.T @ np.linalg.pinv(tokens.T @ tokens) @ cross) / ((ours - ours.mean(0)) ** 2).sum()
        assert block.null_shifted == pytest.approx(min(expected, 1.0), rel=1e-4)


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_the_batch_size_changes_nothing_where_partners_are_half_of_all_rows_away(size):
    model, ids = build_llama(), torch.randint(VOCABULARY, (64, 16), generator=torch.Generator().manual_seed(1))
    settings_ = Measurement(sink_ratio=2.0)
    whole, found = (measure(model, [*ids.split(rows)], settings_, progress=False) for rows in (64, size))
    for one, other in zip(whole.blocks, found.blocks, strict=True):
        assert other.without_sinks.sinks == one.without_sinks.sinks > 0
        assert other.null_shifted == pytest.approx(one.null_shifted, rel=1e-5)
        assert other.without_sinks.null_shifted == pytest.approx(one.without_sinks.null_shifted, rel=1e-5)


def test_a_block_that_runs_again_has_none():
    model = build_llama()
    first, last = model.model.layers[0], model.model.layers[2]
    last.forward = lambda *args, **options: first(*args, **options)
    ids = torch.randint(VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(1))
    profile = measure(model, ids, progress=False)
    assert [block.null_shifted is None for block in profile.blocks] == [True, False, False]
    assert profile.blocks[0].without_sinks.null_shifted is None


def test_what_waits_is_kept_as_it_was_given_and_no_more_of_it_than_is_needed():
    accumulator = ShiftedAccumulator()
    x, d = torch.randn(2, 6 * LENGTH, WIDTH)
    none = torch.zeros(len(x), dtype=torch.bool)
    pairs = replace(Pairing(Schedule.of([6, 6], Partners.of(DOCUMENTS)).pairs).take(range(6)), lengths=(LENGTH,) * 6)
    accumulator.update(x.bfloat16().float(), d, none, pairs, torch.float32, torch.bfloat16)
    assert [*accumulator._inputs] == [3]  # the last row before document 3, which goes on
    assert accumulator._inputs[3].dtype is torch.bfloat16
    assert accumulator._updates == {}
