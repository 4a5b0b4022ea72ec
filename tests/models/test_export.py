"""Checkpoints of edited models: what is in them, how they load, and that a bad one is noticed."""

import copy
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationMixin, LlamaForCausalLM

import rectilinear
from rectilinear import JobError, Loading, RequestError
from rectilinear.models import reload_check
from rectilinear.models.export import check_reload
from rectilinear.models.load import build_without_weights, load_config, load_model
from rectilinear.models.released_code import MODULE
from rectilinear.models.running import evaluating
from tests import conftest
from tests.conftest import build_llama
from tests.families import BLOCKS, TINY, build, cached_difference, prompts, token_rows

CLOSE = 1e-5
FOLDABLE = sorted(set(TINY) - {"gemma3", "mixtral"})
ATTENTIONS = sorted(set(TINY) - {"bloom"})
MLPS = sorted(set(TINY) - {"bloom", "opt"})
REGISTERED = sorted(set(TINY) - {"bloom", "falcon"})  # whose attentions call transformers' registry

WAYS = {
    "filter": {"blocks": (0,)},
    "drop": {"blocks": (1,), "kind": "drop"},
    "affine": {"blocks": (1,), "kind": "affine"},
    "folded": {"blocks": (2,), "kind": "folded"},
    "merged": {"blocks": (0, 1), "merge": True, "rank": 5},
    "attention": {"blocks": (0, 1, 2), "target": "attention"},
    "no attention": {"blocks": (0, 2), "target": "attention", "kind": "drop"},
    "mlp": {"blocks": (1,), "target": "mlp", "kind": "affine"},
    "no mlp": {"blocks": (1,), "target": "mlp", "kind": "drop"},
    "window": {"blocks": (1,), "target": "attention", "kind": "bounded", "window": 3, "far": "none", "uniform": True},
    "bounded": {"blocks": (0, 2), "target": "attention", "kind": "bounded", "window": 3, "sinks": 2, "centroids": 2},
}
ABLE = {
    "folded": FOLDABLE,
    "attention": ATTENTIONS,
    "no attention": ATTENTIONS,
    "mlp": MLPS,
    "no mlp": MLPS,
    "bounded": REGISTERED,
    "window": REGISTERED,
}
ALL = [(way, family) for way in WAYS for family in ABLE.get(way, sorted(TINY))]
#: Every way, each with another family where it can be, for what takes a process each.
SOME = [[pair for pair in ALL if pair[0] == way][place % 8] for place, way in enumerate(WAYS)]
STOCK = {"drop", "folded"}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def difference(model, other, ids):
    with torch.no_grad():
        logits, others = model(ids, use_cache=False).logits, other(ids, use_cache=False).logits
    return float((logits - others).abs().max() / logits.abs().max())


@pytest.mark.parametrize(
    ("way", "family"), [pair for pair in ALL if pair[0] in ("filter", "drop", "attention", "bounded")]
)
def test_a_checkpoint_loads_and_computes_what_the_model_in_memory_does(way, family, linearized, exported, load):
    made, folder = linearized(family, **WAYS[way]), exported(family, **WAYS[way])
    loaded = load(folder, trust=way not in STOCK)
    assert difference(loaded, made.model, token_rows(4)) < CLOSE
    assert cached_difference(loaded, *prompts()) < CLOSE
    assert type(loaded).__module__.startswith("transformers." if way in STOCK else "transformers_modules.")


@pytest.mark.parametrize(("way", "family"), [pair for pair in ALL if pair[0] in ("filter", "attention", "bounded")])
def test_this_package_loads_a_checkpoint_without_trusting_it(way, family, linearized, exported, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_from_dynamic_module", None)
    folder = exported(family, **WAYS[way])
    loaded = load_model(folder, Loading(device="cpu"))
    assert difference(loaded, linearized(family, **WAYS[way]).model, token_rows(4)) < CLOSE
    skeleton = build_without_weights(load_config(folder))
    assert [*skeleton.state_dict()] == [*loaded.state_dict()]
    assert type(skeleton) is type(loaded)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "family"), SOME)
