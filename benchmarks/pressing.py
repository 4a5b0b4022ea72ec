"""TOVA (arXiv 2401.06104) as NVIDIA's kvpress has it, at a cache of so many tokens, on rows of text.

kvpress asks for transformers below 5.3, which this package does not run with. Its presses need nothing of it but the
names that arguments of attentions had then: given these, they run. They take no part in what a checkpoint is.

    pip install --no-deps kvpress "cachetools<6" "fire<0.7" termcolor
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from scoring import row_losses
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rectilinear.models.logits import tensors_in
from rectilinear.models.running import hooked


@dataclass(frozen=True)
class Pressed:
    """How rows are run: the first half at once, after which the cache is compressed, the rest token by token.

    After each token the key and value that its query attends to least, summed over heads, go: the same ones for all
    heads of a layer, never its own. Between calls a layer holds so many ``tokens``. The first half is the dense
    model's, where other ways to bound a cache have bounded it there too.

    Attributes:
        tokens: that a layer holds.
        rows: in a forward pass.
    """

    tokens: int
    rows: int

    def losses(self, model: Any, ids: Tensor) -> Tensor:
        """Losses ``[rows, seq_len - 1]`` of all tokens but the first, in nats."""
        half = ids.shape[1] // 2
        first = torch.cat([row_losses(model, part) for part in ids[:, :half].split(4)])
        steps = zip(self._decode(model, ids[:, :-1], half), ids[:, half:].unbind(1), strict=True)
        later = [cross_entropy(logits.float(), following, reduction="none") for (logits, _), following in steps]
        return torch.cat([first, torch.stack(later, 1)], 1)

    def cached(self, model: Any, ids: Tensor) -> list[int]:
        """Numbers of floating point that each layer of the cache keeps after a row."""
        cache = [cache for _, cache in self._decode(model, ids, ids.shape[1] // 2)][-1]
        return [sum(tensor.numel() for tensor in tensors_in(vars(layer))) for layer in cache.layers]

    def _decode(self, model: Any, ids: Tensor, half: int) -> Iterator[tuple[Tensor, Any]]:
        """Logits ``[rows, vocabulary]`` after the first tokens and after each that follows, and the cache."""
        cache, places = None, list[Tensor]()
        with self._pressing(model, half, places), torch.no_grad():
            for begin, end in [(0, half), *((place, place + 1) for place in range(half, ids.shape[1]))]:
                places[:] = [torch.arange(begin, end)]
                options = {"position_ids": places[0][None], "use_cache": True, "logits_to_keep": 1}
                output = model(ids[:, begin:end], cache=cache, **options)
                cache = output.cache
                yield output.logits[:, -1], cache

    @contextmanager
    def _pressing(self, model: Any, half: int, places: list[Tensor]) -> Iterator[None]:
        """While open, attentions compress what they have cached; ``places`` holds the positions that run."""
        from kvpress import DecodingPress, PrefillDecodingPress, TOVAPress

        after = DecodingPress(TOVAPress(), compression_interval=1, target_size=self.tokens)
        press = PrefillDecodingPress(TOVAPress(1 - (self.tokens + 0.5) / half), after)

        def compress(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            former = {"past_key_values": kwargs["cache"], "cache_position": places[0]}
            return press.forward_hook(module, args, {**kwargs, **former}, output)

        with hooked([layer.self_attn for layer in model.model.layers], compress):
            yield
