"""Texts of a task as token ids: cut where they are too long, padded on the right, scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from rectilinear.errors import JobError, RequestError
from rectilinear.models.capture import device_of, evaluating
from rectilinear.models.describe import check_rows
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.tasks import Question, Task
from rectilinear.training.metrics import MetricRecord, commonest, score_answers
from rectilinear.training.results import TaskDataRecord

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Encoded:
    """The texts of some questions as tokens.

    Attributes:
        questions: as they were read.
        ids: of each question, for each of its texts int64 ``[tokens]``.
        cut: texts that were too long and lost their beginning.
        longest: tokens of the longest text before that.
    """

    questions: tuple[Question, ...]
    ids: tuple[tuple[Tensor, ...], ...]
    cut: int
    longest: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, texts and answers apart."""
        pairs = zip(self.questions, self.ids, strict=True)
        return fingerprint(
            part for question, ids in pairs for text in ids for part in (f"{len(text)} {question.answer}", text)
        )


def encode(questions: tuple[Question, ...], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Encoded:
    """Tokens of questions, with the tokenizer's own special tokens; long texts lose their beginning, see `shorten`.

    Raises:
        RequestError: a text without a token.
    """
    texts = [text for question in questions for text in question.texts]
    encoded = tokenizer(texts, return_special_tokens_mask=True, verbose=False)
    whole, special = encoded["input_ids"], encoded["special_tokens_mask"]
    if not all(whole):
        raise RequestError("expected texts of at least one token, got an empty one")
    short = iter(torch.tensor(shorten(ids, mask, seq_len)) for ids, mask in zip(whole, special, strict=True))
    return Encoded(
        questions,
        tuple(tuple(next(short) for _ in question.texts) for question in questions),
        sum(len(ids) > seq_len for ids in whole),
        max(map(len, whole)),
    )


def shorten(ids: Sequence[int], special: Sequence[int], seq_len: int) -> list[int]:
    """``seq_len`` tokens at most: the first are left out, but not those that the tokenizer puts around a text.

    Args:
        ids: of a text.
        special: like ``ids``, 1 where the tokenizer put a token of its own.
        seq_len: tokens to keep.
    """
    excess = max(0, len(ids) - seq_len)
    ordinary = [place for place, own in enumerate(special) if not own]
    left_out = {*ordinary[:excess]}
    return [token for place, token in enumerate(ids) if place not in left_out][-seq_len:]


def check_ids(config: PretrainedConfig | None, parts: Iterable[Encoded]) -> None:
    """Refuse ids that a model has no embedding for.

    Raises:
        RequestError: there are such.
    """
    largest = max(int(ids.max()) for part in parts for texts in part.ids for ids in texts)
    check_rows(config, torch.tensor([[largest]]))


def describe_questions(source: str, train: Encoded, validation: Encoded) -> TaskDataRecord:
    """Which questions these are, for a result file."""
    return TaskDataRecord(
        source=source,
        fingerprint=fingerprint([train.fingerprint, validation.fingerprint]),
        train=len(train.questions),
        validation=len(validation.questions),
        cut=train.cut + validation.cut,
    )


def warn_of_cuts(train: Encoded, validation: Encoded, seq_len: int) -> list[str]:
    """A warning where texts were too long."""
    parts = (train, validation)
    cut, texts = sum(part.cut for part in parts), sum(len(ids) for part in parts for ids in part.ids)
    if not cut:
        return []
    longest = max(part.longest for part in parts)
    return [
        f"texts longer than {seq_len} tokens: {cut} of {texts}, which lost their beginning; the longest "
        f"has {longest}, try a larger `seq_len`"
    ]


class Example(NamedTuple):
    """What is trained on at once: one text and its label, or a pair of texts, the better one first.

    Attributes:
        ids: int64 ``[tokens]`` of each text.
        labels: of each text.
    """

    ids: tuple[Tensor, ...]
    labels: tuple[int, ...]


def training_examples(task: Task, encoded: Encoded) -> list[Example]:
    """The examples of questions: pairs where texts are ranked, else each text; choices are right (1) or not (0)."""
    examples = []
    for question, ids in zip(encoded.questions, encoded.ids, strict=True):
        if task.ranks:
            examples.append(Example(ids, (1, 0)))
        elif task.choices:
            examples += [Example((text,), (int(place == question.answer),)) for place, text in enumerate(ids)]
        else:
            examples.append(Example(ids, (question.answer,)))
    return examples


@dataclass(frozen=True)
class Collator:
    """Examples to a batch, padded on the right, where padding changes no position and no causal model sees it.

    Attributes:
        padding: the id to pad with.
    """

    padding: int

    def __call__(self, examples: Iterable[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` ``[texts, tokens]`` and ``labels`` ``[texts]``, all int64."""
        listed = list(examples)
        batch = self.pad([text for example in listed for text in example.ids])
        return {**batch, "labels": torch.tensor([label for example in listed for label in example.labels])}

    def pad(self, texts: Sequence[Tensor]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``[texts, tokens]``, int64."""
        real = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        return {
            "input_ids": pad_sequence(list(texts), batch_first=True, padding_value=self.padding),
            "attention_mask": real,
        }


def bradley_terry(outputs: object, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Loss of pairs, ``-log sigmoid(r_chosen - r_rejected)``, as transformers' Trainer calls a loss function.

    Args:
        outputs: of a model with one label: ``logits`` ``[2 pairs, 1]``.
        labels: ``[2 pairs]``: 1 for a chosen text, 0 for the rejected one that comes next.
        num_items: texts in all batches of the optimizer step; default: in this one.

    Returns:
        The sum over pairs, divided by the pairs of the optimizer step.
    """
    logits: Tensor = outputs.logits  # type: ignore[attr-defined]
    chosen, rejected = logits.float().view(-1, 2).unbind(1)
    texts = len(labels) if num_items is None else num_items
    return -logsigmoid(chosen - rejected).sum() / (texts / 2)


def score_predictions(
    task: Task, train: Encoded, validation: Encoded, predictions: Sequence[int]
) -> dict[str, MetricRecord]:
    """A task's metrics on the validation part, beside those of the training part's commonest answer."""
    return score_answers(
        task.metrics,
        [question.answer for question in validation.questions],
        predictions,
        [question.group for question in validation.questions],
        constant=None if task.ranks else commonest([question.answer for question in train.questions]),
        labels=task.answers,
    )


@torch.no_grad()
def score_texts(model: nn.Module, texts: Sequence[Tensor], padding: int, batch_size: int) -> Tensor:
    """``[texts, labels]`` float32: logits of a classifier in evaluation mode.

    Raises:
        JobError: they are not finite.
    """
    device, pad = device_of(model), Collator(padding).pad
    # Of similar length together, which saves padding.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    scores: list[Tensor] = []
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = pad([texts[place] for place in order[start : start + batch_size]])
            logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
            scores += logits.float().cpu()
    stacked = torch.stack(scores)[torch.tensor(order).argsort()]
    if not stacked.isfinite().all():
        raise JobError("expected finite logits of the trained model, got others; try a smaller `learning_rate`")
    return stacked


def predict(task: Task, encoded: Encoded, scores: Tensor) -> list[int]:
    """The answer to each question, from the scores ``[texts, labels]`` of its texts.

    A choice is more plausible, the higher its last label is over its first; of equal ones the
    later is taken, so that a model which cannot tell chosen from rejected is never right.
    """
    if not task.choices:
        return [int(answer) for answer in scores.argmax(1)]
    plausible = scores[:, -1] - (0 if task.ranks else scores[:, 0])
    answers, done = [], 0
    for ids in encoded.ids:
        of_choices = plausible[done : done + len(ids)].flip(0)
        answers.append(len(ids) - 1 - int(of_choices.argmax()))
        done += len(ids)
    return answers
