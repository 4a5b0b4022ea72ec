"""Every depth with every later one, against singular vectors of stored states in float64."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rectilinear
from rectilinear import JobError, Loading, Measurement, RequestError, Rows
from rectilinear.core.depth_sketches import projection, relative_error
from rectilinear.measurement.pairs import measure_pairs
from rectilinear.measurement.pairs_needs import PairsNeeds
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.walk import Passes, Walk
from rectilinear.report.plots import plot_pairs
from tests import oracle
from tests.families import build, token_rows

PAIRS = Measurement(pairs=True)
WIDTH = build("llama").config.hidden_size
EXACT = PairsNeeds(depths=4, moments=0, columns=None, on_disk=False)


def states_of(model, rows):
    """``[depths, tokens, width]`` float64: what comes into the first block, and what comes out of each."""
    found = []
    blocks = find_blocks(model).blocks
    hooks = [blocks[0].register_forward_pre_hook(lambda _, args: found.append(args[0]))]
    hooks += [
        block.register_forward_hook(
            lambda _, args, output: found.append(output if torch.is_tensor(output) else output[0])
        )
        for block in blocks
    ]
    with torch.no_grad():
        for batch in rows.split(16):
            model(batch)
    for hook in hooks:
        hook.remove()
    depths = len(blocks) + 1
    return np.stack([
        np.concatenate([state.flatten(0, 1).double().numpy() for state in found[depth::depths]])
        for depth in range(depths)
    ])  # fmt: skip


def sinks_of(states, ratio=10.0):
    norms = np.linalg.norm(states, axis=2)
    return (norms > ratio * np.median(norms[:, :256], axis=1, keepdims=True)).any(0)


def check(pairs, states, tolerance):
    depths, tokens, width = states.shape
    sinks = sinks_of(states)
    assert (pairs.depths, pairs.tokens, pairs.sinks) == (depths, tokens, sinks.sum())
    assert [(pair.first, pair.last) for pair in pairs.scores] == [
        (first, last) for first in range(depths) for last in range(first + 1, depths)
    ]
    for pair in pairs.scores:
        for found, part in ((pair, states), (pair.without_sinks, states[:, ~sinks])):
            expected = oracle.in_sample(part[pair.first], part[pair.last])
            for score, value in zip((found.linearity, found.update_linearity), expected, strict=True):
                assert score.in_sample == pytest.approx(value, abs=tolerance)
                adjusted = oracle.adjusted(value, part.shape[1], width)
                assert score.adjusted == pytest.approx(adjusted, abs=10 * tolerance)


@pytest.mark.parametrize("sizes", [24, 5])
def test_pairs_equal_singular_vectors(sizes):
    model, rows = build("llama", torch.float64), token_rows()
    with torch.no_grad():  # rows that begin with token 3 have massive vectors from block 0 on
        model.get_input_embeddings().weight[3] *= 200
        rows[2::5, 4] = 3
    profile = rectilinear.measure(model, [*rows.split(sizes)], PAIRS, progress=False)
    assert profile.pairs.sinks > 0
    check(profile.pairs, states_of(model, rows), 1e-9)


def test_a_batch_of_padding_alone_changes_nothing():
    model, rows = build("llama", torch.float64), token_rows()
    with torch.no_grad():
        model.get_input_embeddings().weight[3] *= 200
        rows[2::5, 4] = 3
    masks = [torch.zeros_like(rows[:2]), torch.ones_like(rows)]
    batches = [{"input_ids": ids, "attention_mask": mask} for ids, mask in zip((rows[:2], rows), masks, strict=True)]
    arguments = [(Passes(model, part), find_blocks(model), Measurement(), EXACT) for part in (batches[1:], batches)]
    plain, padded = (measure_pairs(*each) for each in arguments)
    assert padded.sinks == plain.sinks > 0
    assert padded == plain


def test_blocks_that_run_again_have_no_pairs():
    model, rows = build("llama"), token_rows()
    blocks = model.model.layers
    blocks[2].forward = lambda *args, **options: blocks[0](*args, **options)
    with pytest.raises(JobError, match="blocks that run once in a pass, got block 0, which runs again"):
        measure_pairs(Passes(model, [rows]), find_blocks(model), Measurement(), EXACT)


@pytest.mark.slow
def test_pairs_of_a_trained_model_equal_singular_vectors(shared):
    folder, text = shared / "models/stories260K", shared / "data/tinystories/valid.txt"
    profile = rectilinear.measure(
        folder, text, PAIRS, rows=Rows(max_tokens=8192, seq_len=256), loading=Loading(device="cpu"), progress=False
    )
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = rectilinear.models.origin.Origin(folder).rows(text, Rows(max_tokens=8192, seq_len=256)).ids
    check(profile.pairs, states_of(model, tokens), 1e-6)


def test_neighbouring_depths_are_the_profile():
    model, rows = build("llama", torch.float64), token_rows()
    profile = rectilinear.measure(model, [rows], PAIRS, progress=False)
    for block in profile.blocks:
        [pair] = [pair for pair in profile.pairs.scores if (pair.first, pair.last) == (block.index, block.index + 1)]
        assert pair.linearity.in_sample == pytest.approx(block.linearity.in_sample, abs=1e-9)
        assert pair.update_linearity.adjusted == pytest.approx(block.update_linearity.adjusted, abs=1e-9)
        assert pair.identity == pytest.approx(block.identity, abs=1e-9)


def test_a_figure_and_files(tmp_path):
    from rectilinear.report.write import write_result

    model, rows = build("llama", torch.float64), token_rows()
    profile = rectilinear.measure(model, [rows], PAIRS, progress=False)
    names = write_result(profile, tmp_path)
    assert names == ["profile.json", "profile.png", "profile.svg", "pairs.png", "pairs.svg"]
    assert rectilinear.Profile.load(tmp_path) == profile
    image = plot_pairs(profile).axes[0].collections[0].get_array()
    assert image.shape == (4, 4)
    assert image[2, 1] == pytest.approx(
        (profile.pairs.scores[3].without_sinks or profile.pairs.scores[3]).linearity.adjusted
    )
    assert np.ma.getmaskarray(np.ma.masked_invalid(image))[np.triu_indices(4)].all()
    with pytest.raises(ValueError, match="measured with pairs=True"):
        plot_pairs(rectilinear.measure(model, [rows], progress=False))


def test_what_cannot_have_pairs(monkeypatch):
    model = build("llama")
    with pytest.raises(RequestError, match="no `pairs` with `convention=paper`"):
        Measurement(pairs=True, convention="paper")
    with pytest.raises(RequestError, match="expected no `pairs` for dynamics"):
        rectilinear.dynamics(["storyteller"], "stories", PAIRS)
    monkeypatch.setattr("rectilinear.measurement.pairs_needs.available_memory", lambda: 1000)
    with pytest.raises(RequestError, match=r"expected memory for 6 pairs of depths, 0.0 GB .* try without `pairs`"):
        rectilinear.measure(model, [token_rows()], PAIRS, progress=False)


def test_states_that_are_not_finite():
    model, rows = build("llama"), token_rows()
    stack = find_blocks(model)
    with torch.no_grad():
        stack.blocks[1].mlp.down_proj.weight.fill_(float("inf"))
    with pytest.raises(JobError, match="pairs of depths: activations are NaN, infinite"):
        measure_pairs(Passes(model, [rows]), stack, Measurement(), EXACT)


def test_the_table_has_medians_over_ways_of_one_length(tmp_path):
    settings = Measurement(pairs=True, sink_ratio=1.5)
    profile = rectilinear.measure(build("llama"), token_rows(60), settings, progress=False)
    assert 0 < profile.pairs.sinks < profile.pairs.tokens
    table = profile.tables()[-1]
    assert [row[:2] for row in table.rows] == [("1", 3), ("2", 2), ("3", 1)]
    pairs = {(pair.first, pair.last): pair.without_sinks for pair in profile.pairs.scores}
    assert table.rows[1][2] == pytest.approx((pairs[0, 2].linearity.adjusted + pairs[1, 3].linearity.adjusted) / 2)
    assert table.rows[2][4] == pairs[0, 3].update_linearity.adjusted
    assert table.rows[0][3] == sorted(pairs[first, first + 1].identity for first in range(3))[1]


def sketched(columns, on_disk=False):
    return PairsNeeds(depths=4, moments=0, columns=columns, on_disk=on_disk)


def pairs_of(model, batches, needs):
    """Pairs as a pass scores them, or along a walk where weights are on disk."""
    stack = find_blocks(model)
    passes = Walk(model, stack, batches) if needs.on_disk else Passes(model, batches)
    return measure_pairs(passes, stack, Measurement(), needs)


def with_outliers():
    model, rows = build("llama", torch.float64), token_rows()
    with torch.no_grad():
        model.get_input_embeddings().weight[3] *= 200
        rows[2::5, 4] = 3
    return model, rows


def values(pairs):
    """All scores, exact and of any tokens."""
    parts = [(pair.first, pair.last, part) for pair in pairs.scores for part in (pair, pair.without_sinks)]
    names = ("linearity", "update_linearity")
    scores = [(*where, getattr(part, name)) for *where, part in parts for name in names]
    flat = [value for *_, score in scores for value in (score.in_sample, score.adjusted)]
    return np.array([*flat, *(part.identity for *_, part in parts)])


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_projection_onto_everything_gives_exact_pairs(monkeypatch, on_disk):
    """Through the identity in place of random columns all that is estimated is what it is."""
    model, rows = with_outliers()
    for module in ("core.depth_sketches", "measurement.depths", "measurement.pairs"):
        monkeypatch.setattr(f"rectilinear.{module}.projection", lambda width, columns: torch.eye(width).double())
    exact, through = pairs_of(model, rows.split(5), EXACT), pairs_of(model, rows.split(5), sketched(WIDTH, on_disk))
    assert (through.sinks, through.tokens, through.depths) == (exact.sinks, exact.tokens, exact.depths)
    assert through.sinks > 0
    np.testing.assert_allclose(values(through), values(exact), atol=1e-9)


def test_a_walk_gives_what_a_pass_gives():
    model, rows = with_outliers()
    along, in_memory = (pairs_of(model, rows.split(5), sketched(8, on_disk=disk)) for disk in (True, False))
    np.testing.assert_allclose(values(along), values(in_memory), atol=1e-9)


@pytest.mark.parametrize("columns", [16, 64])
def test_energies_through_a_projection_are_off_by_no_more_than_is_said(columns):
    """Matrices of few directions are the worst; of many the error is smaller."""
    draws = 600
    generator = torch.Generator().manual_seed(1)
    for rank in (1, 30):
        matrix = (torch.randn(50, rank, generator=generator) @ torch.randn(rank, 40, generator=generator)).double()
        found = []
        for seed in range(draws):
            found.append(float((matrix @ projection(40, columns, seed)).square().sum() / matrix.square().sum()))
        error, stated = np.std(found), relative_error(columns)
        assert abs(np.mean(found) - 1) < 4 * stated / draws**0.5
        assert error < stated * (1 + 4 / (2 * draws) ** 0.5)
        if rank == 1:
            assert error == pytest.approx(stated, rel=4 / (2 * draws) ** 0.5)


def test_pairs_that_do_not_fit_are_seen_through_as_many_columns_as_do(monkeypatch):
    model, rows = build("llama"), token_rows()
    exact = rectilinear.measure(model, [rows], PAIRS, progress=False)
    assert (exact.pairs.columns, exact.pairs.relative_error) == (None, None)
    asked = rectilinear.measure(model, [rows], Measurement(pairs=True, pairs_columns=4), progress=False)
    assert (asked.pairs.columns, asked.pairs.relative_error) == (4, pytest.approx(0.5**0.5))
    assert asked.settings["pairs_columns"] == 4
    assert "4 random columns" in str(asked.tables()[-1].caption)
    monkeypatch.setattr("rectilinear.measurement.pairs_needs.bytes_of_pairs", lambda depths, width: 10**18)
    monkeypatch.setattr("rectilinear.measurement.pairs_needs.MOST", 16)
    found = rectilinear.measure(model, [rows], PAIRS, progress=False)
    assert found.pairs.columns == 16
    with pytest.raises(RequestError, match=f"expected at most {WIDTH} `pairs_columns`"):
        rectilinear.measure(model, [rows], Measurement(pairs=True, pairs_columns=WIDTH + 1), progress=False)
    with pytest.raises(RequestError, match="expected no `pairs_columns` without `pairs`"):
        Measurement(pairs_columns=4)


def test_low_linearity_is_as_near_as_high_linearity(monkeypatch):
    """What is left of a state through some columns is compared with the state through the same columns."""
    model, rows = build("llama", torch.float64), token_rows(100)
    exact = pairs_of(model, [rows], EXACT).scores
    assert min(pair.linearity.in_sample for pair in exact) < 0.3
    errors = []
    for seed in range(20):
        for module in ("core.depth_sketches", "measurement.pairs"):
            own = lambda width, columns, seed=seed: projection(width, columns, seed)  # noqa: E731
            monkeypatch.setattr(f"rectilinear.{module}.projection", own)
        for pair, other in zip(exact, pairs_of(model, [rows], sketched(8)).scores, strict=True):
            for name in ("linearity", "update_linearity"):
                one, two = getattr(pair, name).in_sample, getattr(other, name).in_sample
                assert 0 <= two <= 1
                errors.append((two - one) / min(one, 1 - one))
    assert np.sqrt(np.mean(np.square(errors))) < relative_error(8)


def test_as_many_columns_as_states_are_wide_are_exact():
    model, rows = build("llama", torch.float64), token_rows()
    exact, through = (
        rectilinear.measure(model, [rows], Measurement(pairs=True, pairs_columns=columns), progress=False).pairs
        for columns in (None, WIDTH)
    )
    assert (through.columns, through.relative_error) == (None, None)
    np.testing.assert_allclose(values(through), values(exact), atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 1e-5])
def test_small_updates_are_as_near_along_a_walk_as_in_a_pass(factor):
    model, rows = build("llama", torch.float64), token_rows()
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[1].get_submodule(name).weight *= factor
    along, in_memory = (pairs_of(model, rows.split(5), sketched(8, on_disk=disk)) for disk in (True, False))
    np.testing.assert_allclose(values(along), values(in_memory), atol=1e-9 / factor**0.5)
