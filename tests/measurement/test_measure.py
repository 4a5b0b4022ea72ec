"""Real models in a real pass, against scores computed from the activations they would have stored."""

import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import JobError, RequestError
from rectilinear.measurement.settings import Measurement
from rectilinear.text.settings import Rows
from tests import oracle
from tests.families import TINY, VOCABULARY, build, token_rows


def hidden_states(model, batches):
    """Input and output of every block, stored: by transformers' own means, and a hook for the last output."""
    states, last = [], []
    stack = rectilinear.find_blocks(model).blocks
    handle = stack[-1].register_forward_hook(
        lambda module, args, output: last.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        for batch in batches:
            states.append(model(**batch, output_hidden_states=True, use_cache=False).hidden_states[:-1])
    handle.remove()
    layers = [torch.cat(layer) for layer in zip(*states, strict=True)]
    return [*layers, torch.cat(last)]


def flatten(profile):
    """Every number of a profile's blocks, by name."""

    def walk(prefix, value):
        if isinstance(value, dict):
            for key, part in value.items():
                yield from walk(f"{prefix}.{key}", part)
        elif isinstance(value, (int, float)):
            yield prefix, float(value)

    return {
        name: number
        for block in profile.blocks
        for name, number in walk(str(block.index), block.model_dump(exclude={"solve"}))
    }


def assert_same(one, two, tolerance, but=None):
    a, b = flatten(one), flatten(two)
    assert a.keys() == b.keys()
    assert len(a) > 20 * len(one.blocks)
    for name, value in a.items():
        assert name.endswith(f".{but}") or abs(b[name] - value) <= tolerance, name


@pytest.mark.slow
def test_every_score_of_a_trained_model_equals_the_oracle(shared):
    folder = shared / "models/stories260K"
    profile = rectilinear.measure(
        folder, shared / "data/tinystories/valid.txt", rows=Rows(max_tokens=100_000, seq_len=256)
    )
    assert profile.data.tokens == 390 * 256
    assert len(profile.blocks) == 5

    # Rows packed by hand, as the documentation says.
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (shared / "data/tinystories/valid.txt").read_text(encoding="utf-8")
    ids = [i for story in text.split("<|endoftext|>") if story.strip() for i in tokenizer(story.strip())["input_ids"]]
    rows = torch.tensor(ids[: 390 * 256]).view(390, 256)
    model = AutoModelForCausalLM.from_pretrained(folder)
    states = hidden_states(model, [{"input_ids": part} for part in rows.split(65)])
    folds = np.repeat(np.arange(390) * 4 // 390, 256)
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        x, y = (state.flatten(0, 1).double().numpy() for state in (x, y))
        expected = oracle.in_sample(x, y)
        held_out = oracle.held_out(x, y, folds)
        for got, column in ((block.linearity, 0), (block.update_linearity, 1)):
            assert abs(got.in_sample - expected[column]) <= 1e-6
            assert abs(got.adjusted - oracle.adjusted(expected[column], 390 * 256, 64)) <= 1e-6
            assert abs(got.held_out - held_out[:, column].mean()) <= 1e-6
            assert abs(got.stderr - held_out[:, column].std(ddof=1) / 2) <= 1e-6
        output, update = (((z - z.mean(0)) ** 2).sum() for z in (y, y - x))
        assert abs(block.identity - (1 - update / output)) <= 1e-6
        assert abs(block.update_ratio - (update / output) ** 0.5) <= 1e-6
        cosines = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
        assert abs(block.cosine - cosines.mean()) <= 1e-6


@pytest.mark.parametrize("family", TINY)
def test_families_against_stored_activations(family):
    model, rows = build(family), token_rows()
    profile = rectilinear.measure(model, list(rows.split(5)))
    states = hidden_states(model, [{"input_ids": rows}])
    assert profile.model.num_blocks == 3
    assert profile.model.width == 24
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        expected = oracle.in_sample(x.flatten(0, 1), y.flatten(0, 1))
        assert block.linearity.in_sample == pytest.approx(expected[0], abs=1e-6)
        assert block.update_linearity.in_sample == pytest.approx(expected[1], abs=1e-6)
        assert 0 < block.update_linearity.in_sample < 1


def test_bfloat16_and_tied_embeddings():
    model, rows = build("llama", torch.bfloat16, tie_word_embeddings=True), token_rows()
    profile = rectilinear.measure(model, [rows])
    states = hidden_states(model, [{"input_ids": rows}])
    assert profile.environment.dtype == "bfloat16"
    embedding = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embedding
    assert profile.model.parameters == sum(p.numel() for p in model.parameters())
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        expected = oracle.in_sample(x.float().flatten(0, 1), y.float().flatten(0, 1))
        assert block.update_linearity.in_sample == pytest.approx(expected[1], abs=1e-6)


class Mixer(nn.Module):
    """A module that has never heard of transformers: feature vectors in, numbered blocks inside."""

    def __init__(self, width=12):
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Linear(20, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)) for _ in range(3)
        )
        self.layers.append(nn.Linear(width, width))
        self.head = nn.Linear(width, 2)

    def forward(self, features):
        x = self.embed(features)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("shape", [(400, 20), (40, 10, 20)])
