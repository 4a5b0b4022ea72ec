"""``rectilinear evaluate`` prints and writes what the function gives."""

import json
import re
import shutil
from itertools import pairwise
from types import MappingProxyType

import pytest
import torch

import rectilinear
from rectilinear import Evaluating, Probing
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from tests.conftest import build_llama
from tests.superglue import write_superglue

SIZE = ("--max-tokens", 1024, "--seq-len", 32, "--device", "cpu", "--batch-size", 8)


NOTHING = MappingProxyType({})


def evaluate_as_a_function(checkpoint, text, against=None, speed=True, rows=NOTHING, loading=NOTHING):
    return rectilinear.evaluate(
        str(checkpoint),
        str(text),
        Evaluating(batch_size=8, speed=speed),
        against=against,
        rows=Rows(max_tokens=1024, seq_len=32, **rows),
        loading=Loading(device="cpu", **loading),
    )


def without_times(written):
    """What two runs agree on; asserts that the rest was measured."""
    for part in (written, written.get("against"), written.get("differences")):
        if part:
            speed = part.pop("tokens_per_second")
            assert min(speed["prefill"], speed["decode"]) > 0
    return written


@pytest.fixture(scope="module")
def other_checkpoint(save_checkpoint):
    return save_checkpoint(build_llama(blocks=2, seed=1), "other")


@pytest.fixture(scope="module")
def evaluated(process, tiny_checkpoint, other_checkpoint, text_file, tmp_path_factory):
    """What a real process printed, and the folder it wrote."""
    out = tmp_path_factory.mktemp("evaluated") / "new" / "evaluation"
    models = (tiny_checkpoint, "--against", other_checkpoint)
    return process("evaluate", *models, "--text", text_file, *SIZE, "--out", out), out


@pytest.fixture(scope="module")
def written(evaluated):
    return json.loads((evaluated[1] / "evaluation.json").read_text(encoding="utf-8"))


def test_it_writes_one_file_and_nothing_else(evaluated):
    ran, out = evaluated
    assert (ran.code, ran.err) == (0, "")
    assert [file.name for file in out.iterdir()] == ["evaluation.json"]
    assert [file.name for file in out.parent.iterdir()] == ["evaluation"]


def test_it_prints_a_table_and_no_terminal_codes(evaluated, written):
    ran, out = evaluated
    assert not re.search(r"[\x1b\r\x08]", ran.out)
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line[:1] == "│"]
    shown = {name: cells for name, *cells in lines}
    both = (written, written["against"])
    ratio = f"x {written['differences']['perplexity_ratio']:.3f}"
    assert shown["perplexity"] == [*(f"{part['perplexity']:.4g}" for part in both), ratio]
    assert shown["parameters"][:2] == [f"{part['parameters']:,}" for part in both]
    assert shown["cache bytes"] == [*(f"{part['cache_bytes']:,}" for part in both), "x 1.500"]
    assert shown.keys() >= {"loss (nats a token)", "prefill tokens/s", "decode tokens/s"}
    assert str(out) in ran.out


def test_the_command_equals_the_function(written, tiny_checkpoint, other_checkpoint, text_file):
    evaluation = evaluate_as_a_function(tiny_checkpoint, text_file, against=str(other_checkpoint))
    assert without_times(json.loads(evaluation.to_json())) == without_times(json.loads(json.dumps(written)))


def test_every_option_reaches_the_function(command, tiny_checkpoint, documents, tmp_path):
    source = tmp_path / "tales.jsonl"
    source.write_text("".join(json.dumps({"text": "no", "tale": text}) + "\n" for text in documents))
    options = {
        "column": "tale",
        "dtype": "bfloat16",
        "seed": 5,
    }
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    ran = command("evaluate", tiny_checkpoint, "--text", source, *SIZE, *flags, "--no-speed", "--out", tmp_path / "out")
    assert ran.code == 0
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    settings = {key: written["settings"].get(key) for key in options if key != "dtype"}
    assert settings == {key: options[key] for key in settings}
    assert written["environment"]["dtype"] == "bfloat16"
    loading = {name: options.pop(name) for name in ("dtype",)}
    found = evaluate_as_a_function(tiny_checkpoint, source, speed=False, rows=options, loading=loading)
    assert written == json.loads(found.to_json())


