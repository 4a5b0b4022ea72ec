"""What is told of maps, tokens and depths, against float64 computations from stored hidden states."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import rectilinear
from rectilinear import Explaining, Measurement, RequestError
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.lens import find_lens
from tests.families import BLOCKS, TINY, build, token_rows
from tests.measurement.test_targets import passed

ROWS, LENGTH, FOLDS, WIDTH = 40, 20, 4, 24
TRAIN = slice(0, 30)  # all folds but the last


@pytest.fixture(scope="module")
def model():
    return build("llama", torch.float64)


@pytest.fixture(scope="module")
def rows():
    return token_rows(ROWS, LENGTH)


@pytest.fixture(scope="module")
def states(model, rows):
    """``[depths, rows, tokens, width]``."""
    found = []
    blocks = find_blocks(model).blocks
    hooks = [
        block.register_forward_hook(
            lambda m, args, kw, out: found.append((args[0] if args else kw["hidden_states"], out)), with_kwargs=True
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    outputs = [out[0] if isinstance(out, tuple) else out for _, out in found]
    return np.stack([found[0][0].numpy(), *(each.numpy() for each in outputs)])


@pytest.fixture(scope="module")
def found(model, rows):
    return rectilinear.explain(model, rows, Explaining(blocks=(0, 2), depths=True, sink_ratio=1e9), progress=False)


def fitted(x, y):
    """Rows of tokens to the best map of these: weight and bias."""
    x, y = (each.reshape(-1, WIDTH) for each in (x, y))
    ones = np.hstack([x, np.ones((len(x), 1))])
    solution = np.linalg.lstsq(ones, y, rcond=None)[0]
    return solution[:-1], solution[-1]


def test_the_best_map_scores_as_in_a_profile(model, rows, found):
    profile = rectilinear.measure(model, rows, Measurement(sink_ratio=1e9), progress=False)
    for block in found.explanation.blocks:
        record, form = profile.blocks[block.index], block.forms["linear"]
        for one, other in ((form.output, record.linearity), (form.update, record.update_linearity)):
            assert one.in_sample == pytest.approx(other.in_sample, abs=1e-9)
            assert one.held_out == pytest.approx(other.held_out, abs=1e-9)
            assert one.interval.low == pytest.approx(other.interval.low, abs=1e-9)
        assert block.forms["identity"].output.in_sample == pytest.approx(record.identity, abs=1e-9)


def test_maps_can_be_saved_loaded_and_called(found, states, tmp_path):
    found.save(tmp_path)
    loaded = rectilinear.load_maps(tmp_path)
    assert [*loaded] == [0, 2]
    for index, one in loaded.items():
        weight, bias = fitted(states[index], states[index + 1] - states[index])
        np.testing.assert_allclose(one.weight.numpy(), weight, atol=1e-4)
        x = torch.from_numpy(states[index, 0])
        np.testing.assert_allclose(one(x).numpy(), states[index, 0] @ weight + bias, atol=1e-3)
    assert rectilinear.Explanation.load(tmp_path) == found.explanation
    with pytest.raises(RequestError, match="expected maps at"):
        rectilinear.load_maps(tmp_path / "none")
    save_file({"lm_head": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(RequestError, match=r"expected maps of rectilinear explain at .*, got lm_head"):
        rectilinear.load_maps(tmp_path / "other.safetensors")


def test_spectra_of_maps(found, states):
    for block in found.explanation.blocks:
        x, y = states[block.index], states[block.index + 1]
        weight, _ = fitted(x, y - x)
        np.testing.assert_allclose(block.singular_values, np.linalg.svd(weight)[1], rtol=1e-5)
        given = (x.reshape(-1, WIDTH) - x.reshape(-1, WIDTH).mean(0)) @ weight
        energies = np.linalg.svd(given)[1] ** 2
        shares = energies / energies.sum()
        assert block.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
        update = (y - x).reshape(-1, WIDTH)
        total = ((update - update.mean(0)) ** 2).sum()
        np.testing.assert_allclose([one.share for one in block.directions], energies[:8] / total, rtol=1e-6)


def test_residuals_are_of_rows_that_the_map_was_not_fitted_on(found, states, rows):
    for block in found.explanation.blocks:
        x, y = states[block.index], states[block.index + 1]
        d = y - x
        weight, bias = fitted(x[TRAIN], d[TRAIN])
        train = d[TRAIN].reshape(-1, WIDTH)
        size = ((train - train.mean(0)) ** 2).sum(-1).mean()
        residuals = ((d[30:] - x[30:] @ weight - bias) ** 2).sum(-1) / size
        np.testing.assert_allclose(block.text.residuals, residuals[0], rtol=2e-3)
        order = np.argsort(-residuals.ravel())[:10]
        expected = [(30 + row, position) for row, position in (divmod(int(place), LENGTH) for place in order)]
        assert [(one.row, one.position) for one in block.deviating] == expected
        np.testing.assert_allclose([one.residual for one in block.deviating], residuals.ravel()[order], rtol=1e-4)
        ids = rows[30:].numpy().ravel()
        token = int(block.least_linear[0].token.strip("[]"))
        assert block.least_linear[0].residual == pytest.approx(residuals.ravel()[ids == token].mean(), rel=1e-4)
        first = block.deviating[0]
        assert first.token == f"[{rows[first.row, first.position]}]"


def test_geometry_of_hidden_states(found, states):
    skdim = pytest.importorskip("skdim.id")
    for depth in found.explanation.depths:
        flat = states[depth.depth].reshape(-1, WIDTH)
        energies = np.linalg.svd(flat - flat.mean(0))[1] ** 2
        shares = energies[energies > 0] / energies.sum()
        assert depth.anisotropy == pytest.approx(shares[0], rel=1e-6)
        assert depth.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
        sample = np.unique(states[depth.depth, 30:].reshape(-1, WIDTH).astype(np.float32).astype(float), axis=0)
        assert depth.intrinsic_dimension == pytest.approx(skdim.TwoNN().fit(sample).dimension_, rel=1e-6)


def test_lenses(model, rows, found, states):
    following = rows[30:, 1:].numpy()

    def accuracy(given):
        with torch.no_grad():
            logits = model.lm_head(model.model.norm(torch.from_numpy(given[:, :-1])))
        return (logits.argmax(-1).numpy() == following).mean()

    for depth in found.explanation.depths:
        x, last = states[depth.depth], states[-1]
        assert depth.logit_lens == pytest.approx(accuracy(x[30:]))
        weight, bias = fitted(x[TRAIN], last[TRAIN])
        assert depth.jump_lens == pytest.approx(accuracy(x[30:] @ weight + bias), abs=2 / following.size)
    with torch.no_grad():
        own = model(rows[30:]).logits[:, :-1].argmax(-1).numpy()
    assert found.explanation.accuracy == pytest.approx((own == following).mean())
    assert found.explanation.depths[-1].jump_lens == found.explanation.accuracy


@pytest.mark.parametrize("family", TINY)
def test_the_end_of_every_decoder_is_found(family):
    model, rows = build(family), token_rows(2, 12)
    lens = find_lens(model, find_blocks(model), rows)
    assert lens is not None
    state = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    ways = torch.eye(WIDTH)[:3]
    step = 1e-3
    with torch.no_grad():
        numeric = [
            (lens.head(lens.norm((state + step * way)[None])) - lens.head(lens.norm((state - step * way)[None])))[0]
            / (2 * step)
            for way in ways
        ]
    torch.testing.assert_close(lens.written(ways, state), torch.stack(numeric), rtol=0.02, atol=0.02)


def test_directions_are_named_by_the_logits_that_they_change(model, rows, found, states):
    first = found.explanation.blocks[0]
    weight, _ = fitted(states[0], states[1] - states[0])
    flat = states[0].reshape(-1, WIDTH)
    way = np.linalg.svd((flat - flat.mean(0)) @ weight, full_matrices=False)[2][0]
    at = torch.from_numpy(states[-1][30:].reshape(-1, WIDTH).mean(0))
    with torch.no_grad():
        ends = [model.lm_head(model.model.norm(at + sign * 1e-4 * torch.from_numpy(way))) for sign in (1, -1)]
    order = (ends[0] - ends[1]).argsort(descending=True)
    found_ends = {(*first.directions[0].raises,), (*first.directions[0].lowers,)}
    assert found_ends == {tuple(f"[{i}]" for i in order[:8]), tuple(f"[{i}]" for i in order.flip(0)[:8])}


def test_a_model_without_a_head_has_no_words(model, rows):
    found = rectilinear.explain(model.model, rows, Explaining(blocks=(1,), depths=True), progress=False).explanation
    assert found.blocks[0].directions[0].raises == ()
    assert (found.depths[0].logit_lens, found.accuracy) == (None, None)
    assert any("no tokens are named" in warning for warning in found.warnings)
    assert [panel.title for panel in found.charts()[1].panels] == ["Anisotropy", "Dimensions of hidden states"]


@pytest.mark.parametrize(("target", "name"), [("attention", "self_attn"), ("mlp", "mlp")])
def test_parts(model, rows, target, name):
    asked = Explaining(blocks=(1,), target=target, sink_ratio=1e9)
    found = rectilinear.explain(model, rows, asked, progress=False)
    x, d = passed(model, name, rows)[1]
    weight, bias = fitted(x, d)
    np.testing.assert_allclose(found.maps[1].weight.numpy(), weight, atol=1e-4)
    [block] = found.explanation.blocks
    assert [*block.forms] == ["linear"]
    given = x.reshape(-1, WIDTH)
    share = 1 - ((d - given @ weight - bias) ** 2).sum() / ((d - d.mean(0)) ** 2).sum()
    assert block.forms["linear"].update.in_sample == pytest.approx(share, abs=1e-9)
    x, d = (each.reshape(ROWS, LENGTH, WIDTH) for each in (x, d))
    weight, bias = fitted(x[TRAIN], d[TRAIN])
    train = d[TRAIN].reshape(-1, WIDTH)
    residuals = ((d[30] - x[30] @ weight - bias) ** 2).sum(-1) / ((train - train.mean(0)) ** 2).sum(-1).mean()
    np.testing.assert_allclose(block.text.residuals, residuals, rtol=2e-3)


def test_batches_do_not_matter(model, rows, found):
    asked = Explaining(blocks=(0, 2), depths=True, sink_ratio=1e9)
    other = rectilinear.explain(model, rows, asked, batch_size=7, progress=False).explanation
    one, two = (json.loads(each.to_json()) for each in (found.explanation, other))
    assert one["depths"][1]["jump_lens"] == pytest.approx(two["depths"][1]["jump_lens"])
    assert one["blocks"][0]["deviating"][0]["position"] == two["blocks"][0]["deviating"][0]["position"]
    np.testing.assert_allclose(one["blocks"][1]["text"]["residuals"], two["blocks"][1]["text"]["residuals"], rtol=1e-3)


def test_what_cannot_be_explained(model, rows):
    for asked, given, expected in (
        (Explaining(blocks=(0, BLOCKS)), rows, "expected `blocks` from 0 to 2, got 3"),
        (Explaining(blocks=(0,)), rows[:1], "expected at least two rows"),
        (Explaining(blocks=(0,), depths=True), rows[:, :1], "expected `seq_len` of at least 2"),
        (Explaining(blocks=(0,)), [rows], "expected a text or token ids"),
    ):
        with pytest.raises(RequestError, match=expected):
            rectilinear.explain(model, given, asked, progress=False)


def test_directions_of_parts_are_named_by_what_they_change_at_the_end(model, rows, states):
    asked = Explaining(blocks=(1,), target="mlp", sink_ratio=1e9)
    found = rectilinear.explain(model, rows, asked, progress=False).explanation
    x, d = passed(model, "mlp", rows)[1]
    weight, _ = fitted(x, d)
    way = np.linalg.svd((x - x.mean(0)) @ weight, full_matrices=False)[2][0]
    at = torch.from_numpy(states[-1][30:].reshape(-1, WIDTH).mean(0))
    with torch.no_grad():
        ends = [model.lm_head(model.model.norm(at + sign * 1e-4 * torch.from_numpy(way))) for sign in (1, -1)]
    order = (ends[0] - ends[1]).argsort(descending=True)
    [block] = found.blocks
    named = {(*block.directions[0].raises,), (*block.directions[0].lowers,)}
    assert named == {tuple(f"[{i}]" for i in order[:8]), tuple(f"[{i}]" for i in order.flip(0)[:8])}


def test_sinks_are_those_of_the_fit(model, rows, states):
    """Told by the norms of the first 256 tokens, of the text, not of the rows that are looked at."""
    ratio = 1.2
    found = rectilinear.explain(model, rows, Explaining(blocks=(1,), sink_ratio=ratio), progress=False).explanation
    x, y = states[1].astype(np.float32), states[2].astype(np.float32)
    norms = np.stack([np.linalg.norm(each, axis=-1) for each in (x, y, y - x)])
    limits = ratio * np.sort(norms.reshape(3, -1)[:, :256], axis=1)[:, 127]  # torch's median, the lower of two
    sinks = (norms > limits[:, None, None]).any(0)
    [block] = found.blocks
    assert 0 < block.sinks == sinks.sum()
    marks = [value is None for value in block.text.residuals]
    assert marks == sinks[30].tolist()
    assert not any(sinks[one.row, one.position] for one in block.deviating)


def test_what_begins_rows_is_neither_looked_at_nor_predicted(tmp_path):
    from rectilinear import Rows

    asked = Explaining(blocks=(0,), depths=True, deviating=500)
    rows = Rows(max_tokens=2048, seq_len=32, bos="row")
    found = rectilinear.explain("storyteller", "stories", asked, rows=rows, progress=False).explanation
    [block] = found.blocks
    assert block.sinks >= 64
    assert block.deviating
    assert not [one for one in block.deviating if one.token == "<|endoftext|>"]
    assert not [one for one in (*block.least_linear, *block.most_linear) if one.token == "<|endoftext|>"]


def test_a_block_that_does_nothing_is_explained_as_such(rows):
    model = build("llama", torch.float64)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    found = rectilinear.explain(model, rows, Explaining(blocks=(1,), depths=True), progress=False)
    [block] = found.explanation.blocks
    assert block.forms["linear"].update.in_sample is None
    assert block.forms["identity"].output.in_sample == pytest.approx(1)
    assert (block.deviating, set(block.text.residuals)) == ((), {None})
    assert "nothing to explain" in found.explanation.words()[0]
    assert found.explanation.headline() == ""
    rectilinear.make_report(found.explanation).to_html()
    json.loads(found.explanation.to_json())


def test_tokens_give_the_text_one_after_the_other():
    from transformers import AutoTokenizer

    from rectilinear.measurement.residuals import pieces
    from rectilinear.models.load import STORYTELLER, resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve(STORYTELLER))
    text = "Once upon a naïve café, 日本"
    ids = tokenizer(text)["input_ids"]
    found = pieces(ids, tokenizer.decode)
    assert len(found) == len(ids)
    assert "".join(found) == tokenizer.decode(ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


def test_a_text_of_one_document_is_warned_about(tmp_path):
    from rectilinear import Rows

    found = rectilinear.explain(
        "storyteller",
        ["Once upon a time. " * 400],
        Explaining(blocks=(0,)),
        rows=Rows(max_tokens=1000, seq_len=50),
        progress=False,
    )
    assert any("one document" in warning for warning in found.explanation.warnings)


def test_attention_sinks_are_neither_fitted_nor_listed(rows):
    model = build("llama", torch.float64)
    with torch.no_grad():
        model.get_input_embeddings().weight[5] *= 100
    given = rows.clone()
    given[::2, 0] = 5
    [block] = rectilinear.explain(model, given, Explaining(blocks=(0,)), progress=False).explanation.blocks
    assert block.sinks >= ROWS // 2
    assert all(one.token != "[5]" for one in block.deviating)
    assert all(one.token != "[5]" for one in block.least_linear)


def test_it_is_shown(found):
    explanation = found.explanation
    words = " ".join(explanation.words())
    assert f"{100 * explanation.blocks[0].forms['linear'].update.held_out:.1f} %" in words
    assert explanation.texts()[0].values == explanation.blocks[0].text.residuals
    page = rectilinear.make_report(explanation).to_html()
    assert page.count('<span style="--mark') + page.count('<span title="') == 2 * LENGTH
    assert [chart.name for chart in explanation.charts()] == ["maps", "depths"]
    assert "deviate most" in str(explanation)
