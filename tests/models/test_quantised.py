"""Quantised checkpoints are measured as they run, through hooks; where a library is not installed, a line says so."""

import copy
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import rectilinear
from rectilinear import Loading, RequestError, Rows
from rectilinear.models.load import load_model
from tests import oracle
from tests.activations import stored
from tests.conftest import linearize

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
SMALL = {**SIZES, "vocab_size": 128, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1}


def compressed_tensors(folder, quantised):
    """Weights in 8 bits, one scale a row, packed by the library's own compressor."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    apply_quantization_config(
        model, QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="initialized")
    )
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            least, most = (getattr(module.weight, name)(1, keepdim=True) for name in ("amin", "amax"))
            scale, zero = calculate_qparams(least, most, weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(quantised)
    compressor.update_config(quantised)


def torchao(folder, quantised):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).save_pretrained(quantised)


def bitsandbytes(bits):
    def quantise(folder, quantised):
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
        model.save_pretrained(quantised)

    return quantise


WAYS = {
    "compressed-tensors": compressed_tensors,
    "torchao": torchao,
    "bitsandbytes in 8 bits": bitsandbytes(8),
    "bitsandbytes in 4 bits": bitsandbytes(4),
}
#: What a configuration says of each library's checkpoints.
OF = {
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}}},
    "compressed-tensors": {"config_groups": {}, "format": "pack-quantized", "quantization_status": "compressed"},
    "bitsandbytes": {"load_in_8bit": True},
}


@pytest.fixture(scope="module", params=WAYS)
def quantised(request, tiny_tokenizer, tmp_path_factory):
    library = request.param.split()[0].replace("-", "_")
    if not find_spec(library):
        pytest.skip(f"needs {library}, which is not installed")
    folder = tmp_path_factory.mktemp("quantised")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)).save_pretrained(folder / "dense")
    WAYS[request.param](folder / "dense", folder / "quantised")
    tiny_tokenizer.save_pretrained(folder / "quantised")
    return folder / "quantised"


def test_it_is_measured_as_it_runs(quantised):
    ids = torch.randint(2, 128, (40, 24), generator=torch.Generator().manual_seed(0))
    profile = rectilinear.measure(load_model(quantised, Loading(device="cpu")), [*ids.split(8)], progress=False)
    model = AutoModelForCausalLM.from_pretrained(quantised)
    with torch.no_grad():
        model(ids[:1])  # some libraries unpack weights as a model is first run
    pairs = stored(model.model.layers, model, ids.split(8), lambda hidden: hidden.flatten(0, -2).float())
    for block, (x, y) in zip(profile.blocks, pairs, strict=True):
        found = block.linearity.in_sample, block.update_linearity.in_sample
        assert found == pytest.approx(oracle.in_sample(x, y), abs=1e-5)


def test_its_folder_is_measured(quantised, text_file):
    rows = Rows(max_tokens=640, seq_len=24)
    profile = rectilinear.measure(quantised, text_file, rows=rows, loading=Loading(device="cpu"), progress=False)
    assert len(profile.blocks) == 3


def test_it_is_not_linearized(quantised, text_file):
    with pytest.raises(RequestError, match="expected a model with weights of floating point, got a quantised one"):
        linearize(quantised, text_file, kind="drop", blocks=[1], max_tokens=640, seq_len=32, device="cpu")


@pytest.mark.parametrize("method", ["torchao", "compressed-tensors", "bitsandbytes"])
def test_a_library_that_is_not_installed_is_named(method, tiny_checkpoint, tmp_path):
    if find_spec(method.replace("-", "_")):
        pytest.skip(f"needs to be without {method}, which is installed")
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "quantization_config": {**OF[method], "quant_method": method}})
    )
    with pytest.raises(RequestError, match=f"cannot load the model of .*{method}.*pip install") as raised:
        load_model(folder, Loading(device="cpu"))
    assert "\n" not in str(raised.value)


def test_hooks_on_a_whole_model_run_before_its_blocks(tiny_llama):
    """A library may get weights ready in a hook on the whole model, as compressed-tensors does."""
    model, ids = copy.deepcopy(tiny_llama), torch.arange(48).view(2, 24)
    expected = rectilinear.measure(model, [ids], progress=False)
    for block in model.model.layers:
        block.mlp.kept, block.mlp.up_proj.weight = block.mlp.up_proj.weight, None

    def unpack(module, args, kwargs):
        for block in model.model.layers:
            block.mlp.up_proj.weight = block.mlp.kept
        handle.remove()

    handle = model.register_forward_pre_hook(unpack, with_kwargs=True)
    profile = rectilinear.measure(model, [ids], progress=False)
    assert profile.blocks == expected.blocks