def test_a_checkpoint_passes_its_own_check_in_a_fresh_process(way, family, linearized, tmp_path):
    made = linearized(family, **WAYS[way])
    made.save(tmp_path / "saved")
    assert cached_difference(made.model, *prompts()) < CLOSE


@pytest.mark.parametrize(("family", "way"), [("llama", "filter"), pytest.param("gpt2", "drop", marks=pytest.mark.slow)])
def test_saving_checks_in_a_fresh_process(family, way, linearized, tmp_path, monkeypatch):
    commands, run = [], subprocess.run

    def noting(command, **options):
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr("rectilinear.models.export.subprocess.run", noting)
    made = linearized(family, **WAYS[way])
    assert made.save(tmp_path / "new" / "saved") == tmp_path / "new" / "saved"
    ((python, script, *_),) = commands
    # A copy elsewhere, so that no module of this package is imported in the place of another of that name.
    assert (python, Path(script).name) == (sys.executable, "reload_check.py")
    assert Path(script).parent != Path(reload_check.__file__).parent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("way", ["filter", "affine", "drop", "bounded"])
def test_other_precisions(way, dtype, linearized, tmp_path, reload_here):
    made = linearized("llama", dtype=dtype, **WAYS[way])
    assert made.save(tmp_path)
    assert {parameter.dtype for parameter in made.model.parameters()} == {dtype}
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert made.plan.environment.dtype == str(dtype).removeprefix("torch.")