def test_without_against_and_speed_the_table_is_short(command, tiny_checkpoint, text_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = command("evaluate", tiny_checkpoint, "--text", text_file, *SIZE, "--no-speed")
    assert (ran.code, ran.err) == (0, "")
    names = [line.strip("│").split("│")[0].strip() for line in ran.out.splitlines() if line[:1] == "│"]
    assert names == ["perplexity", "loss (nats a token)", "parameters"]
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write(command, tiny_checkpoint, text_file, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rectilinear.Evaluation.save", full)
    ran = command("evaluate", tiny_checkpoint, "--text", text_file, *SIZE, "--no-speed", "--out", tmp_path / "out")
    assert ran.code == 1
    assert ran.err == f"rectilinear: error: cannot write to {tmp_path / 'out'}: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tasks_of_two_models(process, tiny_checkpoint, other_checkpoint, tmp_path):
    data = write_superglue(tmp_path / "superglue", train=6, validation=10)
    asked = ("--tasks", "superglue,wsc", "--data", data, "--limit", 8, "--num-fewshot", 1)
    ran = process("evaluate", tiny_checkpoint, "--against", other_checkpoint, *asked, "--out", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["data"] is None
    assert [written["settings"][name] for name in ("limit", "num_fewshot")] == [8, 1]
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line[:1] == "│"]
    shown = {cells[0]: cells for cells in lines}
    for task in ("wsc", "boolq", "copa"):
        ours, theirs = (part["tasks"][task]["metrics"]["acc"] for part in (written, written["against"]))
        between = written["differences"]["tasks"][task]["acc"]
        assert between["value"] == pytest.approx(ours["value"] - theirs["value"])
        assert shown[task][1:4] == ["8", "acc", f"{ours['constant']:.4f}"]
        assert shown[task][4].startswith(f"{ours['value']:.4f} ±")
        assert shown[task][6].startswith(f"{between['value']:+.4f} ±")
    means = [part["groups"]["superglue"]["metrics"]["mean"]["value"] for part in (written, written["against"])]
    assert written["differences"]["groups"]["superglue"]["mean"]["value"] == pytest.approx(means[0] - means[1])
    assert shown["superglue"][2:5:2] == ["mean", f"{means[0]:.4f} ± {written_error(written):.4f}"]
    assert "no data of record, xstorycloze_en" in ran.out


def written_error(written):
    return written["groups"]["superglue"]["metrics"]["mean"]["stderr"]


@pytest.fixture(scope="module")
def several(process, tiny_checkpoint, other_checkpoint, text_file, tmp_path_factory):
    """What a real process made of two models against one of them, with a probe of it."""
    folder = tmp_path_factory.mktemp("several")
    data = write_superglue(folder / "superglue", train=20, validation=10)
    probing = Probing(data=str(data), folds=2, seq_len=64)
    rectilinear.probe(str(other_checkpoint), "cb", probing).save(folder / "probed")
    asked = ("--text", text_file, *SIZE, "--tasks", "copa", "--data", data, "--include", folder / "probed")
    models = (tiny_checkpoint, other_checkpoint, "--against", tiny_checkpoint)
    return process("evaluate", *models, *asked, "--out", folder / "out"), folder / "out"


@pytest.mark.slow
def test_several_models_have_a_file_each(several, tiny_checkpoint, other_checkpoint):
    ran, out = several
    assert (ran.code, ran.err) == (0, "")
    names = [tiny_checkpoint.name, other_checkpoint.name]
    assert sorted(folder.name for folder in out.iterdir()) == sorted(names)
    ours, other = (json.loads((out / name / "evaluation.json").read_text()) for name in names)
    assert (ours["model"]["id"], other["model"]["id"]) == (str(tiny_checkpoint), str(other_checkpoint))
    assert (ours["probes"], [*other["probes"]]) == ({}, ["cb"])
    assert ours["against"] == other["against"]


@pytest.mark.slow
def test_several_models_stand_side_by_side(several, tiny_checkpoint, other_checkpoint):
    ran, out = several
    other = json.loads((out / other_checkpoint.name / "evaluation.json").read_text())
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line[:1] == "│"]
    below = {before[0]: (before, after) for before, after in pairwise(lines) if not after[0]}
    (_, *numbers), (_, *changes) = below["loss (nats a token)"]
    assert numbers[2] == f"{other['loss']:.4f} ± {other['stderr']:.4f}"
    assert changes[0] == ""
    assert changes[1] == "+0.0000 ± 0.0000"
    assert changes[2].startswith(f"{other['differences']['loss']:+.4f} ± ")
    shown = {line[0]: line for line in lines}
    accuracy = other["tasks"]["copa"]["metrics"]["acc"]["value"]
    assert shown["copa"][1:3] == ["10", "acc"]
    assert shown["copa"][6].startswith(f"{accuracy:.4f} ± ")
    assert shown["probe of cb"][4:6] == ["-", "-"]
    assert "below each number the difference" in ran.out
    headings = next(line for line in ran.out.splitlines() if line[:1] == "┃")
    assert f"{tiny_checkpoint.name}-2" in headings  # the one that the others stand against


def test_what_is_done_is_kept_where_a_later_model_fails(command, tiny_checkpoint, save_checkpoint, text_file, tmp_path):
    broken = build_llama(seed=2)
    with torch.no_grad():
        broken.lm_head.weight[5, 5] = float("nan")
    models = (tiny_checkpoint, save_checkpoint(broken, "broken"))
    ran = command("evaluate", *models, "--text", text_file, *SIZE, "--no-speed", "--out", tmp_path / "out")
    assert ran.code == 1
    assert "expected a finite loss" in ran.err
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [tiny_checkpoint.name]
    assert "loss (nats a token)" in ran.out
    assert f"wrote evaluation.json to {tmp_path / 'out' / tiny_checkpoint.name}\n" in ran.out


def test_the_same_command_goes_on_with_the_models_that_are_missing(
    command, tiny_checkpoint, other_checkpoint, text_file, tmp_path
):
    out = tmp_path / "out"
    asked = ("evaluate", tiny_checkpoint, other_checkpoint, "--text", text_file, *SIZE, "--no-speed", "--out", out)
    assert command(*asked).code == 0
    first, second = (out / model.name / "evaluation.json" for model in (tiny_checkpoint, other_checkpoint))
    before = [file.read_bytes() for file in (first, second)]
    kept = first.stat().st_mtime_ns
    shutil.rmtree(second.parent)
    ran = command(*asked)
    assert (ran.code, ran.err) == (0, "")
    assert first.stat().st_mtime_ns == kept  # not run again
    assert [file.read_bytes() for file in (first, second)] == before
    assert ran.out.count("loss (nats a token)") == 1
    ran = command(*asked, "--limit", 3)
    assert ran.code == 2
    ran = command(*asked[:-3], "--speed", "--out", out)
    assert ran.code == 2
    assert f"expected the request of the run in {first.parent} to resume it, got another" in ran.err
    assert "speed False -> True" in ran.err
    build_llama(seed=5).save_pretrained(other_checkpoint)
    ran = command(*asked)
    build_llama(blocks=2, seed=1).save_pretrained(other_checkpoint)
    assert ran.code == 2
    assert f"{second.parent} is of other weights than {other_checkpoint} has now" in ran.err
    (out / "notes.txt").write_text("mine")
    ran = command(*asked)
    assert (ran.code, (out / "notes.txt").read_text()) == (2, "mine")
    assert "is not empty" in ran.err


def test_an_interrupt_says_how_to_go_on(command, tiny_checkpoint, other_checkpoint, text_file, tmp_path, monkeypatch):
    from rectilinear.evaluation.run import Job

    evaluated = []

    def stop_at_the_second(*arguments):
        if evaluated:
            raise KeyboardInterrupt
        evaluated.append(arguments)
        return run_model(*arguments)

    run_model = Job.run_model
    monkeypatch.setattr(Job, "run_model", stop_at_the_second)
    models = (tiny_checkpoint, other_checkpoint)
    ran = command("evaluate", *models, "--text", text_file, *SIZE, "--no-speed", "--out", tmp_path / "out")
    assert ran.code == 130
    says = f"{tmp_path / 'out'} keeps the models that are done; to go on, run the same command again\n"
    assert ran.err == f"rectilinear: interrupted, {says}"
    assert "loss (nats a token)" in ran.out
