"""What to pretrain, on what and how."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from rectilinear.core.penalties import PenaltyKind
from rectilinear.errors import RequestError
from rectilinear.models.load import DType
from rectilinear.training.pretraining.presets import Preset, find_preset
from rectilinear.training.regularizer import check_penalty


@dataclass(frozen=True)
class Recipe:
    """All that the outcome of a pretraining depends on, but for the machine.

    Attributes:
        text, column, config, split: to train on; see `rectilinear.text.sources.open_text`.
        preset: see `rectilinear.training.pretraining.presets`; it has the values of all that is None below.
        regularizer, strength, embedding: penalty on hidden states; see `rectilinear.Regularizer`.
        max_steps: optimizer steps; None for as many as the epochs make.
        epochs: passes over the text, where there is no number of steps.
        max_tokens: of the text, at most; None for all, or as many as the steps need.
        held_out: another text source to measure the loss on; None for the last rows of the text,
            one in a hundred, 400 at most.
        held_out_tokens: of that other text, at most.
        tokenizer: Hub id or path of one; None to train one on the text.
        revision, trust_remote_code: of that tokenizer.
        vocabulary: tokens of one that is trained.
        seq_len: tokens in a row, two at least.
        batch_size: rows of a process at once.
        accumulation: batches of a process in an optimizer step; None for as many as make the preset's
            number of rows, or come near it.
        learning_rate: the highest; it rises for a twentieth of the steps, 200 at most, and falls to
            0 as a cosine.
        weight_decay: of AdamW.
        dtype: of products: ``float32``, ``bfloat16`` (autocast, weights are float32), or ``auto``:
            bfloat16 where the device has instructions for it.
        seed: of the weights, the order of rows, and generated stories.
    """

    text: str
    preset: str = "mistral-4m"
    regularizer: Literal["none"] | PenaltyKind = "none"
    strength: float = 0.5
    embedding: bool = True
    max_steps: int | None = None
    epochs: float = 1.0
    max_tokens: int | None = None
    held_out: str | None = None
    held_out_tokens: int = 100_000
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    vocabulary: int | None = None
    seq_len: int | None = None
    batch_size: int | None = None
    accumulation: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.1
    dtype: DType = "auto"
    seed: int = 0
    column: str = "text"
    config: str | None = None
    split: str = "train"

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            RequestError: a value out of range.
        """
        find_preset(self.preset)
        check_penalty("cosine" if self.regularizer == "none" else self.regularizer, self.strength)
        sizes = ("max_steps", "epochs", "max_tokens", "held_out_tokens", "vocabulary", "seq_len")
        for name in (*sizes, "batch_size", "accumulation", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise RequestError(f"expected {name} above 0, got {value}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise RequestError(f"expected a weight decay of at least 0, got {self.weight_decay}")
        if self.seq_len == 1:
            raise RequestError("expected rows of at least 2 tokens, the first of which nothing predicts, got seq_len 1")
        if self.held_out is not None and self.held_out == self.text != "stories":
            raise RequestError(
                f"expected another text to hold out than the one to train on, got {self.text} twice; try without it, "
                "which holds out its last rows"
            )
        if self.dtype == "float16":
            raise RequestError("expected dtype auto, float32 or bfloat16 to train with, got float16")
        if self.text == "stories" and self.max_steps is None and self.max_tokens is None:
            raise RequestError("expected --max-steps or --max-tokens for stories, which never end")

    def for_processes(self, processes: int) -> Preset:
        """The preset with what the recipe says in the place of its own, for a number of processes.

        Where the recipe says nothing of batches, a step has the preset's number of rows, however many
        processes share them.

        Raises:
            RequestError: they cannot share them evenly.
        """
        preset = find_preset(self.preset)
        if preset.rows % processes and not (self.batch_size and self.accumulation):
            raise RequestError(
                f"expected a number of processes that divides the {preset.rows} rows of a step, got {processes}; "
                "try --batch-size and --gradient-accumulation"
            )
        batch_size = self.batch_size or min(preset.batch_size, max(1, preset.rows // processes))
        accumulation = self.accumulation or max(1, preset.rows // (batch_size * processes))
        return replace(
            preset,
            vocabulary=self.vocabulary or preset.vocabulary,
            seq_len=self.seq_len or preset.seq_len,
            batch_size=batch_size,
            rows=batch_size * accumulation * processes,
            learning_rate=self.learning_rate or preset.learning_rate,
        )
