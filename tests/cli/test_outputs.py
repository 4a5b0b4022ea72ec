"""Folders for results that hold something else: nothing is read and written at once, nothing of others is lost."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

TEXT = ("--max-tokens", 600, "--seq-len", 16, "--device", "cpu")


@pytest.fixture
def model(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def held(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


COMMANDS = {
    "inspect": ("inspect", "{model}"),
    "measure": ("measure", "{model}", "--text", "{text}"),
    "dynamics": ("dynamics", "{model}", "{model}", "--text", "{text}"),
    "evaluate": ("evaluate", "{model}", "--text", "{text}"),
    "evaluate against": ("evaluate", "{other}", "--against", "{model}", "--text", "{text}"),
    "probe": ("probe", "{model}", "--task", "cb", "--data", "{text}"),
    "linearize": ("linearize", "{model}", "--text", "{text}", "--kind", "drop", "--blocks", "1"),
    "finetune": ("finetune", "{model}", "--task", "cb", "--data", "{text}"),
    "judge": ("judge", "{model}", "--text", "{text}"),
    "pretrain": ("pretrain", "--text", "{model}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_folder_of_what_is_read_is_refused(name, model, tiny_checkpoint, text_file, command, tmp_path):
    before = held(model)
    link = tmp_path / "link"
    link.symlink_to(model)
    for out in (model, link):
        words = [word.format(model=model, other=tiny_checkpoint, text=text_file) for word in COMMANDS[name]]
        ran = command(*words, "--out", out, "--overwrite")
        assert ran.code == 2
        assert f"expected another folder for --out than one that is read, got {out}" in ran.err
        assert held(model) == before


def linearized(command, model, text, out, *more):
    return command("linearize", model, "--text", text, *TEXT, "--kind", "drop", "--blocks", 1, "--out", out, *more)


@pytest.mark.slow
def test_files_of_others_stay(command, tiny_checkpoint, text_file, tmp_path, reload_here):
    out = tmp_path / "out"
    assert linearized(command, tiny_checkpoint, text_file, out).code == 0
    made = held(out)
    others = {"modeling_mine.py": b"mine", "adapter.safetensors": b"mine", "x.safetensors/notes": b"mine"}
    for name, content in others.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    assert linearized(command, tiny_checkpoint, text_file, out, "--overwrite").code == 0
    again = held(out)
    assert {name: again[name] for name in others} == others
    assert again["model.safetensors"] == made["model.safetensors"]


@pytest.mark.slow
def test_parts_of_earlier_weights_go_by_their_index_and_nothing_outside_goes(
    command, tiny_checkpoint, text_file, tmp_path, reload_here
):
    out = shutil.copytree(tiny_checkpoint, tmp_path / "out")
    weights = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    save_file(weights, out / "model-00001-of-00001.safetensors")
    (tmp_path / "mine").write_text("mine")
    parts = {**dict.fromkeys(weights, "model-00001-of-00001.safetensors"), "other": "../mine", "more": 5}
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert linearized(command, tiny_checkpoint, text_file, out, "--overwrite").code == 0
    assert {path.name for path in out.glob("*safetensors*")} == {"model.safetensors"}
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_adapter_would_be_put_onto_what_is_written(command, tiny_checkpoint, text_file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "adapter_config.json").write_text("{}")
    ran = linearized(command, tiny_checkpoint, text_file, out, "--overwrite")
    assert ran.code == 2
    assert "expected a folder without an adapter for --out" in ran.err
    assert held(out) == {"adapter_config.json": b"{}"}


def test_checkpoints_of_another_training_are_not_ours_to_remove(command, text_file, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoint-5").mkdir(parents=True)
    (out / "checkpoint-5" / "model.safetensors").write_text("theirs")
    ran = command("pretrain", "--text", text_file, "--preset", "mistral-1m", "--max-steps", 1, "--vocab-size", 300,
                  "--seq-len", 16, "--batch-size", 4, "--out", out, "--overwrite")  # fmt: skip
    assert ran.code == 2
    assert "expected a folder without checkpoints of another training for --out" in ran.err
    assert held(out) == {"checkpoint-5/model.safetensors": b"theirs"}
