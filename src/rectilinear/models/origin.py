"""Where a model comes from, and the rows of text that it is run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.models.describe import check_context, check_rows
from rectilinear.models.find_blocks import HALVES, half_of
from rectilinear.models.load import (
    build_without_weights,
    check_revision,
    load_config,
    load_model,
    load_tokenizer,
)
from rectilinear.models.loading_info import loading_warnings
from rectilinear.models.peft_adapters import has_adapters, merge_adapters
from rectilinear.models.running import pick_device
from rectilinear.models.settings import Loading
from rectilinear.text.rows import TokenRows, read_rows
from rectilinear.text.settings import Rows
from rectilinear.text.sources import open_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Origin:
    """A model by name, or one that is there already, and how to load it.

    Configuration and tokenizer are read once: the Hub is asked anew each time, and a large vocabulary takes a second.

    Attributes:
        model: Hub id or path of a model or an adapter, ``"storyteller"``, or a module, which is taken where and as it
            is; but one with adapters of PEFT is a copy with these merged into its weights.
        loading: how it is loaded.
        half: ``"encoder"`` or ``"decoder"``, which is then the model; it may be of no causal language model.

    Raises:
        RequestError: no such device here, a revision of a path, or adapters that cannot be merged.
    """

    model: str | Path | nn.Module
    loading: Loading = Loading()
    half: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            check_revision(self.model, self.loading.revision)
            pick_device(self.loading.device)
        elif has_adapters(self.model):
            merged, line = merge_adapters(self.model)
            merged.loading_warnings = [*loading_warnings(self.model), line]
            object.__setattr__(self, "model", merged)

    @property
    def name(self) -> str:
        """The Hub id or path; "" for a module that was not loaded from one."""
        return getattr(self.model, "name_or_path", "") if isinstance(self.model, nn.Module) else str(self.model)

    @cached_property
    def config(self) -> Any:
        """The model's configuration; None for a module without one. RequestError where there is no such model."""
        if isinstance(self.model, nn.Module):
            return getattr(self.model, "config", None)
        return load_config(self.model, self.loading)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer. RequestError where there is none."""
        if not self.name:
            raise RequestError("expected tokenizer= for a model without name_or_path, got none")
        return load_tokenizer(self.name, self.loading)

    def skeleton(self) -> nn.Module:
        """The model's structure; without weights where they are not in memory yet.

        Raises:
            RequestError: no such model, or no decoder.
        """
        if isinstance(self.model, nn.Module):
            return self._half_of(self.model)
        return self._half_of(build_without_weights(self.config, self.loading, any_kind=self.half in HALVES))

    def _half_of(self, model: nn.Module) -> nn.Module:
        """The half that was asked for; RequestError for the encoder of a decoder that has none beside it."""
        from transformers.models.auto import modeling_auto as auto

        half, kind = half_of(model, self.half), type(self.config)
        # What is trained to fill in masked tokens is an encoder, unless its configuration makes a decoder of it.
        encodes = kind in auto.MODEL_FOR_MASKED_LM_MAPPING and not getattr(self.config, "is_decoder", False)
        if self.half == "encoder" and half is model and kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING and not encodes:
            raise RequestError(f"expected a model with an encoder of its own, got {self.name}; try without `blocks`")
        return half

    def load(self, *, head: bool = False) -> nn.Module:
        """The model, with its weights; those of the head that gives logits may be missing unless they are asked for."""
        if isinstance(self.model, nn.Module):
            return self._half_of(self.model)
        whole = load_model(self.model, self.loading, head=head, any_kind=self.half in HALVES)
        loaded = self._half_of(whole)
        read = vars(self).get("tokenizer")  # of which there may be things to know, too
        found = dict.fromkeys([*loading_warnings(whole), *loading_warnings(read)])
        loaded.loading_warnings = list(found)  # type: ignore[assignment]
        return loaded

    def rows(self, text: str | Path, rows: Rows, tokenizer: PreTrainedTokenizerBase | None = None) -> TokenRows:
        """Tokens of a text for this model, packed into rows; needs no weights.

        Raises:
            RequestError: no such text, rows longer than the context, ids beyond the vocabulary, no BOS to begin rows.
        """
        documents = open_documents(text, rows)
        check_context(self.config, rows.seq_len)
        packed = read_rows(documents, tokenizer or self.tokenizer, rows)
        check_rows(self.config, packed.ids)
        return packed