HIDDEN = """
import sys
sys.modules["rectilinear"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    print("refused:", *str(error).split())
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("The cat saw", return_tensors="pt")["input_ids"]
given = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
print([name for name in sys.modules if name.startswith("rectilinear.")], given[0].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "way"), [(f, w) for f in ("llama", "gemma3") for w in ("filter", "attention", "bounded")]
)
def test_without_this_package_it_loads_if_its_code_is_trusted(family, way, linearized, exported, tmp_path):
    folder = exported(family, **WAYS[way])
    done = subprocess.run(
        [sys.executable, "-I", "-c", HIDDEN, str(folder)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    made = linearized(family, **WAYS[way])
    ids = made.tokenizer("The cat saw", return_tensors="pt")["input_ids"]
    expected = made.model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    refusal, given = done.stdout.splitlines()[-2:]
    assert given == f"[] {expected[0].tolist()}"
    assert refusal.startswith("refused: ")
    assert "trust_remote_code=True" in refusal


def test_the_code_in_a_checkpoint_imports_nothing_of_this_package(exported):
    source = (exported("llama", **WAYS["filter"]) / f"{MODULE}.py").read_text()
    assert "import rectilinear" not in source
    assert "from rectilinear" not in source


@pytest.mark.parametrize("way", ["filter", "affine", "attention", "mlp", "bounded"])
def test_code_that_is_not_trusted_fails_loudly(way, exported, load):
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(exported("llama", **WAYS[way]), trust=False)


@pytest.mark.parametrize("way", sorted(STOCK))
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_stock_checkpoint_is_one(family, way, exported, load):
    folder = exported(family, **WAYS[way])
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "plan.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = config_of(folder)
    assert config["model_type"] == TINY[family].model_type
    assert not {"rectilinear", "auto_map"} & set(config)
    loaded = load(folder, trust=False)
    assert type(loaded) is type(build(family))
    assert len(rectilinear.find_blocks(loaded)) == BLOCKS - 1


def test_what_belongs_to_each_block_is_trimmed(exported):
    for family, count in (("llama", "num_hidden_layers"), ("gpt2", "n_layer"), ("bloom", "n_layer")):
        assert config_of(exported(family, **WAYS["drop"]))[count] == 2
        assert config_of(exported(family, **WAYS["filter"]))[count] == 3
    sliding, full = "sliding_attention", "full_attention"
    for blocks, kinds in (((1,), [sliding, sliding]), ((0,), [full, sliding])):
        config = config_of(exported("gemma3", blocks, kind="drop"))
        assert (config["num_hidden_layers"], config["layer_types"]) == (2, kinds)
    merged = config_of(exported("gemma3", (1, 2), merge=True))
    assert (merged["num_hidden_layers"], merged["layer_types"]) == (2, [sliding, full])
    ((block),) = merged["rectilinear"]["blocks"]
    assert (block["path"], block["cache_index"]) == ("model.layers.1", 1)


@pytest.mark.parametrize("way", ["filter", "drop", "folded"])
def test_tied_weights_stay_tied(way, linearized, exported, load):
    made, loaded = linearized("gpt2", **WAYS[way]), load(exported("gpt2", **WAYS[way]))
    for model in (made.model, loaded):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert "lm_head.weight" not in load_file(exported("gpt2", **WAYS[way]) / "model.safetensors")


def test_generation_config_and_tokenizer_come_along(text_file, tiny_tokenizer, tmp_path, reload_here):
    model = build("llama")
    model.generation_config.update(top_k=7, do_sample=True)
    for kind in ("filter", "drop"):
        made = conftest.linearize(
            model, text_file, kind=kind, blocks=[1], tokenizer=tiny_tokenizer, max_tokens=640, seq_len=32
        )
        folder = made.save(tmp_path / kind)
        assert json.loads((folder / "generation_config.json").read_text())["top_k"] == 7
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=kind == "filter")
        assert tokenizer("The cat met a girl.")["input_ids"] == tiny_tokenizer("The cat met a girl.")["input_ids"]


@pytest.mark.parametrize("way", ["filter", "attention", "bounded"])
def test_saved_by_transformers_itself_it_is_the_same_checkpoint(way, linearized, tmp_path, load):
    model = linearized("llama", **WAYS[way]).model
    model.save_pretrained(tmp_path)
    assert difference(load(tmp_path), model, token_rows(3)) < CLOSE
    assert difference(load_model(tmp_path, Loading(device="cpu")), model, token_rows(3)) < CLOSE
    with pytest.raises((ValueError, OSError)):
        load(tmp_path, trust=False)


def test_a_loaded_checkpoint_can_be_saved_again(exported, load, tmp_path, linearized):
    loaded = load(exported("llama", **WAYS["filter"]))
    loaded.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert difference(again, linearized("llama", **WAYS["filter"]).model, token_rows(3)) < CLOSE


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_empty_plan_changes_nothing(family, text_file, tiny_tokenizer, tmp_path, reload_here, load):
    model = build(family)
    made = conftest.linearize(model, text_file, blocks=[], tokenizer=tiny_tokenizer, max_tokens=640, seq_len=32)
    assert made.plan.replacements == ()
    made.save(tmp_path / "empty")
    model.save_pretrained(tmp_path / "stock")
    saved, stock = (load_file(tmp_path / name / "model.safetensors") for name in ("empty", "stock"))
    assert saved.keys() == stock.keys()
    assert all(torch.equal(saved[name], stock[name]) for name in saved)
    assert config_of(tmp_path / "empty") == config_of(tmp_path / "stock")
    loaded, ids = load(tmp_path / "empty", trust=False), token_rows(3)
    for other in (made.model, loaded):
        assert type(other) is type(model)
        assert difference(model, other, ids) == 0
    assert made.plan.selection.loss_before == made.plan.selection.loss_after


# Copies by other means.


@pytest.mark.parametrize("way", ["filter", "attention", "no mlp", "bounded"])
def test_a_model_with_stand_ins_is_pickled_and_copied(way, linearized, exported, load):
    ids, mask = token_rows(3), torch.ones(3, 20, dtype=torch.long)
    mask[1, :7] = 0
    for model in (linearized("llama", **WAYS[way]).model, load(exported("llama", **WAYS[way]))):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for again in (torch.load(file, weights_only=False), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert type(again) is type(model)
            assert type(again.config) is type(model.config)
            assert {type(module) for module in again.modules()} == {type(module) for module in model.modules()}
            assert not {id(tensor) for tensor in again.parameters()} & {id(tensor) for tensor in model.parameters()}
            with torch.no_grad():
                one, two = (m(ids, attention_mask=mask, use_cache=False).logits for m in (model, again))
            assert torch.equal(one, two)
            assert cached_difference(again, *prompts()) < CLOSE


@pytest.mark.slow
def test_a_pickle_loads_in_a_fresh_process(linearized, tmp_path):
    model = linearized("llama", **WAYS["filter"]).model
    torch.save(model, tmp_path / "model.pt")
    code = "import sys, torch; print(type(torch.load(sys.argv[1], weights_only=False).model.layers[0]).__name__)"
    run = [sys.executable, "-c", code, str(tmp_path / "model.pt")]
    assert subprocess.run(run, capture_output=True, encoding="utf-8").stdout == "LinearLlamaDecoderLayer\n"


def test_a_device_map_leaves_stand_ins_whole(linearized, exported, tmp_path, load):
    asked = {"blocks": (0, 1), "rank": 20}
    model, folder = linearized("llama", **asked).model, exported("llama", **asked)
    size = {name: 4 * sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    # Room for the embeddings, the first stand-in and the first factor of the second.
    room = size["model.embed_tokens"] + size["model.layers.0"] + size["model.layers.1"] - 100
    places = {"device_map": "auto", "max_memory": {"cpu": room + size["model.layers.2"]}, "offload_folder": tmp_path}
    spread = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **places)
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    assert not [place for place in spread.hf_device_map if re.match(r"model\.layers\.\d\.", place)]
    assert model._no_split_modules == spread._no_split_modules == {"LlamaDecoderLayer", "LinearLlamaDecoderLayer"}
    assert difference(spread, model, token_rows(2)) == 0
    assert cached_difference(spread, *prompts()) < CLOSE


# What the check must notice.


def edit_config(change):
    def sabotage(folder):
        config = config_of(folder)
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return sabotage


def as_stock(config):
    config["model_type"] = "llama"
    del config["auto_map"]


def swap(first, second):
    def sabotage(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[first], tensors[second] = tensors[second], tensors[first]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return sabotage


def lose(name):
    def sabotage(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return sabotage


FILTERED = {
    "another layer of the cache": (
        edit_config(lambda config: config["rectilinear"]["blocks"][0].update(cache_index=1)),
        "does not load in a fresh process .*Sizes of tensors must match",
    ),
    "no layer of the cache": (
        edit_config(lambda config: config["rectilinear"]["blocks"][0].update(cache_index=None)),
        "decodes otherwise with its cache than without",
    ),
    "another rate": (
        edit_config(lambda config: config["rectilinear"]["blocks"][0].update(rates=[1.0, 0.5])),
        "loads with other logits",
    ),
    "a tap less": (
        edit_config(lambda config: config["rectilinear"]["blocks"][0].update(taps=2)),
        "does not load in a fresh process",
    ),
    "the stock architecture": (edit_config(as_stock), "loads with other logits"),
    "no code": (lambda folder: (folder / f"{MODULE}.py").unlink(), "does not load in a fresh process"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "does not load in a fresh process"),
    "no map": (lose("model.layers.2.map.0.weight"), "loads with other logits"),
    "norms swapped": (
        swap("model.layers.1.input_layernorm.weight", "model.norm.weight"),
        "loads with other logits",
    ),
}
DROPPED = {
    "blocks swapped": (
        swap("model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
        "loads with other logits",
    ),
    "a weight less": (lose("model.layers.1.mlp.down_proj.weight"), "loads with other logits"),
    "a block too many": (edit_config(lambda config: config.update(num_hidden_layers=3)), "loads with other logits"),
}


@pytest.mark.parametrize(
    ("way", "name"), [*(("filter", name) for name in FILTERED), *(("drop", name) for name in DROPPED)]
)
def test_the_check_notices(way, name, linearized, exported, tmp_path, reload_here):
    asked = {"blocks": (2,)} if way == "filter" else WAYS["drop"]
    sabotage, message = {**FILTERED, **DROPPED}[name]
    folder = tmp_path / f"sabotaged-{abs(hash(name))}"
    shutil.copytree(exported("llama", **asked), folder)
    made = linearized("llama", **asked)
    check_reload(made.model, folder, made.rows, way == "filter")
    sabotage(folder)
    with pytest.raises(JobError, match=message) as raised:
        check_reload(made.model, folder, made.rows, way == "filter")
    assert "\n" not in str(raised.value)


def test_the_check_notices_that_nothing_was_decoded_with_a_cache(linearized, exported, reload_here, monkeypatch):
    made, generate = linearized("llama", (2,)), GenerationMixin.generate

    def without_cache(self, *args, **options):
        return generate(self, *args, **{**options, "use_cache": False})

    monkeypatch.setattr(GenerationMixin, "generate", without_cache)
    with pytest.raises(JobError, match=r"decode with a cache of all tokens \(\d+ are missing\), .* version \d"):
        check_reload(made.model, exported("llama", (2,)), made.rows, True)


def test_the_check_notices_in_a_fresh_process(linearized, exported, tmp_path):
    shutil.copytree(exported("llama", (2,)), tmp_path / "bare")
    (tmp_path / "bare" / f"{MODULE}.py").unlink()
    made = linearized("llama", (2,))
    with pytest.raises(JobError, match=rf"does not load in a fresh process \(.*{MODULE}") as raised:
        check_reload(made.model, tmp_path / "bare", made.rows, True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["filter", "affine", "drop"])
def test_a_model_with_stand_ins_takes_no_more(kind, linearized, exported, load, text_file, tiny_tokenizer):
    options = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32}
    for model in (load(exported("llama", **WAYS["filter"])), linearized("llama", **WAYS["filter"]).model):
        with pytest.raises(RequestError, match="got a linearized one"):
            conftest.linearize(model, text_file, kind=kind, blocks=[1], **options)


def test_a_model_with_code_of_its_own_takes_no_stand_ins(text_file, tiny_tokenizer):
    class Ours(LlamaForCausalLM):
        pass

    options = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32, "blocks": [1]}
    model = Ours(build("llama").config)
    for kind, target in (("filter", "block"), ("affine", "block"), ("drop", "attention")):
        with pytest.raises(RequestError, match="of transformers' own for stand-ins, got Ours"):
            conftest.linearize(model, text_file, kind=kind, target=target, **options)
    assert len(rectilinear.find_blocks(conftest.linearize(model, text_file, kind="drop", **options).model)) == 2


def test_weights_that_transformers_renames_as_it_loads(text_file, tiny_tokenizer, tmp_path, load, reload_here):
    build("mixtral").save_pretrained(tmp_path / "mixtral")
    assert any("block_sparse_moe" in name for name in load_file(tmp_path / "mixtral" / "model.safetensors"))
    options = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32, "device": "cpu"}
    for way in ("filter", "drop"):
        made = conftest.linearize(tmp_path / "mixtral", text_file, **WAYS[way], **options)
        loaded = load(made.save(tmp_path / f"mixtral-{way}"))
        assert difference(loaded, made.model, token_rows(3)) < CLOSE


def test_the_registry_of_transformers_is_left_alone(exported):
    exported("llama", **WAYS["filter"])
    with pytest.raises(ValueError, match="rectilinear_llama"):
        AutoConfig.for_model("rectilinear_llama")
    model = AutoModelForCausalLM.from_config(build_llama().config)
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("way", ["filter", "drop"])
def test_outputs_that_a_configuration_asks_for_are_not_in_the_way(
    way, text_file, tiny_tokenizer, tmp_path, reload_here
):
    model = build("mixtral", output_router_logits=True, output_hidden_states=True)
    options = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32, "device": "cpu"}
    folder = conftest.linearize(model, text_file, **WAYS[way], **options).save(tmp_path)
    config = config_of(folder)
    assert (config["output_router_logits"], config["output_hidden_states"]) == (True, True)
    ids, mask = prompts()
    with pytest.raises(RuntimeError):  # transformers' own
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    with evaluating(model):
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
    assert (model.config.output_router_logits, model.config.output_hidden_states) == (True, True)
