"""Code of others runs nowhere unless it is trusted, and leaves with no checkpoint but where it was."""

import json
import pickle
import re
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear import Loading
from rectilinear.errors import RequestError
from rectilinear.models.code_files import describe_code, drop_absent_code
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.models.released_code import FILES
from rectilinear.training.settings import Corpus, Monitoring, Profiling, Recipe, Tuning
from tests import conftest
from tests.conftest import build_llama
from tests.superglue import write_superglue

#: Modules that say that they ran.
MODEL = """
open({marker!r}, "a").write("model ")
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
class Config(LlamaConfig):
    model_type = "theirs"
class Model(LlamaForCausalLM):
    config_class = Config
class Classifier(LlamaForSequenceClassification):
    pass
"""
TOKENIZER = """
open({marker!r}, "a").write("tokenizer ")
from transformers import PreTrainedTokenizerFast
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def named_in(folder):
    """All that JSON files of checkpoints in and below a folder name as code."""
    found = []
    for file in folder.rglob("*.json"):
        found += re.findall(r'"(?:auto_map|custom_pipelines)": \{[^}]*\}', file.read_text())
    return found


@pytest.fixture
def marker(load, tmp_path):
    """A file that is there as soon as code of others has run, with the cache of modules that `load` has."""
    return tmp_path / "ran"


@pytest.fixture
def theirs(marker, tmp_path, tiny_checkpoint):
    """A Llama whose files name code in all ways: beside them, in another folder, on the Hub."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "theirs")
    (folder / "modeling_theirs.py").write_text(MODEL.format(marker=str(marker)))
    (folder / "tokenization_theirs.py").write_text(TOKENIZER.format(marker=str(marker)))
    away = shutil.copytree(folder, tmp_path / "away")
    names = {
        "AutoConfig": "modeling_theirs.Config",
        "AutoModelForCausalLM": "modeling_theirs.Model",
        "AutoModelForSequenceClassification": f"{away}--modeling_theirs.Classifier",
        "AutoModel": "nobody/nothing--modeling_theirs.Model",
    }
    pipelines = {"tell": {"impl": "modeling_theirs.Model", "pt": ["AutoModelForCausalLM"], "type": "text"}}
    edit(folder / "config.json", auto_map=names, custom_pipelines=pipelines)
    edit(folder / "generation_config.json", auto_map=names)
    reference = f"{away}--tokenization_theirs.Tokenizer"
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [reference, reference]})
    return folder


@pytest.mark.parametrize("options", [{"kind": "drop"}, {"kind": "affine"}], ids=["drop", "affine"])
def test_linearize_writes_no_code_of_others(options, theirs, marker, reload_here, text_file, tmp_path):
    out = tmp_path / "out"
    conftest.linearize(
        theirs, text_file, blocks=[1], max_tokens=640, seq_len=32, folds=2, device="cpu", out=out, **options
    )
    assert {file.name for file in out.glob("*.py")} == (set(FILES) if options["kind"] == "affine" else set())
    for entry in named_in(out):
        assert set(re.findall(r'"(\w+)\.\w+"', entry)) == {"modeling_rectilinear"}, entry
    card = (out / "README.md").read_text()
    assert ("trust_remote_code=True" in card) == ("code of Rectilinear" in card) == (options["kind"] == "affine")
    AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert not marker.exists()


