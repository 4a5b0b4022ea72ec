"""Checkpoints whose code some version of this package wrote load by its own classes; others are not run."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rectilinear import Loading
from rectilinear.errors import RequestError
from rectilinear.models.load import load_config, load_model, load_tokenizer
from rectilinear.models.released_code import FILES, current_code, hash_code, own_model_class, released_versions
from tests.families import token_rows

# As the first version wrote it for Llama; later ones must go on to load such checkpoints.
FIRST = (Path(__file__).parent / "data" / "first_release.py.txt").read_text(encoding="utf-8")


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported("llama", (1,), kind="affine"), tmp_path / "checkpoint")


@pytest.fixture
def first(exported, tmp_path):
    """A checkpoint as the first version wrote it."""
    folder = shutil.copytree(exported("llama", (1,)), tmp_path / "first")
    for file in FILES:
        (folder / file).unlink()
    (folder / FILES[0]).write_text(FIRST, encoding="utf-8")
    names = {"AutoConfig": "RectilinearConfig", "AutoModelForCausalLM": "RectilinearForCausalLM"}
    auto_map = {kind: f"modeling_rectilinear.{name}" for kind, name in names.items()}
    change(folder, auto_map=auto_map, architectures=["RectilinearForCausalLM"])
    return folder


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def logits(model):
    with torch.no_grad():
        return model(token_rows(3), use_cache=False).logits


def test_the_code_of_this_version_is_in_the_table_of_releases():
    assert hash_code(current_code()) in released_versions(), "run: python -m rectilinear.models.released_code"


def test_own_checkpoints_have_a_class_of_their_own(folder):
    made = own_model_class(str(folder))
    assert (made.__name__, made.config_class.model_type) == ("RectilinearLlamaForCausalLM", "rectilinear_llama")
    assert [(folder / file).read_text(encoding="utf-8") for file in FILES] == current_code()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_checkpoints_of_the_first_version_load_as_they_did(ending, first, linearized, load):
    made = linearized("llama", (1,)).model
    assert torch.equal(logits(load(first)), logits(made))  # by the code that it brings along
    (first / FILES[0]).write_bytes(FIRST.replace("\n", ending).encode())
    loaded = load_model(first, Loading(device="cpu"))
    assert type(loaded).__module__ == "rectilinear.models.modeling_rectilinear"
    assert torch.equal(logits(loaded), logits(made))
    assert len(load_tokenizer(first))


def test_checkpoints_of_the_first_version_are_saved_as_those_of_this_one(first, load, tmp_path):
    loaded = load_model(first, Loading(device="cpu"))
    loaded.save_pretrained(tmp_path / "again")
    assert [(tmp_path / "again" / file).read_text(encoding="utf-8") for file in FILES] == current_code()
    assert torch.equal(logits(load(tmp_path / "again")), logits(loaded))


def test_what_the_first_version_wrote_for_any_architecture_is_known(first):
    code = FIRST.replace("transformers.models.llama.", "transformers.models.qwen3.").replace("Llama", "Qwen3")
    (first / FILES[0]).write_text(code, encoding="utf-8")
    assert own_model_class(str(first))


@pytest.mark.parametrize("line", ["import os", "from os import system", "from transformers import os, sys"])
def test_an_edit_of_the_first_version_is_other_code(line, first):
    (first / FILES[0]).write_text(f"{FIRST}{line}\n", encoding="utf-8")
    with pytest.raises(RequestError, match="got other code"):
        own_model_class(str(first))


def test_a_later_version_knows_the_checkpoints_of_this_one(folder, monkeypatch):
    module = "rectilinear.models.released_code"
    later = [text + "# an edit\n" for text in current_code()]
    monkeypatch.setattr(f"{module}.current_code", lambda: later)
    versions = {**released_versions(), hash_code(later): "later"}
    monkeypatch.setattr(f"{module}.released_versions", lambda: versions)
    before = logits(load_model(folder, Loading(device="cpu")))
    for file, text in zip(FILES, later, strict=True):
        (folder / file).write_text(text, encoding="utf-8")
    assert torch.equal(logits(load_model(folder, Loading(device="cpu"))), before)


def test_the_table_is_brought_up_to_date(tmp_path, monkeypatch):
    from rectilinear.models import released_code

    table = tmp_path / "table.json"
    table.write_text('{"abc": "0"}')
    monkeypatch.setattr(released_code, "_TABLE", table)
    for _ in range(2):
        released_code.main()
        assert [*json.loads(table.read_text())] == ["abc", hash_code(current_code())]


def test_what_the_configuration_points_to_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('it runs')")
    change(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert type(load_config(folder)).model_type == "rectilinear_llama"
    load_model(folder, Loading(device="cpu"))


@pytest.mark.parametrize("kind", ["rectilinear_", "rectilinear_unheard", "llama", "my_rectilinear_llama"])
def test_other_checkpoints_have_none(kind, folder):
    change(folder, model_type=kind)
    assert own_model_class(str(folder)) is None


@pytest.mark.parametrize("file", FILES)
def test_other_code_is_refused(file, folder):
    code = folder / file
    code.write_text(code.read_text() + " ")
    with pytest.raises(RequestError, match="got other code, perhaps of a later version; if you trust what is there"):
        own_model_class(str(folder))
    code.unlink()
    with pytest.raises(RequestError, match=r"got (none|other code.*); if you trust"):
        own_model_class(str(folder))


@pytest.mark.parametrize("text", ["[1, 2]", "nothing", '"rectilinear_llama"', "{}"])
def test_configurations_that_are_none_are_refused_in_a_line(text, folder):
    (folder / "config.json").write_text(text)
    assert own_model_class(str(folder)) is None
    with pytest.raises(RequestError, match=r"cannot load the configuration|expected a JSON object"):
        load_config(folder)
