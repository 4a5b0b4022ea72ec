"""Load a checkpoint in a process of its own and compare it with what the model that was saved computed.

Run as ``python reload_check.py FOLDER EXPECTED REMOTE DECODE OPTIONS``: it imports torch, safetensors and transformers
only, as whoever loads the checkpoint does. EXPECTED is a safetensors file with ``ids`` and ``logits``; REMOTE
is 1 where the checkpoint brings code of its own, DECODE where decoding is compared; OPTIONS, as JSON, are those of
``from_pretrained`` beside. Prints one line of JSON.
"""

import json
import sys
from inspect import signature
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache

# Tokens decoded one by one, to be compared with one pass over all of them.
STEPS = 8


def main() -> None:
    """Compare, and print the differences."""
    folder, expected, remote, decode, options = sys.argv[1:]
    model = load(folder, trust_remote_code=remote == "1", dtype="auto", **json.loads(options)).eval()
    tensors = load_file(expected)
    print(json.dumps(compare(model, tensors["ids"], tensors["logits"], decode == "1")))


def compare(model: Any, ids: torch.Tensor, wanted: torch.Tensor, decode: bool) -> dict[str, float]:
    """Largest differences, relative to the largest logit, from what was wanted (`logits`) and of decoding (`cached`).

    And how many tokens the cache lacks (`uncached`): both where ``decode`` asks for it.
    """
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits.float()
    answer = {"logits": float((logits - wanted).abs().max() / wanted.abs().max())}
    return {**answer, **(decoding(model, ids) if decode else {})}


def load(folder: str, **options: Any) -> Any:
    """The model in a folder, by transformers' class for causal language models, or by the one that its config names."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=options.get("trust_remote_code", False))
    known = type(config) in AutoModelForCausalLM._model_mapping or hasattr(config, "auto_map")
    kind: Any = AutoModelForCausalLM if known else getattr(transformers, (config.architectures or [""])[0])
    return kind.from_pretrained(folder, **options)


def decoding(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """How far logits of cached greedy decoding are from those of one pass, of the largest, and tokens that are missing.

    Nothing for a model whose configuration turns its cache off.
    """
    if getattr(model.config, "use_cache", None) is False:
        return {}
    for config in (model.config, model.config.get_text_config(decoder=True)):
        for name, value in [*vars(config).items()]:
            if name.startswith("output_") and value is True:  # of a router's logits, say, which padding may not go with
                setattr(config, name, False)
    with torch.no_grad():
        return _cached_difference(model, ids)


def _cached_difference(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Of the first half of the rows, and some tokens decoded after it."""
    # The first half of the last row is padding, so that a row without and a row with it run together.
    length = ids.shape[1] // 2
    prompt, mask = ids[:, :length].clone(), torch.ones(len(ids), length, dtype=torch.long, device=ids.device)
    mask[-1, : length // 2] = 0
    prompt[-1, : length // 2] = prompt[-1, length // 2]
    greedy = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
    recorded = {"return_dict_in_generate": True, "output_logits": True}
    with_cache = model.generate(prompt, attention_mask=mask, use_cache=True, **greedy, **recorded)
    stepwise = torch.stack(with_cache.logits, 1).float()
    mask = torch.cat([mask, mask.new_ones(len(ids), STEPS)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options = {"position_ids": positions} if "position_ids" in signature(model.forward).parameters else {}
    whole = model(with_cache.sequences, attention_mask=mask, use_cache=False, **options).logits.float()
    # Models whose caches do not count tokens have none missing.
    missing = length + STEPS - 1 - _tokens_held(with_cache) if _tokens_held(model(prompt, use_cache=True)) else 0
    difference = (whole[:, length - 1 : -1] - stepwise).abs().max() / whole.abs().max()
    return {"cached": float(difference), "uncached": missing}


def _tokens_held(output: Any) -> int:
    """How many tokens the cache in an output holds; 0 where there is none, or none that counts."""
    cache = next((value for value in output.values() if isinstance(value, Cache)), None)
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError:  # no layer is an attention
        return 0


if __name__ == "__main__":
    main()
