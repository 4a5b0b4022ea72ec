"""What a fine-tuning works on, read before there are weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.measurement.measure import Inputs, read_inputs
from rectilinear.models.describe import check_context
from rectilinear.models.find_blocks import find_blocks, text_config
from rectilinear.models.load import check_classifier
from rectilinear.models.origin import Origin
from rectilinear.models.settings import Access, Loading
from rectilinear.text.rows import pack_rows
from rectilinear.text.settings import Rows
from rectilinear.text.tasks import Task, TaskData, find_task, read_task
from rectilinear.text.tokens import tokenize_with
from rectilinear.training.classification import Encoded, check_ids, encode
from rectilinear.training.settings import Profiling, Tuning
from rectilinear.training.trainer import precision_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Job:
    """All that the training with a seed needs.

    Attributes:
        name, task: what to learn.
        source, train, validation: its questions, and where they come from.
        inputs: what linearity is measured on.
        origin: the model.
        tokenizer: of the model; pads with the id ``padding``, on the right.
        tuning, profiling: as given.
    """

    name: str
    task: Task
    source: str
    train: Encoded
    validation: Encoded
    inputs: Inputs
    origin: Origin
    tokenizer: PreTrainedTokenizerBase
    padding: int
    tuning: Tuning
    profiling: Profiling

    @property
    def in_bfloat16(self) -> bool:
        """Whether products are in bfloat16."""
        return precision_of(self.tuning) == "bfloat16"


def read_job(model: str | Path, name: str, tuning: Tuning, profiling: Profiling) -> Job:
    """Read, and refuse, all that can be read before there are weights.

    Raises:
        RequestError: the request cannot be met; see `rectilinear.finetune`.
        JobError: reading from the Hub broke off.
    """
    access = tuning.part(Access).model_dump()
    origin = Origin(model, Loading(**access, device=tuning.device, dtype="float32"))
    task, questions = find_task(name), read_task(name, tuning.data, tuning.max_examples)
    config, tokenizer = origin.config(), origin.tokenizer()
    find_blocks(origin.skeleton(), profiling.blocks)
    check_classifier(config, trust_remote_code=tuning.trust_remote_code)
    check_context(config, profiling.seq_len)
    padding = _find_padding(tokenizer, config)
    train, validation = (encode(part, tokenizer, profiling.seq_len) for part in (questions.train, questions.validation))
    check_ids(config, (train, validation))
    inputs = _read_rows(name, questions, origin, tokenizer, profiling)
    return Job(name, task, questions.source, train, validation, inputs, origin, tokenizer, padding, tuning, profiling)


def _read_rows(
    name: str, questions: TaskData, origin: Origin, tokenizer: PreTrainedTokenizerBase, profiling: Profiling
) -> Inputs:
    """Rows to measure linearity on: of a text, or of what the model is asked."""
    if profiling.text is not None:
        return read_inputs(origin, profiling.text, profiling.part(Rows), tokenizer)
    texts = (text for question in questions.validation for text in question.texts)
    rows = pack_rows(texts, tokenize_with(tokenizer), profiling.seq_len, profiling.max_tokens)
    source = f"{questions.source}, validation texts of {name}"
    return Inputs(rows.ids, source, rows.fingerprint, profiling.seq_len, {"max_tokens": profiling.max_tokens})


def _find_padding(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    """The id to pad with: the tokenizer's, or that of the end of a text, which then is its padding."""
    vocab_size = text_config(config).vocab_size
    for padding in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if padding is not None and padding < vocab_size:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
            tokenizer.padding_side = "right"  # as in training
            return int(padding)
    raise RequestError("expected a tokenizer with a token for padding or for the end of a text, got neither")