def test_a_plain_module(shape):
    model = Mixer()
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    profile = rectilinear.measure(model, features.split(7), measurement=Measurement(blocks="layers"))
    x = model.embed(features).detach()
    for block, layer in zip(profile.blocks, model.layers, strict=True):
        y = layer(x).detach()
        expected = oracle.in_sample(x.reshape(-1, 12), y.reshape(-1, 12))
        assert block.linearity.in_sample == pytest.approx(expected[0], abs=1e-6)
        x = y
    assert profile.blocks[3].linearity.in_sample == pytest.approx(1, abs=1e-6)
    assert profile.blocks[0].linearity.in_sample < 0.999


def test_batch_size_row_order_and_padding_change_nothing():
    model, rows = build("llama", torch.float64), token_rows()
    with torch.no_grad():
        # Rows that begin with token 3 have massive vectors from block 0 on.
        model.get_input_embeddings().weight[3] *= 200
        rows[2::5, 4] = 3
    whole = rectilinear.measure(model, [rows])
    assert whole.blocks[0].without_sinks.sinks > 0
    for size in (1, 3, 7):
        assert_same(whole, rectilinear.measure(model, rows.split(size)), 1e-9)

    padded = torch.nn.functional.pad(rows, (0, 9))
    mask = (torch.arange(29) < 20).long().expand(len(rows), -1)
    batches = [
        {"input_ids": ids, "attention_mask": part} for ids, part in zip(padded.split(6), mask.split(6), strict=True)
    ]
    assert_same(whole, rectilinear.measure(model, batches), 1e-9)

    # Any order within folds leaves all scores but of rows that are paired in order; any order those of all tokens.
    generator = torch.Generator().manual_seed(3)
    within = torch.cat([fold[torch.randperm(6, generator=generator)] for fold in rows.split(6)])
    assert_same(whole, rectilinear.measure(model, [within]), 1e-9, but="null_shifted")
    shuffled = rectilinear.measure(model, [rows[torch.randperm(24, generator=generator)]])
    for one, two in zip(whole.blocks, shuffled.blocks, strict=True):
        assert two.linearity.in_sample == pytest.approx(one.linearity.in_sample, abs=1e-9)
        assert two.update_linearity.adjusted == pytest.approx(one.update_linearity.adjusted, abs=1e-9)
        assert two.without_sinks.linearity.in_sample == pytest.approx(one.without_sinks.linearity.in_sample, abs=1e-9)
        assert two.cosine == pytest.approx(one.cosine, abs=1e-9)


