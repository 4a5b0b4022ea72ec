"""Models with adapters of PEFT are what they compute: merged, in a copy, with a line that says so."""

import builtins
import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rectilinear
from rectilinear import Evaluating, Judging, Loading, Probing, Rows, Stories
from rectilinear.errors import RequestError
from rectilinear.linearization.kinds import KINDS
from rectilinear.models.load import load_classifier, load_config, load_model, load_tokenizer
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.origin import Origin
from tests import conftest
from tests.conftest import build_llama
from tests.families import token_rows
from tests.superglue import write_superglue

peft = pytest.importorskip("peft")

LORA = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture
def adapted(tiny_checkpoint):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(load_model(tiny_checkpoint, Loading(device="cpu")), peft.LoraConfig(**LORA)).eval()


@pytest.fixture
def folder(adapted, tmp_path):
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model):
    with torch.no_grad():
        return model(token_rows(3), use_cache=False).logits


def assert_same(model, other):
    expected = logits(other)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def layers_of(model):
    return [module for module in model.modules() if "lora" in type(module).__module__]


def test_a_model_in_memory_is_merged_in_a_copy(adapted, tiny_checkpoint):
    before, weights = logits(adapted), {name: value.clone() for name, value in adapted.state_dict().items()}
    origin = Origin(adapted)
    merged = origin.load()
    assert (type(merged).__name__, layers_of(merged)) == ("LlamaForCausalLM", [])
    assert_same(merged, adapted)
    assert float((logits(merged) - logits(load_model(tiny_checkpoint, Loading(device="cpu")))).abs().max()) > 0.1
    assert loading_warnings(merged) == ["the model's adapters were merged into a copy of its weights"]
    assert origin.name == str(tiny_checkpoint)
    assert Origin(merged).load() is merged
    assert layers_of(adapted)
    assert torch.equal(logits(adapted), before)
    assert all(torch.equal(value, weights[name]) for name, value in adapted.state_dict().items())


@pytest.mark.parametrize("way", ["peft", "transformers"])
def test_peft_adapters_that_are_put_into_a_model_are_merged_too(way, adapted, folder, tiny_checkpoint):
    model = load_model(tiny_checkpoint, Loading(device="cpu"))
    if way == "transformers":
        pytest.importorskip("peft.utils.transformers_weight_conversion")  # transformers needs it for this
        model.load_adapter(str(folder))
    else:
        peft.inject_adapter_in_model(peft.LoraConfig(**LORA), model)
        state = adapted.state_dict().items()
        model.load_state_dict({name.removeprefix("base_model.model."): value for name, value in state})
        model.eval()
    merged = Origin(model).load()
    assert not layers_of(merged)
    assert layers_of(model)
    assert_same(merged, adapted)
    merged.save_pretrained(folder.parent / "merged")
    assert_same(load_model(folder.parent / "merged", Loading(device="cpu")), adapted)


def test_a_folder_is_loaded_and_merged(adapted, folder, tiny_checkpoint):
    loaded = load_model(folder, Loading(device="cpu"), head=True)
    assert (type(loaded).__name__, layers_of(loaded), loaded.training) == ("LlamaForCausalLM", [], False)
    assert_same(loaded, adapted)
    (line,) = loading_warnings(loaded)
    assert line == f"the adapter {folder} (LORA) was merged into the weights of {tiny_checkpoint}"
    assert load_config(folder).to_dict() == load_config(tiny_checkpoint).to_dict()
    assert load_tokenizer(folder)("The cat")["input_ids"] == load_tokenizer(tiny_checkpoint)("The cat")["input_ids"]
    classifier = load_classifier(folder, ["no", "yes"], 0)
    assert torch.equal(classifier.model.layers[0].mlp.down_proj.weight, loaded.model.layers[0].mlp.down_proj.weight)


def test_an_adapter_s_own_tokenizer_comes_first(folder, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/none"}))
    assert load_tokenizer(folder)("The cat")["input_ids"] == tiny_tokenizer("The cat")["input_ids"]


def test_an_edited_copy_does_not_touch_what_was_given(adapted, text_file, tiny_tokenizer):
    options = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32}
    before = logits(adapted)
    made = conftest.linearize(adapted, text_file, kind="affine", blocks=[1], **options)
    assert type(made.model).__name__ == "RectilinearLlamaForCausalLM"
    assert torch.equal(logits(adapted), before)


