"""Files of llama.cpp's are read as checkpoints are: configuration, tokenizer and weights out of one."""

import numpy as np
import pytest
import torch

import rectilinear
from rectilinear.errors import RequestError
from rectilinear.models.load import load_config, load_model, load_tokenizer
from tests.conftest import build_llama, linearize


def interleaved(weight, heads):
    """Rows of queries or keys in the order in which llama.cpp rotates them: pairs next to each other."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def gguf_file(tiny_tokenizer, tmp_path_factory):
    """A tiny Llama and its tokenizer as a GGUF file, by the library's own writer."""
    gguf = pytest.importorskip("gguf")
    model, file = build_llama(), tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = tiny_tokenizer.convert_ids_to_tokens([*range(config.vocab_size)])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tiny_tokenizer)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}
    parts = {
        **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q"},
        **{"self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"},
        **{"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
    }
    for index in range(config.num_hidden_layers):
        names |= {f"model.layers.{index}.{name}.weight": f"blk.{index}.{part}" for name, part in parts.items()}
    for name, short in names.items():
        weight = state[name]
        if "attn_q" in short or "attn_k" in short:
            heads = config.num_attention_heads if "attn_q" in short else config.num_key_value_heads
            weight = interleaved(weight, heads)
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def merges_of(tokenizer):
    import json

    return [
        merge if isinstance(merge, list) else merge.split(" ")
        for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ]


def test_a_gguf_file_is_the_model_that_it_was_written_from(gguf_file):
    model, ids = load_model(gguf_file), torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, build_llama()(ids).logits, rtol=1e-4, atol=1e-4)
    assert load_config(gguf_file).num_hidden_layers == 3
    assert "GGUF" in " ".join(model.loading_warnings)


def test_its_tokenizer_is_in_it(gguf_file, tiny_tokenizer):
    text = "The cat saw a dog."
    own, read = (each(text, add_special_tokens=False).input_ids for each in (tiny_tokenizer, load_tokenizer(gguf_file)))
    assert read == own


def test_it_is_measured_and_linearized(gguf_file, text_file, load, tmp_path, reload_here):
    rows = {"max_tokens": 640, "seq_len": 16}
    profile = rectilinear.measure(gguf_file, text_file, rows=rectilinear.Rows(**rows), progress=False)
    assert len(profile.blocks) == 3
    assert any("GGUF" in warning for warning in profile.warnings)
    linearize(gguf_file, text_file, kind="filter", blocks=[1], device="cpu", out=tmp_path / "out", **rows)
    assert len(load(tmp_path / "out").model.layers) == 3


def test_what_is_no_gguf_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    for name, says in (
        ("broken.gguf", "cannot load"),
        ("missing.gguf", "expected a GGUF file"),
        ("", "; try .*broken"),
    ):
        with pytest.raises(RequestError, match=says) as raised:
            load_model(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_without_the_library_it_is_said_what_to_install(gguf_file, monkeypatch):
    monkeypatch.setattr("rectilinear.errors.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"expected gguf to be installed; try pip install 'rectilinear\[gguf\]'"):
        load_model(gguf_file)
