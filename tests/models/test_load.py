"""Models come from where they should, are told apart by their weights, and wrong requests are refused."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MptConfig, RobertaConfig, RobertaForCausalLM

import rectilinear
from rectilinear import Evaluating, Loading, Rows
from rectilinear.errors import JobError, RequestError
from rectilinear.models.describe import check_context, check_rows, describe, weights_sha256
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.load import (
    build_without_weights,
    load_classifier,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
)
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.running import pick_device
from tests.conftest import build_llama
from tests.families import build


def refusal(function, *args, **options):
    with pytest.raises(RequestError) as caught:
        function(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_resolve_takes_folders_and_hub_ids(tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    assert "expected a folder with a config.json" in refusal(resolve, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path / "checkpoint") == str(tmp_path / "checkpoint")
    assert resolve("checkpoint") == "checkpoint"
    assert resolve("~/checkpoint") == str(tmp_path / "checkpoint")
    assert resolve("gpt2") == "gpt2"
    assert resolve("openai/gpt2") == "openai/gpt2"


@pytest.mark.parametrize("name", ["./none", "../none", "~/none", "/none/at/all", "a/b/c"])
def test_resolve_refuses_what_can_only_be_a_path(name):
    assert f"no model at {name}" in refusal(resolve, name)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/model"])
def test_resolve_refuses_names_that_no_path_has(name):
    assert len(refusal(resolve, name)) < 300


def test_resolve_refuses_a_file(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    assert "expected a folder" in refusal(resolve, tmp_path / "model.bin")


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu cuda"])
def test_pick_device_refuses_what_is_not_here(name):
    message = refusal(pick_device, name)
    assert "is not to be had here" in message
    assert "try `device=cpu`" in message
    assert len(message) < 200
    assert repr(name) in message


def test_pick_device_refuses_meta():
    refusal(pick_device, "meta")


def test_positions_that_do_not_begin_at_0_leave_room_for_fewer_tokens():
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    model = RobertaForCausalLM(RobertaConfig(**sizes, vocab_size=99, max_position_embeddings=34, is_decoder=True))
    ids = torch.full((2, 33), 7)
    rectilinear.measure(model, ids[:, :32], progress=False)
    assert "at most 32 tokens, for which the model has positions, got rows of 33" in refusal(
        rectilinear.measure, model, ids, progress=False
    )


def test_a_model_that_runs_on_whole_rows_alone_is_taken(text_file, tiny_tokenizer):
    class Whole(nn.Module):
        """A decoder of rows of 32 tokens, with learned positions."""

        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(128, 16), nn.Embedding(32, 16)
            self.blocks, self.head = nn.ModuleList(nn.Linear(16, 16) for _ in range(2)), nn.Linear(16, 128)

        def forward(self, input_ids):
            if input_ids.shape[1] != 32:
                raise ValueError("expected rows of 32 tokens")
            states = self.tokens(input_ids) + self.positions(torch.arange(32))
            for block in self.blocks:
                states = states + block(states)
            return SimpleNamespace(logits=self.head(states))

    rows, few = Rows(max_tokens=640, seq_len=32), Evaluating(speed=False)
    assert len(rectilinear.measure(Whole(), torch.randint(128, (20, 32)), progress=False).blocks) == 2
    assert rectilinear.evaluate(Whole(), text_file, few, rows=rows, tokenizer=tiny_tokenizer, progress=False).loss > 0


@pytest.mark.parametrize("config", [MptConfig(max_seq_len=64), GPT2Config(n_positions=64)])
def test_a_context_by_another_name(config):
    assert "context of 64 tokens, got rows of 65" in refusal(check_context, config, 65)


def test_rows_up_to_context_and_vocabulary_are_taken(tiny_llama):
    check_context(tiny_llama.config, 64)
    check_rows(tiny_llama.config, torch.full((2, 64), 127))
    check_rows(tiny_llama.config, torch.full((2, 99), 1e6))  # features, not ids
    check_rows(None, torch.full((2, 99), 10**6))
    check_rows(object(), torch.full((2, 99), 10**6))


def test_rows_that_the_model_cannot_take_are_refused(tiny_llama):
    assert "context of 64 tokens, got rows of 65" in refusal(check_context, tiny_llama.config, 65)
    assert "context of 64 tokens, got rows of 65" in refusal(check_rows, tiny_llama.config, torch.zeros(1, 65).long())
    assert "vocabulary of 128, got 128" in refusal(check_rows, tiny_llama.config, torch.full((1, 64), 128))


def test_a_checkpoint_without_a_head_is_enough_for_hidden_states(tiny_llama, save_checkpoint):
    folder = save_checkpoint(tiny_llama.model)
    loaded = load_model(folder, Loading(device="cpu"))
    assert torch.equal(loaded.model.norm.weight, tiny_llama.model.norm.weight)


def test_a_loaded_checkpoint_is_the_saved_model(tiny_llama, tiny_checkpoint):
    loaded = load_model(tiny_checkpoint, Loading(device="cpu"))
    assert not loaded.training
    saved = tiny_llama.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_loaded_in_the_dtype_asked_for(tiny_checkpoint, dtype):
    loaded = load_model(tiny_checkpoint, Loading(device="cpu", dtype=dtype))
    assert {p.dtype for p in loaded.parameters()} == {getattr(torch, dtype)}


def test_auto_dtype_is_the_checkpoints_own(save_checkpoint):
    folder = save_checkpoint(build_llama().to(torch.bfloat16))
    assert {p.dtype for p in load_model(folder, Loading(device="cpu")).parameters()} == {torch.bfloat16}


def test_a_loaded_tokenizer_adds_its_special_tokens(tiny_checkpoint):
    ids = load_tokenizer(tiny_checkpoint)("The cat saw a dog")["input_ids"]
    assert (ids[0], ids[-1]) == (0, 1)


@pytest.mark.parametrize("load", [load_config, load_model, load_tokenizer])
def test_what_is_not_there_is_refused_in_one_line(load, tmp_path):
    for model in (tmp_path / "none", tmp_path, "nobody/nothing"):
        assert str(model) in refusal(load, model)


def test_broken_weights_are_refused_in_one_line(save_checkpoint):
    folder = save_checkpoint(build_llama())
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert str(folder) in refusal(load_model, folder)


# What a checkpoint holds and what the model uses.


@pytest.fixture
def edited(save_checkpoint):
    """A function that edits the weights and configuration of a checkpoint and gives its folder."""

    def edit(change=lambda tensors: None, **config):
        folder = save_checkpoint(build_llama())
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        before = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**before, **config}))
        return folder

    return edit


def test_missing_weights_are_refused(edited):
    folder = edited(lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.weight"))
    assert "(1, model.layers.1.mlp.down_proj.weight among them)" in refusal(load_model, folder)


def test_weights_of_another_shape_are_refused(edited):
    message = refusal(load_model, edited(intermediate_size=40))
    assert "(9, model.layers.0.mlp.down_proj.weight among them: expected [16, 40], got [16, 32])" in message


@pytest.mark.parametrize("load", [load_model, lambda folder: load_classifier(folder, ["no", "yes"], 0)])
def test_weights_of_blocks_that_are_not_used_are_refused(load, edited):
    message = refusal(load, edited(num_hidden_layers=2))
    assert "weights of block 2 and others are not used (9, model.layers.2." in message


@pytest.mark.parametrize("quantisation", [{"quant_method": "modelopt", "quant_algo": "FP8"}, {"quant_method": "none"}])
def test_a_quantisation_that_is_not_carried_out_is_refused(quantisation, edited):
    def scale(tensors):
        for name in [name for name in tensors if ".layers." in name and tensors[name].ndim == 2]:
            size = tensors[name].abs().max() / 448
            tensors[name], tensors[f"{name}_scale"] = (tensors[name] / size).to(torch.float8_e4m3fn), size

    message = refusal(load_model, edited(scale, quantization_config=quantisation))
    assert f"quantised as {quantisation['quant_method']!r}, which this version of transformers does not know" in message


def test_other_weights_that_are_not_used_are_said(edited, capfd):
    def more(tensors):
        tensors["model.layers.1.self_attn.q_proj.weight_scale"] = torch.ones(1)
        tensors["value_head.weight"] = torch.ones(3)

    folder = edited(more)
    model = load_model(folder, Loading(device="cpu"))
    named = "(2, model.layers.1.self_attn.q_proj.weight_scale among them)"
    assert loading_warnings(model) == [f"some weights of {folder} are not used by LlamaForCausalLM {named}"]
    # A classifier has no use for other heads, so that nothing is said of them.
    (line,) = loading_warnings(load_classifier(folder, ["no", "yes"], 0))
    assert "(1, model.layers.1.self_attn.q_proj.weight_scale among them)" in line
    assert capfd.readouterr().err == ""


def test_nothing_is_said_of_a_checkpoint_that_is_used_whole(tiny_checkpoint, tiny_llama, save_checkpoint):
    assert loading_warnings(load_model(tiny_checkpoint, Loading(device="cpu"))) == []
    assert loading_warnings(load_model("storyteller", Loading(device="cpu"))) == []
    assert loading_warnings(load_classifier(tiny_checkpoint, ["no", "yes"], 0)) == []
    for family in ("gpt2", "mixtral", "gemma3"):  # weights that are tied, and names that are translated
        assert loading_warnings(load_model(save_checkpoint(build(family)), Loading(device="cpu"))) == []
    assert loading_warnings(tiny_llama) == loading_warnings(nn.Linear(1, 1)) == []


def test_what_transformers_warns_of_is_collected_not_silenced(tiny_checkpoint, monkeypatch, capfd):
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    original = LlamaForCausalLM.from_pretrained.__func__

    def warning(cls, *args, **options):
        logging.get_logger("transformers.models.llama.modeling_llama").warning("these weights\n  are odd")
        return original(cls, *args, **options)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(warning))
    level, handlers = logging.get_verbosity(), list(logging.get_logger("transformers").handlers)
    logging.set_verbosity_error()  # as commands do
    try:
        assert loading_warnings(load_model(tiny_checkpoint, Loading(device="cpu"))) == ["these weights are odd"]
        assert logging.get_verbosity() == logging.ERROR
    finally:
        logging.set_verbosity(level)
    assert logging.get_logger("transformers").handlers == handlers
    assert capfd.readouterr().err == ""


class Parts(nn.Module):
    """Names out of order, a shared tensor, a buffer, several dtypes, a scalar and an empty tensor."""

    def __init__(self):
        super().__init__()
        self.z = nn.Linear(3, 2)
        self.a = nn.Linear(2, 3).to(torch.float16)
        self.tied = self.z.weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("none", torch.empty(0))


def test_weights_sha256_is_as_described():
    model = Parts()
    digest = hashlib.sha256()
    for name, dtype, shape, values in (
        ("a.bias", "torch.float16", [3], model.a.bias.detach().numpy()),
        ("a.weight", "torch.float16", [3, 2], model.a.weight.detach().numpy()),
        ("none", "torch.float32", [0], np.empty(0, np.float32)),
        ("steps", "torch.int64", [], np.array(7)),
        ("tied", "torch.float32", [2, 3], model.z.weight.detach().numpy()),
        ("z.bias", "torch.float32", [2], model.z.bias.detach().numpy()),
        ("z.weight", "torch.float32", [2, 3], model.z.weight.detach().numpy()),
    ):
        digest.update(f"{name} {dtype} {shape} {hashlib.sha256(values.tobytes()).hexdigest()}\n".encode())
    assert weights_sha256(model) == digest.hexdigest()


def test_weights_sha256_changes_with_one_weight_alone(tiny_llama):
    model = build_llama()
    before = weights_sha256(model)
    assert before == weights_sha256(tiny_llama)
    assert before == weights_sha256(model.train().requires_grad_(False))
    assert before != weights_sha256(build_llama(seed=1))
    weight = model.model.layers[1].mlp.down_proj.weight
    was = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = np.nextafter(np.float32(was), np.float32(1)).item()
    assert before != weights_sha256(model)
    with torch.no_grad():
        weight[0, 0] = was
    assert before == weights_sha256(model)


def test_weights_sha256_survives_a_checkpoint(tiny_llama, tiny_checkpoint):
    assert weights_sha256(load_model(tiny_checkpoint, Loading(device="cpu"))) == weights_sha256(tiny_llama)


def test_weights_that_have_no_bytes_have_no_hash(tiny_llama):
    class Packed(nn.Module):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def get_extra_state(self):
            return self.state

    model = nn.Sequential(nn.Linear(2, 2), Packed((torch.ones(2), 8)))
    assert weights_sha256(model) is None
    assert weights_sha256(nn.Linear(2, 2, device="meta")) is None
    assert weights_sha256(model[0]) is not None


def test_structure_takes_no_memory(tiny_llama):
    model = build_without_weights(tiny_llama.config)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert [p.shape for p in model.parameters()] == [p.shape for p in tiny_llama.parameters()]


def test_structure_of_no_decoder_is_refused():
    from transformers import ViTConfig

    assert "got vit" in refusal(build_without_weights, ViTConfig())


def test_a_model_that_reads_numbers_as_it_is_built(tiny_llama, monkeypatch):
    class Ours(type(tiny_llama)):
        def __init__(self, config):
            super().__init__(config)
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda config, **options: Ours(config))
    model = build_without_weights(tiny_llama.config)
    assert model.rates == [0, 0.5, 1]
    assert {tensor.device.type for tensor in model.parameters()} == {"meta"}


def test_describe_says_what_the_config_asked_for():
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=50,
        tie_word_embeddings=True,
    )
    model = build_without_weights(config)
    attention, mlp, norms = 16 * 16 + 2 * 8 * 16 + 16 * 16, 3 * 16 * 24, 2 * 16
    block = attention + mlp + norms
    assert describe(model, find_blocks(model)) == {
        "architecture": "LlamaForCausalLM",
        "blocks": "model.layers",
        "found_by": "depth",
        "block_class": "LlamaDecoderLayer",
        "num_blocks": 3,
        "width": 16,
        "parameters": 100 * 16 + 3 * block + 16,  # embeddings (tied), blocks, final norm
        "block_parameters": 3 * block,
        "vocabulary": 100,
        "context": 50,
    }


def test_a_tokenizer_of_vocabulary_and_merges_alone(tiny_tokenizer, documents, tmp_path):
    tiny_tokenizer.backend_tokenizer.model.save(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"vocab.json", "merges.txt"}
    plain = tiny_tokenizer(documents[0], add_special_tokens=False)["input_ids"]
    assert load_tokenizer(tmp_path)(documents[0])["input_ids"] == plain


def test_a_report_without_the_weights_that_are_missing_is_an_error(tmp_path, monkeypatch):
    build_llama().save_pretrained(tmp_path)
    load = LlamaForCausalLM.from_pretrained.__func__

    def silent(cls, *args, **options):
        loaded, _ = load(cls, *args, **options)
        return loaded, {}

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(silent))
    with pytest.raises(JobError, match=r"expected transformers to tell which weights a checkpoint lacks"):
        load_model(tmp_path)
