"""A series of checkpoints is what measuring each of them gives, and is refused before any weights are loaded."""

import json
import shutil
import weakref

import pytest
import torch

import rectilinear
from rectilinear import Dynamics, RequestError
from rectilinear.measurement.block_means import Mean
from rectilinear.measurement.dynamics import Point, mean_curve, merge_points
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from tests.conftest import build_llama
from tests.families import token_rows
from tests.report.conftest import block

SIZE = {
    "rows": Rows(max_tokens=2050, seq_len=32),
    "loading": Loading(device="cpu"),
    "batch_size": 16,
}


def save(folder, tokenizer, model=None, *, seed=0, step=None):
    """A checkpoint as Trainer writes it."""
    (model or build_llama(seed=seed)).save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


@pytest.fixture(scope="module")
def run(tiny_tokenizer, tmp_path_factory):
    """The folder of a training: three checkpoints, and its own model, of the last step."""
    folder = tmp_path_factory.mktemp("run")
    for seed, step in enumerate((0, 200, 1000)):
        save(folder / f"checkpoint-{step}", tiny_tokenizer, seed=seed, step=step)
    save(folder, tiny_tokenizer, seed=2, step=1000)
    (folder / "checkpoint-of-mine").mkdir()
    (folder / "checkpoint-7").write_text("not a folder")
    return folder


@pytest.fixture(scope="module")
def measured(run, text_file):
    return rectilinear.dynamics(run, text_file, **SIZE)


@pytest.fixture
def unloaded(monkeypatch):
    """No weights may be loaded."""
    monkeypatch.setattr("rectilinear.models.origin.load_model", lambda *_, **__: pytest.fail("weights were loaded"))


def point(step, *blocks):
    return {"step": step, "source": "x", "revision": None, "sha256": None, "blocks": blocks, "warnings": []}


def test_each_point_is_the_profile_of_its_checkpoint(measured, run, text_file):
    assert [found.step for found in measured.points] == [0, 200, 1000]
    for found in measured.points:
        folder = run / f"checkpoint-{found.step}"
        profile = rectilinear.measure(folder, text_file, **SIZE)
        assert (found.source, found.revision) == (str(folder), profile.model.revision)
        assert found.sha256 == profile.model.sha256
        assert found.blocks == profile.blocks
        assert found.warnings == profile.warnings
        assert measured.data == profile.data
        assert measured.settings == profile.settings
        assert measured.environment == profile.environment
    assert len({found.sha256 for found in measured.points}) == 3
    model = {"id": str(run), "architecture": "LlamaForCausalLM", "num_blocks": 3, "width": 16}
    assert measured.model.model_dump() == {**model, "parameters": profile.model.parameters}
    assert measured.warnings == ()


def test_order_and_ways_to_name_them_change_nothing(measured, run, text_file):
    named = [str(run / f"checkpoint-{step}") for step in (1000, 0, 200)]
    assert rectilinear.dynamics(named, text_file, **SIZE) == measured


def test_the_folder_s_own_model_is_the_last_where_its_step_is_new(run, text_file, tiny_tokenizer, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    save(tmp_path / "run", tiny_tokenizer, seed=3, step=1001)
    found = rectilinear.dynamics(tmp_path / "run", text_file, **SIZE)
    assert [(each.step, each.source) for each in found.points[-2:]] == [
        (1000, str(tmp_path / "run" / "checkpoint-1000")),
        (1001, str(tmp_path / "run")),
    ]
    (tmp_path / "run" / "trainer_state.json").unlink()
    assert len(rectilinear.dynamics(tmp_path / "run", text_file, **SIZE).points) == 3


def test_places_where_a_step_is_not_known(text_file, tiny_tokenizer, tmp_path):
    names = ("checkpoint-500", "last", "checkpoint-20")
    folders = [save(tmp_path / name, tiny_tokenizer, seed=seed) for seed, name in enumerate(names)]
    found = rectilinear.dynamics(folders, text_file, **SIZE)
    assert [(each.step, each.source) for each in found.points] == [(i, str(folders[i])) for i in range(3)]
    [warning] = found.warnings
    assert str(folders[1]) in warning
    assert "steps are places in the series" in warning


def test_batches(run):
    rows = token_rows(24, 32)
    found = rectilinear.dynamics(run, rows.split(8))
    assert found.data.source == "batches"
    assert found.points[1].blocks == rectilinear.measure(build_llama(seed=1), rows.split(8)).blocks


def test_a_tokenizer_for_checkpoints_without_one(measured, run, text_file, tiny_tokenizer, tmp_path):
    for step in (0, 200):
        shutil.copytree(
            run / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}", ignore=shutil.ignore_patterns("token*")
        )
    with pytest.raises(RequestError, match="cannot load the tokenizer"):
        rectilinear.dynamics(tmp_path, text_file, **SIZE)
    found = rectilinear.dynamics(tmp_path, text_file, tokenizer=tiny_tokenizer, **SIZE)
    assert [each.blocks for each in found.points] == [each.blocks for each in measured.points[:2]]


def test_one_model_is_in_memory_at_a_time(run, text_file, monkeypatch):
    from rectilinear.models import origin

    loaded, load_model = [], origin.load_model

    def watch(*args, **options):
        assert not any(model() for model in loaded)
        model = load_model(*args, **options)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(origin, "load_model", watch)
    rectilinear.dynamics(run, text_file, **SIZE | {"batch_size": "auto"})
    assert len(loaded) == 3


