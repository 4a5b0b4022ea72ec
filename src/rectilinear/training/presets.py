"""Decoders to pretrain, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rectilinear.errors import RequestError, try_nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from rectilinear.training.settings import Corpus, Recipe


@dataclass(frozen=True)
class Preset:
    """A Mistral decoder, and what a step of its training is where nothing else is asked for.

    The paper (arXiv 2405.12250) pretrained Mistral decoders of 150M and 650M parameters and states
    neither depth nor width nor the steps; these are choices of this project.
    """

    vocab_size: int  # of the tokenizer that is trained for it, and with which it has the parameters of its name
    blocks: int
    width: int
    mlp_width: int
    heads: int
    key_value_heads: int
    tied: bool  # whether embedding and head are one
    seq_len: int
    rows: int  # in an optimizer step
    batch_size: int  # of these at once
    learning_rate: float  # the highest of the schedule

    def build(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The decoder for a tokenizer, with random weights."""
        from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig

        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=2 * self.seq_len,
            sliding_window=None,
            tie_word_embeddings=self.tied,
            **special,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, **special)
        return model


PRESETS = {
    "mistral-1m": Preset(1024, 8, 96, 304, 6, 2, True, 256, 32, 32, 3e-3),
    "mistral-4m": Preset(4096, 8, 192, 512, 6, 2, True, 256, 32, 32, 2e-3),
    "mistral-150m": Preset(32_000, 12, 768, 2944, 12, 4, False, 1024, 64, 16, 6e-4),
    "mistral-650m": Preset(32_000, 22, 1536, 4096, 24, 8, False, 1024, 128, 8, 3e-4),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; `RequestError` where there is none."""
    if name not in PRESETS:
        near = try_nearest(name, PRESETS, 0.9)
        raise RequestError(f"expected `preset` to be one of {', '.join(PRESETS)}, got {name!r}{near}")
    return PRESETS[name]


def fill_preset(recipe: Recipe, corpus: Corpus, processes: int = 1) -> Preset:
    """The recipe's preset, with what is asked for in the place of its own.

    Where nothing is said of batches, a step has the preset's number of rows, shared evenly by any number of processes;
    `RequestError` where these cannot.
    """
    preset = find_preset(recipe.preset)
    given = None if recipe.batch_size == "auto" else recipe.batch_size
    if preset.rows % processes and not (given and recipe.gradient_accumulation):
        raise RequestError(
            f"expected a number of processes that divides the {preset.rows} rows of a step, got {processes}; "
            "try `batch_size` and `gradient_accumulation`"
        )
    batch_size = given or min(preset.batch_size, max(1, preset.rows // processes))
    accumulation = recipe.gradient_accumulation or max(1, preset.rows // (batch_size * processes))
    return replace(
        preset,
        vocab_size=corpus.vocab_size or preset.vocab_size,
        seq_len=corpus.seq_len or preset.seq_len,
        batch_size=batch_size,
        rows=batch_size * accumulation * processes,
        learning_rate=recipe.learning_rate or preset.learning_rate,
    )
