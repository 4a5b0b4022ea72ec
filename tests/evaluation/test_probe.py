"""Probes find what was planted, where it was planted, and nothing in what is not there."""

import json
import random

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import rectilinear
from rectilinear import Probing, RequestError
from rectilinear.evaluation.probe_record import Probe
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.pooled import pool_states
from rectilinear.models.settings import Loading
from tests.conftest import build_llama
from tests.superglue import write_lines, write_superglue

TRAIN, VALIDATION = 500, 300


def probe(model, task, data, tokenizer, **options):
    probing = Probing(**{"data": data, "seq_len": 64, **options})
    return rectilinear.probe(model, task, probing, tokenizer=tokenizer, loading=Loading(device="cpu"), batch_size=32)


@pytest.fixture(scope="module")
def model():
    return build_llama(blocks=4, seed=7)


@pytest.fixture(scope="module")
def passages():
    rng = random.Random(0)
    words = [
        "cat",
        "dog",
        "hen",
        "girl",
        "man",
        "old",
        "red",
        "saw",
        "met",
        "fed",
        "liked",
        "lost",
        "it",
        "was",
        "and",
        "the",
        "a",
    ]
    return [" ".join(rng.choices(words, k=rng.randint(4, 10))) for _ in range(TRAIN + VALIDATION)]


@pytest.fixture(scope="module")
def states(model, tiny_tokenizer, passages):
    """``[texts, depths, width]``: what each text comes to, as the probe reads it."""
    texts = [torch.tensor(tiny_tokenizer(f"{passage}\nwhat?")["input_ids"]) for passage in passages]
    return pool_states(model, find_blocks(model), texts, 32).double()


def write_boolq(folder, passages, labels):
    lines = [
        {"passage": passage, "question": "what", "label": bool(label), "idx": place}
        for place, (passage, label) in enumerate(zip(passages, labels, strict=True))
    ]
    write_lines(folder / "BoolQ" / "train.jsonl", lines[:TRAIN])
    write_lines(folder / "BoolQ" / "val.jsonl", lines[TRAIN:])
    return folder


def planted(states, depth):
    """Labels that are a linear function of the states at one depth: along a direction of little variance there,
    which later and earlier states do not keep."""
    of_depth = states[:, depth]
    centred = (of_depth - of_depth.mean(0)) / of_depth.std(0)
    direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, 1]
    values = centred @ direction
    return (values > values.median()).tolist()


def accuracies(found):
    return [point.metrics["accuracy"].value for point in found.points]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_planted_function_of_one_depth_is_found_there(depth, model, tiny_tokenizer, passages, states, tmp_path):
    data = write_boolq(tmp_path, passages, planted(states, depth))
    found = probe(model, "boolq", data, tiny_tokenizer)
    right = accuracies(found)
    assert found.best.depth == depth
    assert right[depth] > 0.95
    assert max(right[:depth] + right[depth + 1 :]) < right[depth] - 0.05


def test_shuffled_answers_are_chance(model, tiny_tokenizer, passages, tmp_path):
    labels = [place % 2 for place in range(len(passages))]
    random.Random(1).shuffle(labels)
    found = probe(model, "boolq", write_boolq(tmp_path, passages, labels), tiny_tokenizer, folds=2)
    for point in found.points:
        metric = point.metrics["accuracy"]
        assert abs(metric.value - 0.5) < 4 * metric.stderr
        assert metric.stderr == pytest.approx((0.25 / VALIDATION) ** 0.5, rel=0.05)


def test_a_probe_is_a_logistic_regression(model, tiny_tokenizer, passages, states, tmp_path):
    """By hand at one depth, with the penalty that was chosen."""
    labels = np.array(planted(states, 2))
    found = probe(model, "boolq", write_boolq(tmp_path, passages, labels), tiny_tokenizer, folds=2)
    features = states[:, 1].numpy()
    features = (features - features[:TRAIN].mean(0)) / features[:TRAIN].std(0)
    fitted = LogisticRegression(C=found.points[1].c, max_iter=5000).fit(features[:TRAIN], labels[:TRAIN])
    right = (fitted.predict(features[TRAIN:]) == labels[TRAIN:]).mean()
    assert accuracies(found)[1] == pytest.approx(right, abs=1.01 / VALIDATION)
    majority = labels[TRAIN:].mean() if labels[:TRAIN].mean() > 0.5 else 1 - labels[TRAIN:].mean()
    assert found.points[1].metrics["accuracy"].baseline == pytest.approx(majority)


@pytest.mark.parametrize("task", ["cb", "copa", "multirc", "rte", "wic", "wsc", "reward"])
def test_every_task_is_probed(task, model, tiny_tokenizer, tmp_path):
    folder = write_superglue(tmp_path, train=20, validation=10)
    data = folder / "pairs.jsonl" if task == "reward" else folder
    found = probe(model, task, data, tiny_tokenizer, folds=2)
    assert [point.depth for point in found.points] == [0, 1, 2, 3, 4]
    assert all(0 <= metric.value <= 1 for point in found.points for metric in point.metrics.values())
    if task in ("copa", "reward"):  # the cat gives the right choice away
        assert max(accuracies(found)) == 1.0


def test_the_last_token_is_another_feature(model, tiny_tokenizer, tmp_path):
    folder = write_superglue(tmp_path, train=40, validation=20)
    mean, last = (probe(model, "cb", folder, tiny_tokenizer, folds=2, pooling=pooling) for pooling in ("mean", "last"))
    assert [point.cross_validated for point in mean.points] != [point.cross_validated for point in last.points]
    assert last.settings["pooling"] == "last"


def test_it_comes_back_as_it_was(model, tiny_tokenizer, tmp_path):
    folder = write_superglue(tmp_path / "data", train=20, validation=10)
    found = probe(model, "rte", folder, tiny_tokenizer, folds=2, max_examples=12)
    found.save(tmp_path)
    assert Probe.load(tmp_path) == found
    written = json.loads((tmp_path / "probe.json").read_text())
    assert written["schema"] == "rectilinear.probe/1"
    assert (written["data"]["train"], written["data"]["validation"]) == (12, 10)


REFUSALS = [
    ({"pooling": "max"}, "expected `pooling` to be 'mean' or 'last', got 'max'"),
    ({"folds": 1}, "expected `folds` to be greater than or equal to 2, got 1"),
    ({"folds": 11}, "expected each answer for at least 11 questions .*, got entailment for 10"),
    ({"folds": 5, "max_examples": 6}, "try more `max_examples` or fewer `folds`"),
    ({"task": "boolqq"}, "try boolq"),
    ({"seq_len": 65}, "context of 64 tokens"),
    ({"data": "nowhere/at/all/"}, "nowhere/at/all"),
]


@pytest.mark.parametrize(("options", "says"), REFUSALS, ids=[says for _, says in REFUSALS])
def test_requests_that_cannot_be_met(options, says, model, tiny_tokenizer, tmp_path):
    data = write_superglue(tmp_path, train=20, validation=10)
    with pytest.raises(RequestError, match=says):
        probe(model, **{"task": "rte", "data": data, "tokenizer": tiny_tokenizer, **options})


def test_one_answer_only(model, tiny_tokenizer, passages, tmp_path):
    data = write_boolq(tmp_path, passages, [True] * len(passages))
    with pytest.raises(RequestError, match="with different answers, got one answer"):
        probe(model, "boolq", data, tiny_tokenizer)
