"""Commands print and write what the functions give, in the form that other programs read."""

import json
import os
import re
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from itertools import pairwise

import pytest
import torch

import rectilinear
from rectilinear.cli.main import COMMANDS, main
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.report.write import write_result
from rectilinear.settings import in_flags
from rectilinear.text.settings import Rows
from tests.conftest import build_llama

SIZE = ("--max-tokens", 2050, "--seq-len", 32, "--device", "cpu", "--batch-size", 16)
LINEARITY = {"in_sample", "adjusted", "held_out", "stderr", "interval"}


def measure_as_a_function(checkpoint, text, **options):
    """What the command measures; options are fields of its settings."""
    options |= {"max_tokens": 2050, "seq_len": 32, "device": "cpu"}
    measurement, rows, loading = (
        settings(**{name: options[name] for name in settings.model_fields.keys() & options})
        for settings in (Measurement, Rows, Loading)
    )
    return rectilinear.measure(str(checkpoint), str(text), measurement, rows=rows, loading=loading, batch_size=16)


@pytest.fixture(scope="module")
def measured(process, tiny_checkpoint, text_file, tmp_path_factory):
    """What a real process printed, and the folder it wrote."""
    out = tmp_path_factory.mktemp("measured") / "new" / "profile"
    return process("measure", tiny_checkpoint, "--text", text_file, *SIZE, "--out", out), out


@pytest.fixture(scope="module")
def written(measured):
    return json.loads((measured[1] / "profile.json").read_text(encoding="utf-8"))


def test_help_of_the_program(process):
    ran = process("--help")
    assert (ran.code, ran.err) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"^│ {name} +[A-Z]", ran.out, re.M)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_of_a_command_has_an_example(command, name, option):
    ran = command(name, option)
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: rectilinear {name}" in ran.out