def test_rows_of_different_lengths_count_their_own_tokens_only():
    model, rows = build("llama", torch.float64), token_rows(12)
    lengths = torch.arange(12) % 5 + 14
    mask = (torch.arange(20) < lengths[:, None]).long()
    profile = rectilinear.measure(model, [{"input_ids": rows, "attention_mask": mask}])
    assert profile.data.tokens == int(lengths.sum())
    states = hidden_states(model, [{"input_ids": rows, "attention_mask": mask}])
    folds = np.repeat(np.arange(12) * 4 // 12, lengths)
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        x, y = x[mask.bool()], y[mask.bool()]
        assert block.linearity.in_sample == pytest.approx(oracle.in_sample(x, y)[0], abs=1e-9)
        assert block.linearity.held_out == pytest.approx(oracle.held_out(x, y, folds)[:, 0].mean(), abs=1e-9)


def test_the_paper_s_convention_takes_the_normed_state_and_counts_padding():
    model, rows = build("gpt2"), token_rows()
    mask = torch.ones_like(rows)
    mask[:, 15:] = 0
    batch = {"input_ids": rows, "attention_mask": mask}
    profile = rectilinear.measure(model, [batch], measurement=Measurement(convention="paper"))
    assert profile.data.tokens == rows.numel()
    assert profile.settings["convention"] == "paper"
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        expected = oracle.in_sample(x.flatten(0, 1), y.flatten(0, 1))
        assert block.linearity.in_sample == pytest.approx(expected[0], abs=1e-6)
        assert block.update_linearity.in_sample == pytest.approx(expected[1], abs=1e-6)
    ours = rectilinear.measure(model, [batch])
    assert abs(ours.blocks[-1].linearity.in_sample - profile.blocks[-1].linearity.in_sample) > 1e-3


def test_the_model_is_left_as_it_was():
    model, rows = build("llama"), token_rows()
    model.train()
    model.model.layers[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rectilinear.measure(model, [rows])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_head_is_not_run():
    model = build("llama")

    def refuse(*_):
        raise AssertionError("logits were computed")

    model.lm_head.register_forward_pre_hook(refuse)
    rectilinear.measure(model, [token_rows()])


@pytest.mark.parametrize("rows", [2, 24])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_name_their_block(value, rows):
    model = build("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(JobError, match=r"^block 1: "):
        rectilinear.measure(model, [token_rows(rows)])


def test_memory_does_not_grow_with_the_number_of_tokens():
    """What is alive at once: one batch's activations, however many batches there are."""
    model = build("llama")
    alive, most = set(), 0

    def watch(module, args, output):
        nonlocal most
        alive.add(key := id(output))
        weakref.finalize(output, alive.discard, key)
        most = max(most, len(alive))

    for layer in model.model.layers:
        layer.register_forward_hook(watch)
    rectilinear.measure(model, token_rows(60).split(2))
    assert most <= 3


def test_a_batch_too_large_for_memory_is_halved(monkeypatch, tmp_path):
    model, sizes = build("llama"), []

    def limit(module, args, kwargs):
        sizes.append(len(args[0] if args else kwargs["input_ids"]))
        if sizes[-1] > 20:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.model.register_forward_pre_hook(limit, with_kwargs=True)
    text = tmp_path / "text.txt"
    text.write_text("word " * 4000, encoding="utf-8")

    def tokenizer(texts, **_):
        return {"input_ids": [[3 + hash(i * 7919) % 90 for i in range(4000)] for _ in texts]}

    profile = rectilinear.measure(model, text, rows=Rows(seq_len=32, max_tokens=3200), tokenizer=tokenizer)
    assert [size for size in sizes if size > 3][:3] == [64, 32, 16]  # after the few rows that things are tried on
    assert profile.settings["batch_size"] == 16
    assert profile.data.tokens == 3200


def test_too_little_data_is_warned_about():
    model = build("llama")
    assert "score is 1, unless tokens repeat" in " ".join(rectilinear.measure(model, [token_rows(4, 6)]).warnings)
    few = " ".join(rectilinear.measure(model, [token_rows(20, 20)]).warnings)
    assert "fewer than 20 x width 24" in few
    assert "measure 480 tokens" in few
    one_row = rectilinear.measure(model, [token_rows(1, 60)])
    assert "rows of text: 1, fewer than the 4 folds asked for; there are no held-out scores" in " ".join(
        one_row.warnings
    )
    assert one_row.blocks[0].linearity.held_out is None
    assert rectilinear.measure(model, [token_rows(30, 20)]).warnings == ()


@pytest.mark.parametrize("side", ["left", "right", None])
def test_where_sinks_are_is_said(side):
    """A token whose embedding is massive, at the beginning of each row, after its padding, and once elsewhere."""
    model, ids = build("llama"), token_rows(40, 16).clamp(min=4)
    with torch.no_grad():
        model.model.embed_tokens.weight[3] *= 200
    ids[:, 0], ids[5, 9] = 3, 3
    mask = torch.ones_like(ids)
    batch = {"input_ids": ids, "attention_mask": mask}
    if side == "left":
        batch = {
            "input_ids": torch.nn.functional.pad(ids, (2, 0)),
            "attention_mask": torch.nn.functional.pad(mask, (2, 0)),
        }
    elif side == "right":
        batch = {
            "input_ids": torch.nn.functional.pad(ids, (0, 2)),
            "attention_mask": torch.nn.functional.pad(mask, (0, 2)),
        }
    profile = rectilinear.measure(model, [batch], progress=False)
    without = profile.blocks[0].without_sinks
    assert (without.sinks, without.sinks_by.input, without.sinks_by.first_of_row) == (41, 41, 40)
    assert without.sinks_by.ids == {"3": 41}
    assert "41, 40 first (" in str(profile)


def test_sinks_and_deficient_inputs_are_warned_about():
    model, rows = build("llama"), token_rows(30, 20)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] *= 1000
        model.get_input_embeddings().weight[:, 5] = 0.5
        rows[1::3, 7] = 3
    warnings = " ".join(rectilinear.measure(model, [rows]).warnings)
    assert "attention sinks carry most" in warnings
    model = build("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 5] = 0.5
    assert "rank-deficient Gram matrix" in " ".join(rectilinear.measure(model, [rows]).warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 0}, "expected `folds` to be greater than 0, got 0"),
        ({"sink_ratio": 0.0}, "expected `sink_ratio` to be greater than 0, got 0.0"),
        ({"convention": "mine"}, "expected `convention` to be 'block' or 'paper', got 'mine'"),
        ({"products": "float16"}, "'auto', 'float32' or 'float64', got 'float16'; try float64"),
        ({"fold": 2}, "expected options that are there, got `fold`"),
        ({"blocks": "model.nothing"}, "model.layers"),
    ],
)
def test_requests_that_cannot_be_met(options, message):
    with pytest.raises(RequestError, match=message):
        rectilinear.measure(build("llama"), [token_rows(2)], Measurement(**options))


