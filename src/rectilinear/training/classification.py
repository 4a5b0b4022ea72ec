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
from rectilinear.models.describe import check_rows
from rectilinear.models.running import device_of, evaluating
from rectilinear.ranks import current
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.tasks import Question, Task
from rectilinear.training.metrics import MetricRecord, commonest, score_answers
from rectilinear.training.results import TaskDataRecord

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Encoded:
    """The texts of some questions as tokens."""

    questions: tuple[Question, ...]
    ids: tuple[tuple[Tensor, ...], ...]  # of each question, for each of its texts int64 [tokens]
    cut: int  # texts that were too long and lost their beginning
    longest: int  # tokens of the longest text before that

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the ids, texts and answers apart."""
        pairs = zip(self.questions, self.ids, strict=True)
        return fingerprint(
            part for question, ids in pairs for text in ids for part in (f"{len(text)} {question.answer}", text)
        )


def encode(questions: tuple[Question, ...], tokenizer: PreTrainedTokenizerBase, seq_len: int) -> Encoded:
    """Tokens of questions, with the tokenizer's own special tokens; long texts lose their beginning, see `shorten`."""
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
    """The last ``seq_len`` tokens, and before others those that the tokenizer put around the text (``special`` 1)."""
    ordinary = [place for place, own in enumerate(special) if not own]
    left_out = {*ordinary[: max(0, len(ids) - seq_len)]}
    return [token for place, token in enumerate(ids) if place not in left_out][-seq_len:]


def check_ids(config: PretrainedConfig | None, parts: Iterable[Encoded]) -> None:
    """Raise `RequestError` for ids that a model has no embedding for."""
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
    if not (cut := train.cut + validation.cut):
        return []
    texts, longest = sum(map(len, train.ids + validation.ids)), max(train.longest, validation.longest)
    return [
        f"texts longer than {seq_len} tokens: {cut} of {texts}, which lost their beginning; the longest "
        f"has {longest}, try a larger `seq_len`"
    ]


class Example(NamedTuple):
    """One text (ids int64 ``[tokens]``) and its label, or a pair of texts to compare, the better one first."""

    ids: tuple[Tensor, ...]
    labels: tuple[int, ...]


def training_examples(task: Task, encoded: Encoded) -> list[Example]:
    """The examples of questions: pairs where texts are ranked, else each text; choices are right (1) or not (0)."""
    if task.ranks:
        return [Example(ids, (1, 0)) for ids in encoded.ids]
    pairs = zip(encoded.questions, encoded.ids, strict=True)
    if task.choices:
        choices = ((text, place == question.answer) for question, ids in pairs for place, text in enumerate(ids))
        return [Example((text,), (int(right),)) for text, right in choices]
    return [Example(ids, (question.answer,)) for question, ids in pairs]


@dataclass(frozen=True)
class Collator:
    """Examples to a batch, padded on the right, where padding changes no position and no causal model sees it."""

    padding: int

    def __call__(self, examples: Iterable[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` ``[texts, tokens]`` and ``labels`` ``[texts]``, all int64."""
        pairs = [pair for example in examples for pair in zip(example.ids, example.labels, strict=True)]
        return {**self.pad([text for text, _ in pairs]), "labels": torch.tensor([label for _, label in pairs])}

    def pad(self, texts: Sequence[Tensor]) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` ``[texts, tokens]``, int64."""
        return {
            "input_ids": pad_sequence(list(texts), batch_first=True, padding_value=self.padding),
            "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True),
        }


def bradley_terry(outputs: object, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """``-log sigmoid(r_chosen - r_rejected)``, summed over pairs and divided by those of the optimizer step.

    Args:
        outputs: of a model with one label: ``logits`` ``[2 pairs, 1]``, each chosen text before the rejected one.
        labels: ``[2 pairs]``, as transformers' Trainer hands them to a loss function; only their number counts.
        num_items: texts in all batches of the optimizer step; default: in this one.
    """
    logits: Tensor = outputs.logits  # type: ignore[attr-defined]
    chosen, rejected = logits.float().view(-1, 2).unbind(1)
    return -logsigmoid(chosen - rejected).sum() / ((len(labels) if num_items is None else num_items) / 2)


def score_predictions(
    task: Task, train: Encoded, validation: Encoded, predictions: Sequence[int]
) -> dict[str, MetricRecord]:
    """A task's metrics on the validation part, beside those of the training part's commonest answer."""
    _, answers, groups = zip(*validation.questions, strict=True)
    constant = None if task.ranks else commonest([question.answer for question in train.questions])
    return score_answers(task.metrics, answers, predictions, groups, constant, task.answers)


@torch.no_grad()
def score_texts(model: nn.Module, texts: Sequence[Tensor], padding: int, batch_size: int) -> Tensor:
    """``[texts, labels]`` float32: logits of a classifier in evaluation mode; processes of a job share the texts.

    Raises:
        JobError: they are not finite.
    """
    device, pad, ranks = device_of(model), Collator(padding).pad, current()
    # Of similar length together, which saves padding.
    order = torch.tensor([len(text) for text in texts]).argsort(stable=True)
    own, scores = ranks.share(len(order)), []
    with evaluating(model):
        for places in torch.split(order[own.start : own.stop], batch_size) if own else ():
            batch = pad([texts[place] for place in places])
            scores.append(model(**{name: value.to(device) for name, value in batch.items()}).logits.float().cpu())
    stacked = torch.cat([each for part in ranks.gather(scores) for each in part])[order.argsort()]
    if not stacked.isfinite().all():
        raise JobError("expected finite logits of the trained model, got others; try a smaller `learning_rate`")
    return stacked


def predict(task: Task, encoded: Encoded, scores: Tensor) -> list[int]:
    """The answer to each question, from the scores ``[texts, labels]`` of its texts.

    A choice is more plausible, the higher its last label is over its first; of equal ones the later is taken, so that
    a model which cannot tell chosen from rejected is never right.
    """
    if not task.choices:
        return [int(answer) for answer in scores.argmax(1)]
    plausible = scores[:, -1] - (0 if task.ranks else scores[:, 0])
    of_questions = torch.split(plausible, [len(ids) for ids in encoded.ids])
    return [len(choices) - 1 - int(choices.flip(0).argmax()) for choices in of_questions]
