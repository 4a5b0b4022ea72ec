"""The file has the keys that other programs read, and comes back as it was."""

import json

import pytest

import rectilinear
from rectilinear import Evaluating, Evaluation, RequestError
from rectilinear.evaluation.differences import find_differences
from rectilinear.evaluation.record import Differences, Items, SpeedRecord, TimedRecord
from rectilinear.results import IntervalRecord
from rectilinear.text.settings import Rows
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
    "interval",
    "clusters",
    "clustered_by",
    "tokens",
    "parameters",
    "tokens_per_second",
    "cache_bytes",
    "tasks",
}
ROWS = Rows(max_tokens=256, seq_len=16)


@pytest.fixture(scope="module")
def alone(tiny_llama, tiny_tokenizer, text_file):
    return rectilinear.evaluate(
        tiny_llama, text_file, Evaluating(batch_size=4, speed=False), tokenizer=tiny_tokenizer, rows=ROWS
    )


@pytest.fixture(scope="module")
def pair(tiny_llama, tiny_tokenizer, text_file):
    other = build_llama(seed=1)
    asked = Evaluating(batch_size=4)
    return rectilinear.evaluate(tiny_llama, text_file, asked, tokenizer=tiny_tokenizer, against=other, rows=ROWS)


def test_keys_of_one_model(alone):
    written = json.loads(alone.to_json())
    assert written.keys() == {"schema", "data", "settings", "warnings", "items", *MEASURED}
    assert next(iter(written)) == "schema"
    assert written["schema"] == "rectilinear.evaluation/1"
    assert written["tokens_per_second"] == dict.fromkeys(("prefill", "decode", "prefill_middle", "decode_middle"))
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
        "own_code",
    }


def test_keys_of_two_models(pair):
    written = json.loads(pair.to_json())
    assert written.keys() == {"schema", "data", "settings", "against", "differences", "warnings", "items", *MEASURED}
    assert written["against"].keys() == MEASURED
    ratios = {"perplexity_ratio", "tokens_per_second", "cache_bytes"}
    others = {"loss", "loss_stderr", "loss_interval", "parameters", "tasks", "groups", "probes", "stories"}
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


def test_losses_of_rows_are_kept_with_their_mean(alone):
    written = json.loads(alone.to_json())
    assert len(written["items"]["rows"]) == written["data"]["rows"] == 16
    assert sum(written["items"]["rows"]) / written["tokens"] == pytest.approx(written["loss"], rel=1e-12)


def test_files_of_older_versions_have_no_items(alone, tmp_path):
    written = json.loads(alone.to_json())
    del written["items"]
    (tmp_path / "evaluation.json").write_text(json.dumps(written))
    assert Evaluation.load(tmp_path) == alone.model_copy(update={"items": Items()})


def run(alone, prefill, decode, cache_bytes, rows):
    """What came of a model, with these losses a token of two rows."""
    tokens = alone.data.seq_len - 1
    changes = {"tokens_per_second": TimedRecord(prefill=prefill, decode=decode), "cache_bytes": cache_bytes}
    items = Items(rows=[loss * tokens for loss in rows])
    return alone.model_copy(update={**changes, "items": items, "tokens": 2 * tokens})


def test_ratios_are_of_the_model_to_the_other(alone):
    one, other = run(alone, 30.0, 8.0, 100, (1.5, 0.5)), run(alone, 60.0, 2.0, 400, (1.0, 1.0))
    assert find_differences(one, other) == Differences(
        loss=0.0,
        loss_stderr=0.5,
        loss_interval=IntervalRecord.of(0.0, 0.5, 2),
        perplexity_ratio=1.0,
        parameters=0,
        tokens_per_second=SpeedRecord(prefill=0.5, decode=4.0),
        cache_bytes=0.25,
    )


def test_with_a_file_that_has_rows_alone_differences_are_over_rows(alone):
    assert alone.clustered_by == "documents"
    older = alone.model_copy(update={"items": Items(rows=alone.items.rows)})
    found = find_differences(alone, older)
    assert (found.loss, found.loss_stderr) == (0.0, 0.0)
    moved = [loss + place for place, loss in enumerate(older.items.rows)]
    found = find_differences(alone, older.model_copy(update={"items": Items(rows=moved)}))
    assert found.loss_interval == IntervalRecord.of(found.loss, found.loss_stderr, len(moved))


def test_no_ratio_to_what_is_not_there_or_nothing(alone):
    one, other = run(alone, 30.0, None, 100, (1000.0, 1000.0)), run(alone, None, 2.0, 0, (0.0, 0.0))
    found = find_differences(one, other)
    assert (found.tokens_per_second.prefill, found.tokens_per_second.decode, found.cache_bytes) == (None, None, None)
    assert found.perplexity_ratio is None  # beyond float64
    assert find_differences(other, one).cache_bytes == 0.0


def test_what_was_not_measured_alike_has_no_difference(alone):
    one, other = run(alone, 30.0, 8.0, 100, (1.0, 1.0)), run(alone, 60.0, 2.0, 400, (1.0, 1.0))
    longer = other.model_copy(update={"settings": {**other.settings, "prompt_tokens": 8}})
    found = find_differences(one, longer)
    assert (found.tokens_per_second, found.cache_bytes) == (SpeedRecord(), None)
    elsewhere = other.model_copy(update={"data": other.data.model_copy(update={"fingerprint": "0" * 64})})
    assert find_differences(one, elsewhere).loss is None
