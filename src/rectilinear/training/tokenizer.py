"""A tokenizer trained on the text that a decoder is pretrained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rectilinear.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Characters of text to learn from: more would change little.
_CHARACTERS = 50_000_000

_END, _PADDING = "<|endoftext|>", "<|padding|>"


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer (arXiv 1909.03341) learnt from the first 50 million characters of a text.

    ``<|endoftext|>`` begins every document and so ends the one before: it is the token of both ends.
    ``<|padding|>`` is another, lest whoever leaves padding out of a loss leave out the ends.

    Raises:
        RequestError: a ``vocab_size`` (at most so many tokens) below 258, of which 256 are bytes; or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [_END, _PADDING]
    least = len(alphabet) + len(special)
    if vocab_size < least:
        raise RequestError(f"expected a vocabulary of at least {least}, got {vocab_size}; try `vocab_size={least}`")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, _CHARACTERS), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_first(documents), trainer)
    end = tokenizer.token_to_id(_END)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_END} $A", special_tokens=[(_END, end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_END,
        eos_token=_END,
        pad_token=_PADDING,
        clean_up_tokenization_spaces=False,
    )


def _first(documents: Iterable[str]) -> Iterator[str]:
    characters = 0
    for text in map(str.strip, documents):
        yield text
        characters += len(text)
        if characters >= _CHARACTERS:
            return
    if not characters:
        raise RequestError("expected text to train a tokenizer on, got none")
