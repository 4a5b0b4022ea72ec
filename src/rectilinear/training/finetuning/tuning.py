"""What fine-tuning is asked for, and all that can be read, and refused, before there are weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rectilinear.core.penalties import PenaltyKind
from rectilinear.errors import RequestError
from rectilinear.measurement.measure import Inputs, read_inputs
from rectilinear.models.blocks import find_blocks, text_config
from rectilinear.models.describe import check_context
from rectilinear.models.load import DType, check_classifier
from rectilinear.models.origin import Origin
from rectilinear.text.rows import pack_rows
from rectilinear.text.settings import Rows
from rectilinear.text.tasks import Task, TaskData, find_task, read_task
from rectilinear.text.tokens import tokenize_with
from rectilinear.training.classification import Encoded, check_ids, encode
from rectilinear.training.loop import trains_on_cpu
from rectilinear.training.regularizer import check_penalty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tuning:
    """How to fine-tune, and where to measure linearity; recorded in the result. See `finetune`."""

    epochs: float
    max_steps: int | None
    batch_size: int
    learning_rate: float
    max_examples: int | None
    seq_len: int
    regularizer: Literal["none"] | PenaltyKind
    strength: float
    embedding: bool
    dtype: DType
    text: str | None
    max_tokens: int
    folds: int
    blocks: str | None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            RequestError: a value out of range.
        """
        check_penalty("cosine" if self.regularizer == "none" else self.regularizer, self.strength)
        for name in ("epochs", "max_steps", "batch_size", "learning_rate", "max_examples", "seq_len", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"expected {name} above 0, got {value}")
        if self.dtype == "float16":
            raise RequestError("expected dtype auto, float32 or bfloat16 to train with, got float16")


@dataclass(frozen=True, eq=False)
class Job:
    """All that the training with a seed needs.

    Attributes:
        task: what to learn.
        source: of its questions.
        train, validation: these, as tokens.
        inputs: what linearity is measured on.
        origin: the model.
        tokenizer: its tokenizer; pads with ``padding``, on the right.
        padding: the id to pad with.
        tuning: how to train.
    """

    task: Task
    source: str
    train: Encoded
    validation: Encoded
    inputs: Inputs
    origin: Origin
    tokenizer: PreTrainedTokenizerBase
    padding: int
    tuning: Tuning

    @property
    def on_cpu(self) -> bool:
        """Whether to train on the CPU."""
        return trains_on_cpu(self.origin.loading.device)


def prepare_job(name: str, data: str | Path | None, origin: Origin, tuning: Tuning) -> Job:
    """Read everything but the weights.

    Raises:
        RequestError: the request cannot be met; see `rectilinear.finetune`.
        JobError: reading from the Hub broke off.
    """
    tuning.check()
    task, questions = find_task(name), read_task(name, data, tuning.max_examples)
    config, tokenizer = origin.config(), origin.tokenizer()
    find_blocks(origin.skeleton(), tuning.blocks)
    check_classifier(config, trust_remote_code=origin.loading.trust_remote_code)
    check_context(config, tuning.seq_len)
    padding = _padding_of(tokenizer, config)
    train, validation = (encode(part, tokenizer, tuning.seq_len) for part in (questions.train, questions.validation))
    check_ids(config, (train, validation))
    inputs = _read_text(name, questions, origin, tokenizer, tuning)
    return Job(task, questions.source, train, validation, inputs, origin, tokenizer, padding, tuning)


def _read_text(
    name: str, questions: TaskData, origin: Origin, tokenizer: PreTrainedTokenizerBase, tuning: Tuning
) -> Inputs:
    """Rows to measure linearity on: of a text, or of what the model is asked."""
    if tuning.text is not None:
        return read_inputs(origin, tuning.text, Rows(max_tokens=tuning.max_tokens, seq_len=tuning.seq_len), tokenizer)
    texts = (text for question in questions.validation for text in question.texts)
    rows = pack_rows(texts, tokenize_with(tokenizer), tuning.seq_len, tuning.max_tokens)
    source = f"{questions.source}, validation texts of {name}"
    return Inputs(rows.ids, source, rows.fingerprint, tuning.seq_len, {"max_tokens": tuning.max_tokens})


def _padding_of(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The id to pad with: the tokenizer's, or that of the end of a text, which then is its padding."""
    vocabulary = text_config(config).vocab_size
    for padding in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if padding is not None and padding < vocabulary:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
            tokenizer.padding_side = "right"  # as in training
            return int(padding)
    raise RequestError("expected a tokenizer with a token for padding or for the end of a text, got neither")