def merged_by_peft(adapted):
    return copy.deepcopy(adapted).merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_replacement_takes_adapters(kind, adapted, text_file, tiny_tokenizer):
    target = next(each for each in ("block", "attention") if each not in KINDS[kind].impossible)
    small = {"window": 3} if "window" in KINDS[kind].model_fields else {}  # for rows as short as these
    rows = {"tokenizer": tiny_tokenizer, "max_tokens": 640, "seq_len": 32}
    options = {"kind": kind, "target": target, "blocks": [1], **small, **rows}
    made, expected = (
        conftest.linearize(model, text_file, **options).model for model in (adapted, merged_by_peft(adapted))
    )
    assert type(made) is type(expected)
    assert_same(made, expected)


def test_what_is_measured_of_adapted_models_is_of_the_merged_ones(adapted, text_file, tiny_tokenizer, tmp_path):
    data = write_superglue(tmp_path)
    found = []
    for model in (adapted, merged_by_peft(adapted)):
        options = {"rows": Rows(max_tokens=640, seq_len=32), "tokenizer": tiny_tokenizer, "progress": False}
        profile = rectilinear.measure(model, text_file, **options)
        asked = Evaluating(tasks=["copa"], data=data, limit=8, speed=False)
        evaluation = rectilinear.evaluate(model, text_file, asked, **options)
        probing = Probing(data=data, seq_len=64, folds=2)
        probe = rectilinear.probe(model, "cb", probing, tokenizer=tiny_tokenizer, progress=False)
        scores = [block.update_linearity.in_sample for block in profile.blocks]
        found.append([*scores, evaluation.loss, evaluation.tasks["copa"].metrics["acc"].value])
        results = (profile, evaluation, probe)
        lines = [any("adapters were merged" in line for line in result.warnings) for result in results]
        assert lines == [model is adapted] * 3
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_stories_of_an_adapter_say_so(folder, text_file, tmp_path):
    stories = Stories(text=str(text_file), count=2, beginning_words=10, max_new_tokens=8)
    for resume in (False, True):
        judging = Judging(reference=str(folder))
        report = rectilinear.judge(str(folder), tmp_path / "out", stories, judging, resume=resume, progress=False)
        merged = [line for line in report.warnings if "was merged into the weights" in line]
        assert [line.startswith(f"{folder}: ") for line in merged] == [False, True]


def test_peft_adapters_that_are_no_change_of_weights_are_refused():
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(RequestError, match="expected adapters that can be merged, got PeftModelForCausalLM"):
        Origin(peft.get_peft_model(build_llama(), prompts))


def change(**changes):
    def edit(folder):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))

    return edit


BROKEN = {
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "cannot load the adapter"),
    "no base": (change(base_model_name_or_path=None), "expected base_model_name_or_path in adapter_config.json"),
    "a base that is gone": (change(base_model_name_or_path="/none/at/all"), "no model at /none/at/all"),
    "an unknown kind": (change(peft_type="MAGIC"), "cannot load the adapter"),
}


def test_an_adapter_that_lacks_weights_is_said(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert any("missing adapter keys" in line for line in loading_warnings(load_model(folder, Loading(device="cpu"))))


@pytest.mark.parametrize("how", BROKEN)
def test_what_cannot_be_loaded_is_refused_in_a_line(how, folder):
    edit, message = BROKEN[how]
    edit(folder)
    with pytest.raises(RequestError, match=message) as caught:
        load_model(folder, Loading(device="cpu"))
    assert "\n" not in str(caught.value)


def test_without_peft_it_is_said_what_to_install(folder, monkeypatch):
    original = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] == "peft":
            raise ImportError(name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"expected peft for the adapter .*, got none; try pip install peft"):
        load_model(folder, Loading(device="cpu"))


def test_other_modules_are_taken_as_they_are():
    module = nn.Linear(2, 2)
    assert Origin(module).load() is module
