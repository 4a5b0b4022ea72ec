"""Checkpoints with replaced parts as GGUF files: `benchmarks/gguf_file.py`."""

import numpy as np
import pytest
import torch

from rectilinear.models.load import load_model
from tests.conftest import ROOT, build_llama, linearize

ROWS = {"max_tokens": 640, "seq_len": 16, "device": "cpu"}


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gguf_file
    import llama_cpp

    return gguf_file, llama_cpp


@pytest.fixture
def model_folder(tiny_tokenizer, tmp_path):
    folder = tmp_path / "model"
    build_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["drop", "folded"])
def test_a_stock_checkpoint_is_the_same_as_a_file(benchmarks, model_folder, text_file, tmp_path, reload_here, kind):
    pytest.importorskip("gguf")
    linearize(model_folder, text_file, kind=kind, blocks=[1], out=tmp_path / "out", **ROWS)
    assert benchmarks[0].write_gguf(tmp_path / "out", tmp_path / "model.gguf") == "llama"
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        wanted, read = (load_model(tmp_path / name)(ids).logits for name in ("out", "model.gguf"))
    torch.testing.assert_close(read, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "target", "layers"),
    [
        ("drop", "attention", 3),
        ("drop", "mlp", 3),
        ("mean", "block", 2),
        ("mean", "attention", 3),
        ("affine", "attention", 4),
        ("affine", "mlp", 4),
    ],
)
def test_llama_cpp_predicts_the_same(benchmarks, model_folder, text_file, tmp_path, reload_here, kind, target, layers):
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    made = linearize(model_folder, text_file, kind=kind, target=target, blocks=[1], out=tmp_path / "out", **ROWS)
    benchmarks[0].write_gguf(tmp_path / "out", tmp_path / "model.gguf")
    engine, ids = benchmarks[1].Engine(tmp_path / "model.gguf", 20), torch.arange(20)
    assert engine.layers == layers
    with torch.no_grad():
        wanted = made.model(ids[None]).logits[0]
    for at_once in (None, 1):  # as a prompt, and as it decodes
        found = torch.from_numpy(engine.logits(ids.tolist(), at_once))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    engine.close()


def test_sublayers_are_put_into_as_few_layers_as_hold_them(benchmarks):
    gguf_file, bias = benchmarks[0], np.ones(2, np.float32)
    part = {kind: gguf_file.Sublayer(kind, {"ffn_down.bias": bias}) for kind in ("attention", "linear", "constant")}
    part["feed_forward"] = gguf_file.Sublayer("feed_forward", {"ffn_up.weight": bias})
    for given, wanted in (
        (["attention", "feed_forward"] * 2, [("attention", ["ffn_up.weight"])] * 2),
        (["attention", "feed_forward", "constant"], [("attention", ["ffn_down.bias", "ffn_up.weight"])]),
        (["linear", "constant", "feed_forward"], [("linear", ["ffn_down.bias"]), (None, ["ffn_up.weight"])]),
        (["constant", "attention"], [(None, ["ffn_down.bias"]), ("attention", [])]),
    ):
        layers = gguf_file.pack([part[kind] for kind in given])
        assert [(layer.first and layer.first.kind, sorted(layer.second)) for layer in layers] == wanted
    (layer,) = gguf_file.pack([part["constant"], part["constant"]])
    assert (layer.second["ffn_down.bias"] == 2).all()


@pytest.mark.parametrize(("kind", "target"), [("affine", "block"), ("filter", "attention"), ("bounded", "attention")])
def test_what_has_no_place_is_refused(benchmarks, model_folder, text_file, tmp_path, reload_here, kind, target):
    window = {"window": 2} if kind == "bounded" else {}
    linearize(model_folder, text_file, kind=kind, target=target, blocks=[1], out=tmp_path / "out", **ROWS, **window)
    with pytest.raises(benchmarks[0].NoPlaceError, match=r"model\.layers\.1"):
        benchmarks[0].write_gguf(tmp_path / "out", tmp_path / "model.gguf")