def test_a_batch_size_that_cannot_be():
    with pytest.raises(RequestError, match="batch size of at least 1"):
        rectilinear.measure(build("llama"), [token_rows(2)], batch_size=0)


def test_no_rows_and_no_tensors():
    for batches in ([], [torch.empty(0, 5, dtype=torch.long)]):
        with pytest.raises(RequestError, match="at least one row"):
            rectilinear.measure(build("llama"), batches)
    with pytest.raises(RequestError, match="batches of tensors"):
        rectilinear.measure(build("llama"), [{"features": 3}])


def test_a_profile_survives_its_file(tmp_path):
    profile = rectilinear.measure(build("llama"), [token_rows()])
    profile.save(tmp_path)
    assert rectilinear.Profile.load(tmp_path) == profile
    with pytest.raises(RequestError, match="no profile at"):
        rectilinear.Profile.load(tmp_path / "elsewhere")
    (tmp_path / "profile.json").write_text('{"schema": "something/2"}')
    with pytest.raises(RequestError, match="expected a rectilinear profile"):
        rectilinear.Profile.load(tmp_path)


def test_blocks_that_never_run_are_left_out_and_named():
    model = Mixer()
    idle = model.layers[1]
    model.layers[1] = nn.Identity()

    def forward(features):
        x = model.embed(features)
        for layer in (model.layers[0], model.layers[2], model.layers[3]):
            x = layer(x)
        return x

    model.layers[1], model.forward = idle, forward
    profile = rectilinear.measure(model, [torch.randn(400, 20)], measurement=Measurement(blocks="layers"))
    assert [block.index for block in profile.blocks] == [0, 2, 3]
    assert profile.model.num_blocks == 4
    assert "[1] never ran" in " ".join(profile.warnings)


def test_several_residual_streams_are_measured_as_one():
    model, x = Mixer(), torch.randn(40, 30, 2, 20)
    profile = rectilinear.measure(model, [x], measurement=Measurement(blocks="layers"))
    with torch.no_grad():
        inputs = model.embed(x)
        outputs = model.layers[0](inputs)
    expected = oracle.in_sample(*(each.flatten(0, 1).flatten(1).numpy() for each in (inputs, outputs)))
    found = profile.blocks[0]
    assert (found.linearity.in_sample, found.update_linearity.in_sample) == pytest.approx(expected, abs=1e-6)
    assert profile.data.tokens == 40 * 30


