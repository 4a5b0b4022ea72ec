"""Texts that a decoder writes on from their beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rectilinear.errors import JobError, RequestError
from rectilinear.models.find_blocks import context_of
from rectilinear.models.running import device_of, evaluating, own_randomness

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    beginnings: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """What a model writes on from each beginning, in one batch, up to its end of text.

    Args:
        model, tokenizer: that write; they are left as they are.
        beginnings: of texts, not empty.
        max_new_tokens: to write at most.
        temperature: of sampling from the whole distribution; 0 takes the likeliest token each time.
        seed: of sampling. The same seed, beginnings and batch give the same texts.

    Returns:
        The texts without their beginnings and without special tokens.

    Raises:
        RequestError: a beginning without tokens, or one that leaves no room in the context.
        JobError: logits that are not finite.
    """
    from transformers import LogitsProcessorList

    prompts = [_prompt(tokenizer, beginning) for beginning in beginnings]
    context = context_of(model.config)
    longest = max(map(len, prompts))
    if context is not None and longest + max_new_tokens > context:
        raise RequestError(
            f"expected beginnings that leave room for {max_new_tokens} tokens in a context of {context}, "
            f"got one of {longest} tokens"
        )
    # Where there is no padding any id will do, since the mask hides it.
    padding = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)
    ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = device_of(model)
    with evaluating(model), own_randomness(device):
        torch.manual_seed(seed)
        written = model.generate(
            ids.to(device),
            logits_processor=LogitsProcessorList([_check_logits]),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=padding,
            **_sampling(temperature),
        )
    return [
        _decode(tokenizer, [*prompt, *new])[len(_decode(tokenizer, prompt)) :]
        for prompt, new in zip(prompts, written[:, longest:].tolist(), strict=True)
    ]


def _sampling(temperature: float) -> dict[str, Any]:
    """Options of ``generate``; what the model's own generation config may have would cut or bend the distribution."""
    options = {"do_sample": temperature > 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    if temperature:
        options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
        options |= {"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
    return options


def _check_logits(ids: Tensor, logits: Tensor) -> Tensor:
    """Logits as they are, for what generates; those of tokens that are ruled out are -inf."""
    if logits.isnan().any() or not logits.max(-1).values.isfinite().all():
        raise JobError(f"expected finite logits, got others after {ids.shape[1]} tokens; try `dtype=float32`")
    return logits


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts an end of text after every text, which one to be written on must not have."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[-1] == tokenizer.eos_token_id


def _prompt(tokenizer: PreTrainedTokenizerBase, beginning: str) -> list[int]:
    """Token ids of a beginning, without the end of text that some tokenizers put after every text."""
    ids: list[int] = tokenizer(beginning)["input_ids"]
    if not (ids := ids[: len(ids) - ends_texts(tokenizer)]):
        raise RequestError(f"expected a beginning with tokens in it, got {beginning!r}")
    return ids


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    # As a whole: some tokenizers drop the space at the front of what they decode.
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
