"""What is known of decoders that people use, which are not downloaded: they are in the folder `RECTILINEAR_REAL`."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import rectilinear
from rectilinear import Loading, Rows
from rectilinear.models.capture import capture_blocks
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.origin import Origin
from tests import oracle

pytestmark = pytest.mark.slow


def folder_of(name):
    folder = Path(os.environ.get("RECTILINEAR_REAL", "none")) / name
    if not folder.is_dir():
        pytest.skip(f"needs {name} in the folder that RECTILINEAR_REAL names")
    return folder


@pytest.fixture(scope="module")
def smollm2():
    return folder_of("smollm2-135m")


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


@pytest.mark.parametrize(("name", "bos"), [("smollm2-135m", "document"), ("gemma3-270m", "row")])
def test_scores_are_those_of_float64_arithmetic_on_the_same_states(name, bos, shared):
    """Of eight blocks, with and without sinks: in sample and adjusted; held out, which takes long, of the last."""
    folder, rows = folder_of(name), Rows(max_tokens=8_192, seq_len=512, bos=bos)
    origin = Origin(folder, Loading(device="cpu", dtype="float32"))
    packed, model = origin.rows(shared / "data/wikitext2/score.txt", rows), origin.load()
    blocks = find_blocks(model).blocks
    chosen = [round(place * (len(blocks) - 1) / 7) for place in range(8)]
    states = {index: [] for index in chosen}

    def note(index, x, y):
        if index in states:
            states[index].append((x.flatten(0, 1).clone(), y.flatten(0, 1).clone()))

    with torch.no_grad(), capture_blocks(blocks, note):
        for batch in packed.ids.split(4):
            model.base_model(batch, use_cache=False)
    profile = rectilinear.measure(model, shared / "data/wikitext2/score.txt", rows=rows, tokenizer=origin.tokenizer,
                                  batch_size=4, progress=False)  # fmt: skip
    assert profile.data.fingerprint == packed.fingerprint
    ids, folds = packed.ids.flatten().numpy(), np.repeat(np.arange(len(packed.ids)) * 4 // len(packed.ids), 512)
    for index in chosen:
        x, y = (torch.cat(parts).double().numpy() for parts in zip(*states[index], strict=True))
        norms = [np.linalg.norm(part, axis=1) for part in (x, y, y - x)]
        sinks = np.any([norm > 10 * np.sort(norm[:256])[127] for norm in norms], axis=0)
        sinks |= ids == (-1 if packed.lead is None else packed.lead)
        block = profile.blocks[index]
        assert block.without_sinks.sinks == sinks.sum()
        for found, chosen_tokens in ((block, np.ones_like(sinks)), (block.without_sinks, ~sinks)):
            part_x, part_y, part_folds = (part[chosen_tokens] for part in (x, y, folds))
            expected = oracle.in_sample(part_x, part_y)
            held_out = oracle.held_out(part_x, part_y, part_folds).mean(0) if index == chosen[-1] else None
            for place, scores in enumerate((found.linearity, found.update_linearity)):
                n, p = part_x.shape
                tolerance = 1e-6
                assert scores.in_sample == pytest.approx(expected[place], abs=tolerance)
                assert scores.adjusted == pytest.approx(oracle.adjusted(expected[place], n, p), abs=tolerance)
                assert held_out is None or scores.held_out == pytest.approx(held_out[place], abs=tolerance)


def test_pairs_through_random_columns_are_as_near_as_is_said(smollm2, shared):
    """Of all 465 pairs of depths, outliers in: what is explained of a state, or what is left of it, the smaller."""
    rows, text = Rows(max_tokens=16_384, seq_len=512), shared / "data/wikitext2/score.txt"
    options = {"rows": rows, "loading": Loading(device="cpu"), "progress": False}
    exact, through = (
        rectilinear.measure(smollm2, text, rectilinear.Measurement(pairs=True, pairs_columns=columns), **options).pairs
        for columns in (None, 64)
    )
    assert through.columns == 64
    for name in ("linearity", "update_linearity"):
        for sinks in (True, False):
            errors = []
            for one, other in zip(exact.scores, through.scores, strict=True):
                own, estimate = (getattr(pair if sinks else pair.without_sinks, name) for pair in (one, other))
                smaller = min(own.in_sample, 1 - own.in_sample)
                errors.append((estimate.in_sample - own.in_sample) / smaller)
            print(name, sinks, np.sqrt(np.mean(np.square(errors))), np.abs(errors).max())
            assert np.sqrt(np.mean(np.square(errors))) <= through.relative_error