def test_data_that_proves_float32_products_wrong_are_measured_again_in_float64():
    """The first fold is well conditioned and the others are not."""
    model = Mixer()
    model.embed = nn.Identity()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    features = torch.randn(4000, 12, generator=torch.Generator().manual_seed(1))
    features[1000:] = features[1000:] * torch.logspace(0, -3, 12) @ turn
    batches = features.split(500)
    rough = rectilinear.measure(model, batches, measurement=Measurement(blocks="layers", products="float32"))
    assert rough.blocks[0].solve.condition < 100
    assert "try `products=float64`" in " ".join(rough.warnings)
    profile = rectilinear.measure(model, batches, measurement=Measurement(blocks="layers"))
    assert {block.solve.products for block in profile.blocks} == {"float64"}
    assert "try `products=float64`" not in " ".join(profile.warnings)
    y = model.layers[0](features).detach()
    expected = oracle.held_out(features, y, np.arange(4000) * 4 // 4000)[:, 1].mean()
    assert profile.blocks[0].update_linearity.held_out == pytest.approx(expected, abs=1e-6)


def test_folds_that_rows_cannot_fill_are_warned_about_and_none_may_be_asked_for():
    model = build("llama")
    assert "rows of text: 3, fewer than the 4 folds asked for; 3 folds were used" in " ".join(
        rectilinear.measure(model, [token_rows(3, 60)]).warnings
    )
    alone = rectilinear.measure(model, [token_rows(30, 20)], measurement=Measurement(folds=1))
    assert alone.warnings == ()
    assert alone.blocks[0].linearity.held_out is None


def test_sequence_before_batch_is_refused():
    model = Mixer()
    plain = model.forward
    model.forward = lambda features: plain(features.transpose(0, 1))
    with pytest.raises(JobError, match=r"block 0: expected hidden states \[rows, seq_len, width\]"):
        rectilinear.measure(model, [torch.randn(4, 28, 20)], measurement=Measurement(blocks="layers"))


def test_a_fold_of_padding_is_warned_about():
    model, rows = build("llama"), token_rows(16)
    mask = torch.ones_like(rows)
    mask[4:8] = 0
    mask[4:8, 0] = 0
    profile = rectilinear.measure(model, [{"input_ids": rows, "attention_mask": mask}])
    assert profile.blocks[0].linearity.held_out is None
    assert "there are no held-out scores" in " ".join(profile.warnings)


def test_a_large_stream_before_the_final_norm_under_the_paper_s_convention():
    """The norm makes the last output far smaller than its input: |Y|^2 is what cancellation leaves."""
    model, rows = build("llama"), token_rows(60)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 300
    profile = rectilinear.measure(model, [rows], measurement=Measurement(convention="paper"))
    with torch.no_grad():
        states = model(rows, output_hidden_states=True).hidden_states
    x, y = states[-2].flatten(0, 1), states[-1].flatten(0, 1)
    assert x.norm() > 30 * y.norm()
    assert profile.blocks[-1].linearity.in_sample == pytest.approx(oracle.in_sample(x, y)[0], abs=1e-6)


def test_a_float16_model():
    model, rows = build("llama", torch.float16), token_rows()
    profile = rectilinear.measure(model, [rows])
    states = hidden_states(model, [{"input_ids": rows}])
    for block, (x, y) in zip(profile.blocks, pairwise(states), strict=True):
        expected = oracle.in_sample(x.double().flatten(0, 1), y.double().flatten(0, 1))
        assert block.update_linearity.in_sample == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 80, dtype=torch.long), "context of 64"),
        (torch.full((2, 8), VOCABULARY), f"vocabulary of {VOCABULARY}"),
    ],
)
def test_batches_that_the_model_cannot_take(batch, message):
    for given in (batch, {"input_ids": batch}):
        with pytest.raises(RequestError, match=message):
            rectilinear.measure(build("llama"), [given])


def test_one_batch_that_is_not_in_a_list_is_refused():
    for batch in (torch.randn(2, 3, 20), {"input_ids": token_rows(2)}):
        with pytest.raises(RequestError, match=r"a list of batches, got one (batch|tensor)"):
            rectilinear.measure(build("llama"), batch)


