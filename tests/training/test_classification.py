"""Questions become tokens and batches, and answers are scored as SuperGLUE scores them."""

import math
from statistics import fmean

import pytest
import torch

from rectilinear.text.tasks import Question, find_task
from rectilinear.training.classification import (
    Collator,
    Encoded,
    Example,
    bradley_terry,
    encode,
    predict,
    shorten,
    training_examples,
)
from rectilinear.training.metrics import accuracy, commonest, f1a, macro_f1, score_answers


def test_metrics_by_hand():
    # Answers are rows: 3 + 1 of the first label, 2 of the second, none of the third.
    counts = torch.tensor([[3.0, 1, 0], [1, 1, 0], [0, 0, 0]])
    assert accuracy(counts) == pytest.approx(4 / 6)
    f1 = (2 * 3 / (2 * 3 + 1 + 1), 2 * 1 / (2 * 1 + 1 + 1), 0)
    assert macro_f1(counts) == pytest.approx(fmean(f1))
    assert f1a(counts) == pytest.approx(f1[1])


def test_standard_error_of_the_accuracy():
    answers, predictions = [0, 1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0, 1]
    [scored] = score_answers(["accuracy"], answers, predictions, range(7), 1, 2).values()
    assert scored.value == pytest.approx(5 / 7)
    assert scored.stderr == pytest.approx(math.sqrt(5 / 7 * 2 / 7 / 6))
    assert scored.baseline == pytest.approx(5 / 7)


def test_standard_error_leaves_out_whole_groups():
    # Three passages of two answers each; leaving one out leaves 2/4, 3/4 and 1/4 right.
    answers, predictions, groups = [0] * 6, [0, 1, 1, 1, 0, 0], [4, 4, 5, 5, 9, 9]
    [scored] = score_answers(["accuracy"], answers, predictions, groups, None, 2).values()
    without = [2 / 4, 3 / 4, 1 / 4]
    assert scored.stderr == pytest.approx(math.sqrt(2 / 3 * sum((w - fmean(without)) ** 2 for w in without)))
    assert scored.baseline == 0.5
    [alone] = score_answers(["accuracy"], answers[:2], predictions[:2], groups[:2], 0, 2).values()
    assert alone.stderr is None


def test_a_constant_answer_has_no_f1a():
    [scored] = score_answers(["f1a"], [0, 1, 0], [0, 1, 1], range(3), commonest([0, 0, 1]), 2).values()
    assert (scored.value, scored.baseline) == (pytest.approx(2 / 3), 0)
    assert commonest([2, 1, 1, 2, 0]) == 1


def test_long_texts_lose_their_beginning_and_keep_the_special_tokens():
    ids, special = [0, 5, 6, 7, 8, 1], [1, 0, 0, 0, 0, 1]
    assert shorten(ids, special, 6) == ids
    assert shorten(ids, special, 4) == [0, 7, 8, 1]
    assert shorten(ids, special, 2) == [0, 1]
    assert shorten(ids, special, 1) == [1]


def test_encoding_counts_what_it_cuts(tiny_tokenizer):
    questions = (Question(("The cat.",), 0, 0), Question(("The cat saw a dog, and it was lost.",), 1, 1))
    short, whole = encode(questions, tiny_tokenizer, 8), encode(questions, tiny_tokenizer, 64)
    longest = len(tiny_tokenizer(questions[1].texts[0])["input_ids"])
    assert (short.cut, short.longest, whole.cut) == (1, longest, 0)
    assert [text.tolist() for (text,) in whole.ids] == tiny_tokenizer([q.texts[0] for q in questions])["input_ids"]
    cut = short.ids[1][0].tolist()
    assert cut == [0, *whole.ids[1][0].tolist()[-7:]]
    assert short.fingerprint != whole.fingerprint
    answers = (questions[0]._replace(answer=1), questions[1])
    assert encode(answers, tiny_tokenizer, 8).fingerprint != short.fingerprint


def test_examples_and_batches():
    def ids(*values):
        return torch.tensor(values)

    questions = (Question(("a", "b"), 1, 0),)
    pairs = Encoded(questions, ((ids(3, 4), ids(5)),), 0, 2)
    assert training_examples(find_task("reward"), pairs) == [Example(pairs.ids[0], (1, 0))]
    assert [example.labels for example in training_examples(find_task("copa"), pairs)] == [(0,), (1,)]
    batch = Collator(9)([Example((ids(3, 4), ids(5)), (1, 0)), Example((ids(6, 7, 8), ids(2)), (1, 0))])
    assert batch["input_ids"].tolist() == [[3, 4, 9], [5, 9, 9], [6, 7, 8], [2, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0, 1, 0]


def test_bradley_terry_by_hand():
    class Outputs:
        logits = torch.tensor([[2.0], [0.5], [-1.0], [3.0]])

    labels = torch.tensor([1, 0, 1, 0])
    pairs = [-math.log(1 / (1 + math.exp(-margin))) for margin in (1.5, -4.0)]
    assert float(bradley_terry(Outputs, labels)) == pytest.approx(fmean(pairs))
    # Of a step of eight pairs.
    assert float(bradley_terry(Outputs, labels, 16)) == pytest.approx(sum(pairs) / 8)


def test_predictions():
    def encoded(answers, texts):
        return Encoded(
            tuple(Question(("",) * texts, a, 0) for a in answers), ((torch.zeros(1),) * texts,) * len(answers), 0, 1
        )

    scores = torch.tensor([[0.0, 2, 1], [5, 4, 3]])
    assert predict(find_task("cb"), encoded([1, 1], 1), scores) == [1, 0]
    # Plausible is what the last label is ahead of the first by; of equals the later choice.
    scores = torch.tensor([[0.0, 2], [-3, 0], [1, 1], [7, 7]])
    assert predict(find_task("copa"), encoded([0, 0], 2), scores) == [1, 1]
    scores = torch.tensor([[2.0], [1], [4], [4]])
    assert predict(find_task("reward"), encoded([0, 0], 2), scores) == [0, 1]
