"""A decoder as lm-evaluation-harness sees it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from rectilinear.errors import JobError, broken_promise
from rectilinear.progress import Progress
from rectilinear.ranks import current

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_Answer = TypeVar("_Answer")


class HarnessDecoder(HFLM):  # type: ignore[misc]
    """The harness's own adapter of transformers, which reports progress and says what it cut.

    Prompts do not end with the end of text that some tokenizers put after every text.

    Attributes:
        cut: by task, requests that were longer than the context leaves room for.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        ends_texts: bool,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
        self.cut: Counter[str] = Counter()
        self._ends_texts = ends_texts
        self._names: list[str] = []
        self._progress = progress

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text that goes on."""
        ids: list[int] = super().tok_encode(string, add_special_tokens=add_special_tokens, **options)
        # The harness adds no special tokens to texts that begin with one, as those of chats do.
        ended = self._ends_texts and add_special_tokens is not False and ids[-1:] == [self.eot_token_id]
        return ids[:-1] if ended else ids

    def tok_batch_encode(self, strings: list[str], **options: Any) -> tuple[Any, Any]:
        """Token ids of texts that go on, padded on the left, and their mask."""
        ids, mask = super().tok_batch_encode(strings, **options)
        ended = self._ends_texts and bool((ids[:, -1] == self.eot_token_id).all())
        return (ids[:, :-1], mask[:, :-1]) if ended else (ids, mask)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations."""
        self._names = [request.task_name for request in requests]
        self._count(len(requests))
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        if self._names:
            raise broken_promise("lm_eval", "score continuations by HFLM._loglikelihood_tokens")
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes on."""
        self._count(len(requests))
        for request in requests:
            room = self.max_length - normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
            self.cut[request.task_name] += len(self.tok_encode(request.args[0])) > room
        return _shared(requests, lambda own: super(HarnessDecoder, self).generate_until(own, disable_tqdm=True))

    def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
        for name, (_, context, continuation) in zip(self._names, requests, strict=False):
            self.cut[name] += len(context) + len(continuation) > self.max_length + 1
        self._names = []  # what follows may be other requests

        def score(own: list[Any]) -> list[tuple[float, bool]]:
            found: list[tuple[float, bool]] = super(HarnessDecoder, self)._loglikelihood_tokens(own, **options)
            if any(math.isnan(likelihood) for likelihood, _ in found):
                raise JobError("expected finite logits on the tasks, got others; try `dtype=float32`")
            return found

        return _shared(requests, score)

    def _count(self, total: int) -> None:
        """Report each answer through the hook that the harness calls with it."""
        if progress := self._progress:
            done, total = count(1), len(current().share(total))
            self.set_cache_hook(SimpleNamespace(add_partial=lambda *answer: progress("tasks", next(done), total)))


def _shared(requests: list[Any], answer: Callable[[list[Any]], list[_Answer]]) -> list[_Answer]:
    """Answers to all requests, of which each process of a job gives some."""
    ranks = current()
    own = ranks.share(len(requests))
    found = answer(requests[own.start : own.stop]) if own else []
    return [one for part in ranks.gather(found) for one in part]