def test_tokens_in_all_their_forms_are_the_same_rows(tiny_llama, tiny_tokenizer, documents):
    """Text, its ids, a tokenised dataset and a loader: the same scores, and the same rows by their hash."""
    from torch.utils.data import DataLoader, TensorDataset

    size = Rows(max_tokens=2048, seq_len=32)
    texts = rectilinear.measure(tiny_llama, documents, rows=size, tokenizer=tiny_tokenizer, batch_size=16)
    assert texts.data.source == "list in memory"
    ids = [i for text in documents for i in tiny_tokenizer(text)["input_ids"]]
    rows = torch.tensor(ids[:2048]).view(64, 32)
    found = rectilinear.measure(tiny_llama, rows, batch_size=16)
    assert (found.data.source, found.data.fingerprint) == ("rows", texts.data.fingerprint)
    # Which documents rows are of, and so which rows are paired, the ids do not tell.
    assert (texts.settings["partners"], found.settings["partners"]) == ("document", "half")
    assert_same(found, texts, 1e-9, but="null_shifted")
    assert found.warnings == texts.warnings
    dataset = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    assert rectilinear.measure(tiny_llama, dataset, batch_size=16) == found
    loader = DataLoader(TensorDataset(rows), batch_size=16)
    batches = rectilinear.measure(tiny_llama, loader)
    assert (batches.data.source, batches.blocks) == ("batches", found.blocks)


def test_a_text_that_is_no_path_is_said_to_be_one(tiny_llama, tiny_tokenizer, documents):
    with pytest.raises(RequestError, match=r"got a text \('.*'\.\.\.\); try \[text\]"):
        rectilinear.measure(tiny_llama, documents[0], tokenizer=tiny_tokenizer)


@pytest.mark.parametrize(("count", "of"), [(1, "one document"), (19, "19 documents"), (20, None)])
def test_folds_that_share_documents_are_told(count, of, tiny_llama, tiny_tokenizer):
    """Below five documents a fold held-out scores are of text that is known in part (benchmarks/coverage_text.json)."""
    texts = ["a cat saw the red hen and was lost " * (400 // count)] * count
    profile = rectilinear.measure(tiny_llama, texts, rows=Rows(max_tokens=10**6, seq_len=16), tokenizer=tiny_tokenizer)
    assert profile.data.documents == count
    told = [warning for warning in profile.warnings if "fewer than 5 for each of 4 folds" in warning]
    assert [warning.split(", ")[0] for warning in told] == [f"the rows are of {of}"] * (of is not None)


def test_the_advice_about_few_tokens_is_right():
    """Where tokens are few, adjusted scores are near those of many, and held-out scores are too low."""
    model, rows = build("llama"), token_rows(600, 20)
    truth = rectilinear.measure(model, [rows])
    few = rectilinear.measure(model, [rows[:8]])
    assert truth.warnings == ()
    [warning, *_] = few.warnings
    assert "held-out scores down; read adjusted, for which unrelated inputs score " in warning
    assert ", or measure 480 tokens" in warning
    assert [column.name for column in few.tables()[0].columns].count("adjusted") == 2
    assert [column.name for column in truth.tables()[0].columns].count("adjusted") == 0
    for block, there in zip(few.blocks, truth.blocks, strict=True):
        score, true = block.update_linearity, there.update_linearity.in_sample
        assert score.held_out < true - 0.02
        assert abs(score.adjusted - true) < min(abs(score.held_out - true), abs(score.in_sample - true))


def test_inputs_that_are_all_padding_are_named_as_such():
    rows = token_rows(2)
    with pytest.raises(JobError, match="is every token masked"):
        rectilinear.measure(build("llama"), [{"input_ids": rows, "attention_mask": torch.zeros_like(rows)}])


def test_what_was_seen_as_the_model_was_loaded_is_in_the_profile(save_checkpoint, text_file):
    folder = save_checkpoint(build("llama"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "value_head.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    profile = rectilinear.measure(folder, text_file, rows=Rows(max_tokens=2048, seq_len=32))
    assert "(1, value_head.weight among them)" in profile.warnings[0]
    assert profile.warnings[0] in profile.all_warnings()