def test_help_imports_nothing_heavy(environment):
    """Help is there at once: without torch, which takes seconds, and all that is built on it."""
    program = (
        "import sys, runpy\nfrom rectilinear.cli.main import COMMANDS, build\n"
        "for name in COMMANDS:\n    build([name])([name, '--help'])\n"
        "build()(['--help'])\nprint(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", env=environment, timeout=120
    )
    assert ran.returncode == 0
    heavy = {"torch", "transformers", "datasets", "accelerate", "matplotlib", "numpy", "pandas", "pyarrow"}
    assert "rectilinear.cli.measure" in ran.stderr.split()
    assert heavy.isdisjoint(ran.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_in_panels_and_says_nothing_empty(command, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = command(name, "--help")
    panels = re.findall(r"^╭─ ([A-Z][a-z ]+) ─", ran.out, re.M)
    order = ["Model", "Text", "What to do", "Linearity", "Runtime"]
    assert panels == [panel for panel in order if panel in panels]
    assert "Runtime" in panels
    said = " ".join(ran.out.replace("│", " ").split())
    assert not re.search(r"\[default: (None|False|\(\)|)\]", said)
    assert "CHOICE [choices: auto]" not in said
    assert max(map(len, ran.out.splitlines())) <= 80
    [usage, *paragraphs] = ran.out.partition("╭")[0].strip().split("\n\n")
    assert usage.startswith(f"Usage: rectilinear {name}")
    for paragraph in paragraphs:  # filled up to the width: no line is broken where the source's is
        for line, after in pairwise(paragraph.splitlines()):
            assert len(line.rstrip()) + 1 + len(after.split()[0]) > 80


def test_the_shell_completes_commands_and_options(process, environment, tmp_path, monkeypatch):
    monkeypatch.setitem(environment, "HOME", str(tmp_path))
    monkeypatch.setitem(environment, "SHELL", "/bin/bash")
    assert process("--install-completion").code == 0
    [script] = tmp_path.rglob("completions/rectilinear")
    for words, expected in (("mea", "measure"), ("measure --fo", "--folds")):
        program = (
            f"source {script}; COMP_WORDS=(rectilinear {words}); COMP_CWORD={len(words.split())}; "
            "_rectilinear; echo ${COMPREPLY[@]}"
        )
        ran = subprocess.run(["bash", "-c", program], capture_output=True, encoding="utf-8", timeout=60)
        assert ran.stdout.strip() == expected


def test_version(process):
    assert process("--version") == (0, f"rectilinear {rectilinear.__version__}\n", "")


def test_the_installed_program_is_the_same():
    [script] = entry_points(group="console_scripts", name="rectilinear")
    assert script.load() is main


def test_a_warning_about_the_text_is_one_line(process, tiny_checkpoint, documents, tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(json.dumps({"text": document + "\ud83d"}) + "\n" for document in documents))
    ran = process("measure", tiny_checkpoint, "--text", path, *SIZE)
    line = f"rectilinear: warning: {path}, line 1: half a surrogate pair is no character and is read as U+FFFD"
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith(line)


def test_what_libraries_tell_one_another_is_not_shown(command, monkeypatch):
    def telling(arguments):
        warnings.warn("`old` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("odd rows", stacklevel=1)
        return 0

    monkeypatch.setattr("rectilinear.cli.main._run", telling)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        monkeypatch.setattr("warnings.showwarning", lambda message, *place: seen.append(str(message)))
        seen = []
        assert command().code == 0
    assert seen == ["odd rows"]


def test_inspect_shows_the_stack(process, tiny_checkpoint):
    ran = process("inspect", tiny_checkpoint)
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert re.search(r"^blocks +model\.layers$", ran.out, re.M)
    assert re.search(r"^num blocks +3$", ran.out, re.M)
    assert re.search(r"^width +16$", ran.out, re.M)
    assert re.search(r"^architecture +LlamaForCausalLM$", ran.out, re.M)


def test_inspect_needs_no_weights(command, save_checkpoint):
    folder = save_checkpoint(build_llama())
    (folder / "model.safetensors").unlink()
    ran = command("inspect", folder)
    assert ran.code == 0
    assert re.search(r"^num blocks +3$", ran.out, re.M)


def test_inspect_writes_what_it_shows(command, tiny_llama, tiny_checkpoint, tmp_path):
    ran = command("inspect", tiny_checkpoint, "--out", tmp_path / "out")
    assert ran.code == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["inspect.json"]
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert found["schema"] == "rectilinear.inspect/1"
    assert (found["blocks"], found["num_blocks"], found["width"]) == ("model.layers", 3, 16)
    assert found["parameters"] == sum(p.numel() for p in tiny_llama.parameters())


def test_inspect_takes_the_blocks_asked_for(command, tiny_checkpoint):
    ran = command("inspect", tiny_checkpoint, "--blocks", "model.layers")
    assert ran.code == 0
    assert re.search(r"^found by +path$", ran.out, re.M)


def test_measure_writes_three_files_and_nothing_else(measured):
    ran, out = measured
    assert (ran.code, ran.err) == (0, "")
    assert sorted(file.name for file in out.iterdir()) == ["profile.json", "profile.png", "profile.svg"]
    assert [file.name for file in out.parent.iterdir()] == ["profile"]


def test_measure_prints_a_table_and_no_terminal_codes(measured, written):
    ran, out = measured
    assert not re.search(r"[\x1b\r\x08]", ran.out)
    assert "3 blocks of width 16, 2,048 tokens" in " ".join(ran.out.split())
    for block in written["blocks"]:
        scores = [block["linearity"]["in_sample"], block["update_linearity"]["in_sample"]]
        [line] = [x for x in ran.out.splitlines() if re.match(rf"│ +{block['index']} │", x)]
        for score in (*scores, block["identity"]):
            assert f" {score:.4f} " in line
    assert str(out) in ran.out


def test_profile_has_exactly_the_keys_that_others_read(written):
    keys = {"schema", "model", "data", "settings", "environment", "target", "blocks", "parts", "pairs", "warnings"}
    assert written.keys() == keys
    assert written["schema"] == "rectilinear.profile/1"
    model = {"id", "revision", "architecture", "num_blocks", "width", "parameters", "sha256", "own_code"}
    assert written["model"].keys() == model
    assert written["data"].keys() == {"source", "fingerprint", "tokens", "rows", "seq_len", "documents"}
    assert written["environment"].keys() == {"rectilinear", "torch", "transformers", "device", "dtype"}
    assert isinstance(written["settings"], dict)
    assert isinstance(written["warnings"], list)
    without = {
        "tokens",
        "sinks",
        "sinks_by",
        "sink_energy",
        "identity",
        "null_shifted",
        "linearity",
        "update_linearity",
    }
    scores = {"linearity", "update_linearity", "identity", "update_ratio", "cosine", "null", "null_shifted"}
    assert [block["index"] for block in written["blocks"]] == [0, 1, 2]
    for block in written["blocks"]:
        assert block.keys() == {"index", *scores, "without_sinks", "solve"}
        assert block["without_sinks"].keys() == without
        for part in (block, block["without_sinks"]):
            assert part["linearity"].keys() == part["update_linearity"].keys() == LINEARITY
        assert block["solve"].keys() >= {"rank", "condition", "method"}


def test_profile_says_what_was_measured(written, tiny_llama, tiny_checkpoint, text_file):
    assert written["model"]["id"] == str(tiny_checkpoint)
    assert written["model"]["architecture"] == "LlamaForCausalLM"
    assert written["model"]["num_blocks"] == 3
    assert written["model"]["width"] == 16
    assert written["model"]["parameters"] == sum(p.numel() for p in tiny_llama.parameters())
    assert written["data"]["source"] == str(text_file)
    assert [written["data"][key] for key in ("tokens", "rows", "seq_len")] == [2048, 64, 32]
    environment = written["environment"]
    assert (environment["torch"], environment["device"]) == (torch.__version__, "cpu")
    assert environment["dtype"] == "float32"


def test_the_command_equals_the_function(measured, written, tiny_checkpoint, text_file, tmp_path):
    profile = measure_as_a_function(tiny_checkpoint, text_file)
    assert json.loads(profile.to_json()) == written
    write_result(profile, tmp_path)
    assert (tmp_path / "profile.svg").read_bytes() == (measured[1] / "profile.svg").read_bytes()


def test_every_option_reaches_the_function(command, tiny_checkpoint, documents, tmp_path):
    source = tmp_path / "tales.jsonl"
    source.write_text("".join(json.dumps({"text": "no", "tale": text}) + "\n" for text in documents))
    options = {
        "folds": 3,
        "blocks": "model.layers",
        "column": "tale",
        "convention": "paper",
        "products": "float64",
        "dtype": "bfloat16",
        "seed": 5,
        "bos": "row",
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    ran = command("measure", tiny_checkpoint, "--text", source, *SIZE, *flags, "--out", tmp_path / "out")
    assert ran.code == 0
    written = json.loads((tmp_path / "out" / "profile.json").read_text())
    settings = {key: written["settings"].get(key) for key in options if key != "dtype"}
    assert settings == {key: options[key] for key in settings}
    assert written["environment"]["dtype"] == "bfloat16"
    assert written == json.loads(measure_as_a_function(tiny_checkpoint, source, **options).to_json())


def test_without_out_nothing_is_written(command, tiny_checkpoint, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("measure", tiny_checkpoint, "--text", text_file, *SIZE).code == 0
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_printed_and_written(command, tiny_checkpoint, text_file, tmp_path):
    few = ("--max-tokens", 64, "--seq-len", 32, "--device", "cpu")
    ran = command("measure", tiny_checkpoint, "--text", text_file, *few, "--out", tmp_path / "out")
    assert ran.code == 0
    warnings = json.loads((tmp_path / "out" / "profile.json").read_text())["warnings"]
    assert any("64 tokens are fewer than 20 x width 16" in warning for warning in warnings)
    said = " ".join(ran.out.split())
    for warning in warnings:
        assert f"warning: {in_flags(warning)}" in said


def test_overwrite_replaces_results_and_leaves_the_rest(command, tiny_checkpoint, text_file, tmp_path):
    out = tmp_path / "out"
    (out / "figures").mkdir(parents=True)
    for name in ("profile.json", "notes.txt", "figures/old.png"):
        (out / name).write_text("old")
    ran = command("measure", tiny_checkpoint, "--text", text_file, *SIZE, "--out", out, "--overwrite")
    assert ran.code == 0
    assert json.loads((out / "profile.json").read_text())["schema"] == "rectilinear.profile/1"
    assert (out / "profile.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "notes.txt").read_text() == (out / "figures" / "old.png").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_needs_no_overwrite(command, tiny_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    assert command("inspect", tiny_checkpoint, "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "inspect.json").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_is_no_traceback(unbuffered, tiny_checkpoint, environment):
    environment = {**environment, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "rectilinear", "inspect", str(tiny_checkpoint)]
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(arguments, stdout=pipe, stderr=subprocess.PIPE, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (1, b"")
