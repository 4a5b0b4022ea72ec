"""The file has the keys that other programs read, and comes back as it was."""

import json
from types import SimpleNamespace

import pytest

import rectilinear
from rectilinear import Evaluation, RequestError
from rectilinear.evaluation.differences import compare
from rectilinear.evaluation.record import Differences, Measurements, SpeedRecord
from rectilinear.evaluation.run import Run
from tests.conftest import build_llama

MEASURED = {
    "groups",
    "probes",
    "stories",
    "model",
    "environment",
    "perplexity",
    "loss",
    "stderr",
    "tokens",
    "parameters",
    "tokens_per_second",
    "cache_bytes",
    "tasks",
}
SIZE = {"max_tokens": 256, "seq_len": 16, "batch_size": 4}


@pytest.fixture(scope="module")
def alone(tiny_llama, tiny_tokenizer, text_file):
    return rectilinear.evaluate(tiny_llama, text_file, tokenizer=tiny_tokenizer, speed=False, **SIZE)


@pytest.fixture(scope="module")
def pair(tiny_llama, tiny_tokenizer, text_file):
    other = build_llama(seed=1)
    return rectilinear.evaluate(tiny_llama, text_file, tokenizer=tiny_tokenizer, against=other, **SIZE)


def test_keys_of_one_model(alone):
    written = json.loads(alone.to_json())
    assert written.keys() == {"schema", "data", "settings", "warnings", *MEASURED}
    assert next(iter(written)) == "schema"
    assert written["schema"] == "rectilinear.evaluation/1"
    assert written["tokens_per_second"] == {"prefill": None, "decode": None}
    assert written["cache_bytes"] is None
    assert written["tasks"] == {}
    assert written["model"].keys() == {
        "id",
        "revision",
        "architecture",
        "num_blocks",
        "width",
        "parameters",
        "sha256",
    }


def test_keys_of_two_models(pair):
    written = json.loads(pair.to_json())
    assert written.keys() == {"schema", "data", "settings", "against", "differences", "warnings", *MEASURED}
    assert written["against"].keys() == MEASURED
    ratios = {"perplexity_ratio", "tokens_per_second", "cache_bytes"}
    others = {"loss", "loss_stderr", "parameters", "tasks", "groups", "probes", "stories"}
    assert written["differences"].keys() == {*others, *ratios}
    assert written["differences"]["tokens_per_second"].keys() == {"prefill", "decode"}


def test_it_comes_back_as_it_was(alone, pair, tmp_path):
    for name, evaluation in (("alone", alone), ("pair", pair)):
        path = evaluation.save(tmp_path / name / "new")
        assert path == tmp_path / name / "new" / "evaluation.json"
        assert path.read_text(encoding="utf-8") == evaluation.to_json()
        assert Evaluation.load(path) == Evaluation.load(path.parent) == evaluation


def test_what_is_not_an_evaluation(tmp_path, alone):
    with pytest.raises(RequestError, match="no evaluation at"):
        Evaluation.load(tmp_path)
    (tmp_path / "evaluation.json").write_text(alone.to_json().replace("evaluation/1", "evaluation/2"))
    with pytest.raises(RequestError, match=r"evaluation\.json: expected a rectilinear evaluation"):
        Evaluation.load(tmp_path)
    with pytest.raises(RequestError, match="expected a rectilinear profile"):
        rectilinear.Profile.load(tmp_path / "evaluation.json")


def run(alone, prefill, decode, cache_bytes, loss):
    """What came of a model, whose loss minus any other's is given."""
    changes = {"tokens_per_second": SpeedRecord(prefill=prefill, decode=decode), "cache_bytes": cache_bytes}
    measured = Measurements(**{**{name: getattr(alone, name) for name in Measurements.model_fields}, **changes})
    return Run(measured, SimpleNamespace(minus=lambda other: loss), None, None, {})


def test_ratios_are_of_the_model_to_the_other(alone):
    one, other = run(alone, 30.0, 8.0, 100, (0.0, 0.5)), run(alone, 60.0, 2.0, 400, None)
    assert compare(one, other) == Differences(
        loss=0.0,
        loss_stderr=0.5,
        perplexity_ratio=1.0,
        parameters=0,
        tokens_per_second=SpeedRecord(prefill=0.5, decode=4.0),
        cache_bytes=0.25,
    )


def test_no_ratio_to_what_is_not_there_or_nothing(alone):
    one, other = run(alone, 30.0, None, 100, (1000.0, None)), run(alone, None, 2.0, 0, (0.0, None))
    found = compare(one, other)
    assert (found.tokens_per_second.prefill, found.tokens_per_second.decode, found.cache_bytes) == (None, None, None)
    assert found.perplexity_ratio is None  # beyond float64
    assert compare(other, one).cache_bytes == 0.0
