"""How decoders are trained: the options of pretraining and fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Access
from rectilinear.settings import BatchSize, NonNegative, Positive, Settings
from rectilinear.text.settings import Rows, Source, TaskSource
from rectilinear.training.presets import PRESETS, find_preset


class Regularization(Settings):
    """A penalty on the change from layer to layer; see `rectilinear.Regularizer`."""

    regularizer: Literal["none", "mse", "cosine"] = "none"
    """Penalty on hidden states of neighbouring layers: squared distance, or 1 - cos."""
    strength: NonNegative = 0.5
    """Factor of the penalty."""
    penalize_embedding: Annotated[bool, Parameter(negative="--spare-embedding")] = True
    """Whether embedding and first block are a pair of neighbours."""

    @model_validator(mode="after")
    def _uses_penalty(self) -> Regularization:
        if self.regularizer == "none":
            self.refuse_unused("without `regularizer`", "strength", "penalize_embedding")
        return self


class Optimization(Regularization):
    """What every training is asked for."""

    max_steps: PositiveInt | None = None
    """Optimizer steps; as many as the epochs make when not given."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of products, weights are float32; 'auto' is bfloat16 where the device has instructions for it."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to train; accelerators are chosen with CUDA_VISIBLE_DEVICES."""

    @model_validator(mode="after")
    def _uses_epochs(self) -> Optimization:
        if self.max_steps is not None:
            self.refuse_unused("with `max_steps`", "epochs")
        return self


class Recipe(Optimization):
    """Which decoder to pretrain, and how; the learning rate rises and falls to 0 as a cosine."""

    preset: str = Field("mistral-4m", description=f"Which decoder: {', '.join(PRESETS)}.")
    epochs: Positive = 1.0
    """Passes over the text."""
    batch_size: BatchSize = "auto"
    """Rows of a process at once; 'auto' is the preset's."""
    gradient_accumulation: PositiveInt | None = None
    """Batches of a process in a step; as many as make the preset's rows when not given."""
    learning_rate: Positive | None = None
    """The highest of the schedule; the preset's when not given."""
    weight_decay: NonNegative = 0.1
    """Weight decay of AdamW."""

    @field_validator("preset")
    @classmethod
    def _is_preset(cls, name: str) -> str:
        find_preset(name)
        return name


class Corpus(Source, Access):
    """What of a text a decoder is pretrained on, the tokenizer, and what is held out to measure on."""

    max_tokens: PositiveInt | None = None
    """Tokens of the text to take, at most; all, or as many as the steps need, when not given."""
    seq_len: Annotated[int, Field(ge=2)] | None = None
    """Tokens in a row, the first of which nothing predicts; the preset's when not given."""
    held_out: str | None = None
    """Another text to measure loss and linearity on; the last rows of the text when not given."""
    held_out_tokens: PositiveInt = 100_000
    """Tokens of the held-out text to take, at most."""
    tokenizer: str | None = None
    """Hub id or path of a tokenizer; one is trained on the text when not given."""
    vocab_size: PositiveInt | None = None
    """Tokens of a tokenizer that is trained, at most; the preset's when not given."""

    @model_validator(mode="after")
    def _uses_all(self) -> Corpus:
        if self.tokenizer is None:
            self.refuse_unused("without `tokenizer`", "revision", "trust_remote_code")
        else:
            self.refuse_unused("with `tokenizer`", "vocab_size")
        if self.held_out is None:
            self.refuse_unused("without `held_out`", "held_out_tokens")
        return self


class Monitoring(Settings):
    """What is seen and kept of a training while it runs; the outcome does not depend on it."""

    probe_every: NonNegativeInt | None = None
    """Steps between profiles of held-out rows; a tenth of all when not given, 0 for never."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; a tenth of all when not given."""
    keep: NonNegativeInt = 2
    """Checkpoints to keep; 0 for all."""
    report_to: str = "none"
    """Loggers of transformers: none, tensorboard, wandb, all."""


class Tuning(Optimization, Access, TaskSource):
    """How to fine-tune; the learning rate rises for a twentieth of the steps and falls to 0 on a line."""

    seeds: PositiveInt = 3
    """How often to train, each time with the next seed."""
    epochs: Positive = 3.0
    """Passes over the task's examples."""
    batch_size: PositiveInt = 16
    """Examples in an optimizer step; of preferences, pairs."""
    learning_rate: Positive = 5e-5
    """The highest of the schedule."""
    save_models: bool = False
    """Leave the model of each seed in OUT/seed-N."""


class Profiling(Rows, Measurement):
    """What linearity is measured on, before and after a training, and how."""

    text: str | None = None
    """Text to measure linearity on; the task's validation texts when not given."""

    @model_validator(mode="after")
    def _uses_source(self) -> Profiling:
        if self.text is None:
            self.refuse_unused("without `text`", "column", "config", "split")
        return self
