"""Names of files that are no UTF-8 or have control characters: in messages, results and cards they are escapes."""

import json
import os
import re
import shutil
import unicodedata

import pytest

import rectilinear
from rectilinear import Fitting, Loading, RequestError, Rows
from rectilinear.models.card_metadata import bare_name, write_card
from rectilinear.models.completion import complete
from rectilinear.report.terminal import Terminal, show_table, show_warnings
from rectilinear.tables import Table
from tests.conftest import build_llama

SIZE = ["--max-tokens", "1024", "--seq-len", "32", "--device", "cpu"]

#: Names, and what is shown of them.
NAMES = {b"caf\xe9": r"caf\udce9", b"\x1b[31mred\x07": r"\x1b[31mred\x07", "turn\u202e".encode(): r"turn\u202e"}


def is_plain(text):
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text.replace("\n", ""))


@pytest.fixture(params=NAMES, ids=ascii)
def folder(request, tmp_path):
    """A folder of such a name, and what is shown of the name."""
    path = tmp_path / os.fsdecode(request.param)
    path.mkdir()
    return path, NAMES[request.param]


def test_a_text_and_results_in_such_a_folder(folder, command, tiny_checkpoint, text_file):
    place, shown = folder
    shutil.copy(text_file, place / "tales.txt")
    ran = command("measure", tiny_checkpoint, "--text", place / "tales.txt", *SIZE, "--out", place / "out")
    assert ran.code == 0
    assert "Traceback" not in ran.err
    assert is_plain(ran.out + ran.err)
    assert shown in ran.out.replace("\n", "")
    profile = rectilinear.Profile.load(place / "out" / "profile.json")
    profile.data.source.encode()
    assert is_plain(repr(profile))


def test_a_name_that_is_refused(folder, command, tiny_checkpoint):
    place, shown = folder
    ran = command("measure", tiny_checkpoint, "--text", place / "none.txt", *SIZE)
    assert ran.code == 2
    assert is_plain(ran.err)
    assert shown in ran.err


def test_a_line_of_data_that_is_refused(folder, command, tiny_checkpoint):
    place, _ = folder
    (place / "data.jsonl").write_text('{"\\u001b[2Jtext": 1}\n')
    ran = command("measure", tiny_checkpoint, "--text", place / "data.jsonl", *SIZE)
    assert ran.code == 2
    assert is_plain(ran.err)
    assert r"\x1b[2Jtext" in ran.err


def test_a_model_in_such_a_folder_and_its_card(folder, command, tiny_checkpoint):
    place, shown = folder
    shutil.copytree(tiny_checkpoint, place / "model")
    ran = command("inspect", place / "model", "--out", place / "out")
    assert ran.code == 0
    assert shown in ran.out.replace("\n", "")
    json.loads((place / "out" / "inspect.json").read_text())["id"].encode()
    write_card(place, f"# {bare_name(str(place))}\n")
    assert is_plain((place / "README.md").read_text(encoding="utf-8"))


def test_tables_and_warnings_show_what_steers_a_terminal(capsys):
    console = Terminal(width=100, force_terminal=True)
    show_table(Table.of(["a\x07"], [["\x1b]0;title\x07"]], title="\x1b[2J", caption="\x9b1m"), console)
    show_warnings(["\x1b[31m"], console)
    printed = capsys.readouterr().out
    for shown in (r"a\x07", r"\x1b]0;title\x07", r"\x1b[2J", r"\x9b1m", r"warning: \x1b[31m"):
        assert shown in printed
    assert "\x1b]0" not in printed
    assert "\x1b[2J" not in printed


@pytest.mark.parametrize("name", ["measure", "evaluate", "inspect", "probe"])
def test_a_revision_of_a_path_is_refused(name, command, tiny_checkpoint, text_file):
    more = {"inspect": [], "probe": ["--task", "cb"]}.get(name, ["--text", text_file, *SIZE])
    ran = command(name, tiny_checkpoint, *more, "--revision", "main")
    assert ran.code == 2
    assert f"expected no --revision of {tiny_checkpoint}, which is no Hub id; try without it" in ran.err


def test_a_revision_of_what_is_here_is_refused():
    with pytest.raises(RequestError, match="`revision` of storyteller"):
        rectilinear.measure("storyteller", "stories", loading=Loading(revision="main"))


WRONG = [
    (
        lambda: rectilinear.measure("m", "t", Rows()),
        "Measurement(...) for `measurement`, got Rows; try `rows=Rows(...)`",
    ),
    (lambda: rectilinear.measure("m", "t", rows=Fitting()), "Rows(...) for `rows`, got Fitting"),
    (lambda: rectilinear.dynamics("m", "t", 8), "Measurement(...) for `measurement`, got int"),
    (lambda: rectilinear.linearize("m", "t", None, Rows()), "Selection(...) for `selection`, got Rows"),
    (lambda: rectilinear.evaluate("m", "t", Fitting()), "Evaluating(...) for `evaluating`, got Fitting"),
    (lambda: rectilinear.evaluate_all(["m"], "t", Fitting()), "Evaluating(...) for `evaluating`, got Fitting"),
    (lambda: rectilinear.pretrain("t", Rows(), out="x"), "Recipe(...) for `recipe`, got Rows"),
    (lambda: rectilinear.finetune("m", "cb", Rows()), "Tuning(...) for `tuning`, got Rows"),
    (lambda: rectilinear.probe("m", "cb", Rows()), "Probing(...) for `probing`, got Rows"),
    (lambda: rectilinear.judge("m", "out", Rows()), "Stories(...) for `stories`, got Rows"),
    (
        lambda: rectilinear.LinearityCallback(None, [], measurement=Rows()),
        "Measurement(...) for `measurement`, got Rows",
    ),
]


@pytest.mark.parametrize(("call", "says"), WRONG)
def test_settings_in_a_wrong_place(call, says):
    with pytest.raises(TypeError, match=re.escape(f"expected {says}")):
        call()


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_logits_that_are_not_finite_while_stories_are_written(
    temperature, command, save_checkpoint, text_file, tmp_path
):
    model = build_llama()
    model.lm_head.weight.data[3] = float("nan")
    line = ["--count", "2", "--beginning-words", "5", "--max-new-tokens", "4", "--temperature", temperature]
    ran = command("judge", save_checkpoint(model), "--text", text_file, *line, "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "expected finite logits, got others after" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_finite_logits_are_left_alone(tiny_llama, tiny_tokenizer):
    texts = complete(tiny_llama, tiny_tokenizer, ["The cat"], max_new_tokens=4)
    assert texts == complete(tiny_llama, tiny_tokenizer, ["The cat"], max_new_tokens=4)