def test_a_model_that_was_loaded_before_takes_no_names_along(theirs, marker, reload_here, text_file, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(theirs)
    options = {"max_tokens": 640, "seq_len": 32, "tokenizer": AutoTokenizer.from_pretrained(theirs)}
    conftest.linearize(model, text_file, kind="drop", blocks=[1], out=tmp_path / "out", **options)
    assert named_in(tmp_path / "out") == []
    assert not marker.exists()


def pretrain(text, tokenizer, out, **corpus):
    recipe = Recipe(preset="mistral-1m", max_steps=2, batch_size=2, gradient_accumulation=1, device="cpu")
    monitoring = Monitoring(probe_every=0, save_every=1)
    return rectilinear.pretrain(
        text,
        recipe,
        Corpus(tokenizer=str(tokenizer), seq_len=16, **corpus),
        out=out,
        monitoring=monitoring,
        progress=False,
    )


def test_pretrain_writes_no_code_of_others(theirs, marker, text_file, tmp_path):
    pretrain(text_file, theirs, tmp_path / "out")
    assert list((tmp_path / "out").glob("checkpoint-*/tokenizer_config.json"))
    assert named_in(tmp_path / "out") == []
    assert list((tmp_path / "out").rglob("*.py")) == []
    assert not marker.exists()


def test_pretrain_takes_the_code_of_a_trusted_tokenizer_along(theirs, marker, text_file, tmp_path):
    out = tmp_path / "out"
    pretrain(text_file, theirs, out, trust_remote_code=True)
    assert "tokenizer" in marker.read_text()
    for folder in (out, *out.glob("checkpoint-*")):
        assert (folder / "tokenization_theirs.py").exists()
        assert set(re.findall(r'"([^"]*--)?(\w+)\.\w+"', "".join(named_in(folder)))) == {("", "tokenization_theirs")}
    card = (out / "README.md").read_text()
    assert f"`tokenization_theirs.py` came with `{theirs.name}`, and not from Rectilinear" in card
    assert "from_pretrained(place, trust_remote_code=True)" in card
    shutil.rmtree(theirs)
    assert type(AutoTokenizer.from_pretrained(out, trust_remote_code=True)).__name__ == "Tokenizer"


@pytest.fixture
def superglue(tmp_path):
    return str(write_superglue(tmp_path / "superglue"))


def finetune(model, data, out, **options):
    tuning = Tuning(
        data=data, seeds=1, max_steps=1, batch_size=2, dtype="float32", device="cpu", save_models=True, **options
    )
    return rectilinear.finetune(model, "cb", tuning, Profiling(seq_len=48, max_tokens=96), out=out, progress=False)


def test_finetune_writes_no_code_of_others(theirs, marker, superglue, tmp_path):
    finetune(theirs, superglue, tmp_path / "out")
    folder = tmp_path / "out" / "seed-0"
    assert named_in(folder) == []
    assert list(folder.glob("*.py")) == []
    assert "trust_remote_code" not in (folder / "README.md").read_text()
    assert not marker.exists()


def test_finetune_takes_trusted_code_along(theirs, marker, superglue, tmp_path):
    edit(theirs / "config.json", auto_map={"AutoModelForSequenceClassification": "modeling_theirs.Classifier"})
    finetune(theirs, superglue, tmp_path / "out", trust_remote_code=True)
    folder = tmp_path / "out" / "seed-0"
    names = set(re.findall(r'"([^"]*--)?(\w+)\.\w+"', "".join(named_in(folder))))
    assert names == {("", "modeling_theirs"), ("", "tokenization_theirs")}
    assert {file.name for file in folder.glob("*.py")} == {"modeling_theirs.py", "tokenization_theirs.py"}
    assert "`modeling_theirs.py`, `tokenization_theirs.py` came with `theirs`" in (folder / "README.md").read_text()


def test_linearize_takes_trusted_code_along(theirs, marker, reload_here, text_file, tmp_path):
    out = tmp_path / "out"
    options = {"max_tokens": 640, "seq_len": 32, "device": "cpu", "trust_remote_code": True}
    edit(theirs / "config.json", model_type="theirs")
    conftest.linearize(theirs, text_file, kind="drop", blocks=[1], out=out, **options)
    assert "came with `theirs`, and not from Rectilinear" in (out / "README.md").read_text()
    shutil.rmtree(theirs)
    marker.unlink()
    assert type(AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)).__name__ == "Model"
    assert marker.read_text() == "model "


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("kind", ["llama", "theirs"])
def test_nothing_of_others_runs_without_trust(load, kind, theirs, marker):
    edit(theirs / "config.json", model_type=kind)
    if kind == "theirs" and load is load_model:
        with pytest.raises(RequestError, match="if you trust it, try `trust_remote_code`"):
            load(theirs)
    else:
        load(theirs)
    assert not marker.exists()


def test_entries_that_lead_out_of_the_folder_go(tmp_path):
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "sub"):
        (place / "code.py").write_text("")
    kept = {"a": "code.A", "b": [None, "code.B"]}
    gone = {"c": "../code.A", "d": "sub.code.A", "e": "me/it--code.A", "f": ["code.A", "none.B"], "g": None, "h": 3}
    inner = {"text_config": {"auto_map": gone, "size": 3}, "list": [{"auto_map": ["x.Y", None]}]}
    (folder / "config.json").write_text(json.dumps({"auto_map": {**kept, **gone}, "custom_pipelines": 3, **inner}))
    drop_absent_code(folder)
    expected = {"auto_map": kept, "text_config": {"size": 3}, "list": [{}]}
    assert json.loads((folder / "config.json").read_text()) == expected


def test_code_that_only_has_the_names_of_ours_is_not_called_ours(exported, tmp_path):
    folder = shutil.copytree(exported("llama", (1,), kind="affine"), tmp_path / "out")
    assert "code of Rectilinear" in describe_code(folder, "me/it")
    (folder / FILES[0]).write_text("import os\n")
    assert "code of Rectilinear" not in describe_code(folder, "me/it")
    assert "came with `me/it`" in describe_code(folder, "me/it")


class Running:
    """What a pickle runs as it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def test_weights_in_pickles_run_nothing(tiny_checkpoint, marker, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    state = build_llama().state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(folder, Loading(device="cpu"))
    torch.save({**state, "extra": Running(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match="cannot load the model"):
        load_model(folder, Loading(device="cpu"))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Running(marker)))
    assert marker.exists()


def test_adapters_in_pickles_run_nothing(tiny_checkpoint, marker, tmp_path):
    peft = pytest.importorskip("peft")
    folder = tmp_path / "adapter"
    adapted = peft.get_peft_model(build_llama(), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(folder, safe_serialization=False)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(tiny_checkpoint), task_type="CAUSAL_LM")
    file = folder / "adapter_model.bin"
    torch.save({**torch.load(file, weights_only=True), "extra": Running(marker)}, file)
    with pytest.raises(RequestError, match="cannot load the adapter"):
        load_model(folder, Loading(device="cpu"))
    assert not marker.exists()


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_of_the_hub_for_a_part_of_a_model_needs_trust(name, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "kernel")
    edit(folder / "config.json", **{name: "somebody/kernel"})
    with pytest.raises(RequestError, match=r"is code on the Hub \(somebody/kernel\); if you trust it"):
        load_model(folder, Loading(device="cpu"))
