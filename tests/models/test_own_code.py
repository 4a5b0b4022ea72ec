"""The code beside a checkpoint is this package's own to the letter, or is not run."""

import json
import shutil

import pytest

from rectilinear.errors import RequestError
from rectilinear.models.load import load_config
from rectilinear.models.own_code import MODULE, exported_code, own_model_class


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported("llama", (1,), kind="affine"), tmp_path / "checkpoint")


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_own_checkpoints_have_a_class_of_their_own(folder):
    made = own_model_class(str(folder))
    assert made.config_class.model_type == "rectilinear_llama"
    assert (folder / f"{MODULE}.py").read_text() == exported_code(made)


def test_what_the_configuration_points_to_is_not_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('it runs')")
    change(folder, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    assert type(load_config(folder)).model_type == "rectilinear_llama"


@pytest.mark.parametrize("kind", ["rectilinear_", "rectilinear_unheard", "llama", "my_rectilinear_llama"])
def test_other_checkpoints_have_none(kind, folder):
    change(folder, model_type=kind)
    assert own_model_class(str(folder)) is None


def test_other_code_is_refused(folder):
    code = folder / f"{MODULE}.py"
    code.write_text(code.read_text() + " ")
    with pytest.raises(RequestError, match="got other code, perhaps of another version; if you trust what is there"):
        own_model_class(str(folder))
    code.unlink()
    with pytest.raises(RequestError, match="got none; if you trust"):
        own_model_class(str(folder))


@pytest.mark.parametrize("text", ["[1, 2]", "nothing", '"rectilinear_llama"', "{}"])
def test_configurations_that_are_none_are_refused_in_a_line(text, folder):
    (folder / "config.json").write_text(text)
    assert own_model_class(str(folder)) is None
    with pytest.raises(RequestError, match="cannot load the configuration"):
        load_config(folder)