def test_checkpoints_in_different_precisions_are_warned_about(run, text_file, tiny_tokenizer, tmp_path):
    save(tmp_path / "checkpoint-5", tiny_tokenizer, build_llama().to(torch.bfloat16))
    folders = [run / "checkpoint-0", tmp_path / "checkpoint-5"]
    [warning] = rectilinear.dynamics(folders, text_file, **SIZE).warnings
    assert warning.startswith("checkpoints are in different precisions: float32 (")
    assert (
        rectilinear.dynamics(folders, text_file, **SIZE | {"loading": Loading(device="cpu", dtype="float32")}).warnings
        == ()
    )


@pytest.fixture(scope="module")
def bad(run, tiny_tokenizer, documents, tmp_path_factory):
    """Checkpoints that do not go with those of `run`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    here = tmp_path_factory.mktemp("bad")
    save(here / "deeper-5", tiny_tokenizer, build_llama(blocks=4))
    save(here / "narrower-5", tiny_tokenizer, build_llama(vocabulary=130))
    other = Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.train_from_iterator(documents[:9], trainers.BpeTrainer(vocab_size=100, show_progress=False))
    save(here / "other-words-5", PreTrainedTokenizerFast(tokenizer_object=other))
    save(here / "empty-5", tiny_tokenizer)
    (here / "empty-5" / "model.safetensors").unlink()
    shutil.copytree(run / "checkpoint-200", here / "copy")
    (here / "nothing").mkdir()
    return here


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("deeper-5", r"4 blocks of width 16.*deeper-5"),
        ("narrower-5", r"expected checkpoints of one model.*narrower-5"),
        ("other-words-5", r"the same rows of the text.*checkpoint-0.*other-words-5"),
        ("empty-5", r"no weights in .*empty-5"),
        ("copy", r"one checkpoint a step, got .*checkpoint-200 and .*copy at step 200"),
        ("nothing", r"no model in .*nothing"),
        ("none-5", r"no model at .*none-5"),
    ],
)
def test_what_does_not_go_together_is_refused_before_weights(name, says, bad, run, text_file, unloaded):
    with pytest.raises(RequestError, match=says) as caught:
        rectilinear.dynamics([run, bad / name], text_file, **SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch size of at least 1"),
        ({"loading": Loading(device="gpu")}, "device 'gpu'"),
        ({"measurement": Measurement(blocks="model.nope")}, "model.layers"),
        ({"rows": Rows(seq_len=65)}, "context of 64"),
        ({"checkpoints": []}, "at least one checkpoint"),
        ({"checkpoints": "storyteller@main"}, "expected a Hub id with a revision, got storyteller"),
        ({"text": "none.txt"}, "no text at none.txt"),
        ({"text": {"input_ids": token_rows(2, 8)}}, "got one batch"),
        ({"text": [token_rows(2, 8) + 100]}, "vocabulary of 128"),
    ],
)
def test_requests_that_cannot_be_met(options, says, run, text_file, unloaded):
    request = {"checkpoints": run, "text": text_file, **SIZE, **options}
    with pytest.raises(RequestError, match=says) as caught:
        rectilinear.dynamics(request.pop("checkpoints"), request.pop("text"), **request)
    assert "\n" not in str(caught.value)


def test_a_file_survives(measured, tmp_path):
    measured.save(tmp_path)
    assert Dynamics.load(tmp_path) == measured
    written = json.loads((tmp_path / "dynamics.json").read_text())
    keys = {"schema", "model", "data", "settings", "environment", "points", "warnings"}
    assert written.keys() == keys
    assert written["schema"] == "rectilinear.dynamics/1"
    assert written["model"].keys() == {"id", "architecture", "num_blocks", "width", "parameters"}
    for each in written["points"]:
        assert each.keys() == {"step", "source", "revision", "sha256", "blocks", "warnings"}
    written["points"].reverse()
    (tmp_path / "dynamics.json").write_text(json.dumps(written))
    with pytest.raises(RequestError, match="expected a rectilinear dynamics"):
        Dynamics.load(tmp_path)


def test_means_are_over_blocks_with_an_error_that_is_large_enough(measured):
    points = [
        point(0, block(0, (0.9, 0.8, 0.01), (0.6, 0.5, 0.02)), block(1, (0.7, 0.6, 0.03), (0.9, 0.7, 0.04))),
        point(1, block(0, (0.9,), (0.6,)), block(1, (0.7, 0.6, 0.03), (None,))),
        point(2, block(0, (None,), (None,))),
    ]
    dynamics = measured.model_copy(update={"points": tuple(map(Point.model_validate, points))})
    assert mean_curve(dynamics) == [
        Mean(0, 0.6, 0.03, pytest.approx(0.09), 0.5, 0.7, 0, 1),
        Mean(1, 0.6, None, None, 0.6, 0.6, 0, 0),
        Mean(2),
    ]
    curve = mean_curve(dynamics, "linearity")
    assert (curve[0].mean, curve[0].stderr) == (pytest.approx(0.7), pytest.approx(0.02))
    assert (curve[1].mean, curve[1].least, curve[1].most) == (pytest.approx(0.75), 1, 0)


def test_the_newer_of_two_points_at_a_step_stays():
    def make(step, source):
        return Point.model_validate({**point(step), "source": source})

    older = [make(10, "old"), make(0, "old")]
    newer = [make(10, "new"), make(5, "new")]
    merged = merge_points(older, newer)
    assert [(each.step, each.source) for each in merged] == [(0, "old"), (5, "new"), (10, "new")]
