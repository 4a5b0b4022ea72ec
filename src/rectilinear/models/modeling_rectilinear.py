"""Decoders that hold linear stand-ins.

This file and what it imports from beside it travel, byte for byte, with every checkpoint that holds stand-ins, so they
import torch and transformers only. The classes that such a checkpoint names, ``RectilinearLlamaForCausalLM`` and
``RectilinearLlamaConfig`` say, are made from transformers' own when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import transformers

from .bounded_attention import BoundedAttention, bounded_attention
from .linear_block import Entry, stand_in
from .stand_ins import PaddingMask, StandIn, watch_padding

#: What makes the stand-ins that are no linear blocks, by kind.
_MAKERS: dict[str, Any] = {BoundedAttention.kind: bounded_attention}


class FilterGenerationMixin:
    """A decoder whose configuration says where its stand-ins are, and which ways of generating these allow."""

    # As the main model of assisted generation it would have to take tokens back at every step.
    _is_stateful = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """Not as far as weights are initialised: that is transformers' own code, which knows what is loaded."""
        return False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        parent: Any = super()
        parent.__init__(config, *args, **kwargs)
        model: Any = self
        padding = PaddingMask()
        watch_padding(model, config.rectilinear["stack"], padding)
        for options in config.rectilinear["blocks"]:
            options = dict(options)
            path, entry = options.pop("path"), options.pop("entry", None)
            if entry is not None:
                options["entry"] = Entry(options.pop("entry_width"))
                model.set_submodule(entry, options["entry"])
            make: Any = _MAKERS.get(options["kind"], stand_in)
            new = make(model.get_submodule(path), padding, **options)
            model.set_submodule(path, new)
            model._no_split_modules.add(type(new).__name__)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it; what writes drafts for another model keeps what it takes to take tokens back."""
        drafts = bool(getattr(kwargs.get("generation_config"), "is_assistant", False))
        for block in self._stand_ins():
            block.records_past = drafts
        parent: Any = super()
        return parent.generate(*args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers has it, unless stand-ins keep a state, for which paged caches have no place.

        Raises:
            RuntimeError: some do.
        """
        if keeping := next((one.kind for one in self._stand_ins() if one.remembers), None):
            raise RuntimeError(
                f"expected a model whose stand-ins keep no state for continuous batching, got one with a {keeping}; "
                "try generate()"
            )
        parent: Any = super()
        return parent.init_continuous_batching(*args, **kwargs)

    def _stand_ins(self) -> Iterator[StandIn]:
        model: Any = self
        return (module for module in model.modules() if isinstance(module, StandIn))


@cache
def linearized_config(stock: Any) -> Any:
    """The configuration class of a decoder with stand-ins, given transformers' class of the stock one.

    Its ``model_type`` is its own, so that nothing loads such a checkpoint as the stock architecture, with weights left
    out.
    """
    made: Any = type(f"Rectilinear{stock.__name__}", (stock,), {"model_type": f"rectilinear_{stock.model_type}"})
    made.register_for_auto_class()
    return made


@cache
def linearized_model(stock: Any, stock_config: Any) -> Any:
    """The class of a decoder with stand-ins, given transformers' classes of the stock one and of its configuration."""
    # Some configurations, Exaone's say, share the model class of others.
    other = "" if stock.config_class is stock_config else f"__{stock_config.__name__}"
    attributes = {"config_class": linearized_config(stock_config)}
    made: Any = type(f"Rectilinear{stock.__name__}{other}", (FilterGenerationMixin, stock), attributes)
    made.register_for_auto_class("AutoModelForCausalLM")
    return made


def __getattr__(name: str) -> Any:
    """A class that a checkpoint or a pickle names, made from transformers' class whose name is in it."""
    stock, _, stock_config = name.removeprefix("Rectilinear").partition("__")
    if not name.startswith("Rectilinear") or not hasattr(transformers, stock):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: Any = getattr(transformers, stock)
    if issubclass(found, transformers.PretrainedConfig):
        return linearized_config(found)
    return linearized_model(found, getattr(transformers, stock_config) if stock_config else found.config_class)
