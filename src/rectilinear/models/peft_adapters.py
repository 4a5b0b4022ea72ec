"""Adapters of PEFT, as LoRA: merged into the weights of the model that they are for."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rectilinear.errors import RequestError, first_line

#: What tells an adapter's folder.
ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder or on the Hub.

    Attributes:
        source: its folder or Hub id.
        kind: ``LORA`` and so on.
        base: path or Hub id of the model that it is for.
        revision: of the adapter.
        base_revision: of that model.
    """

    source: str
    kind: str
    base: str
    revision: str | None
    base_revision: str | None


def find_adapter(source: str, revision: str | None) -> Adapter | None:
    """The adapter at a path or Hub id; None where a model, or nothing, is there.

    Raises:
        RequestError: it does not say which model it is for.
    """
    from transformers.utils import cached_file

    if (Path(source) / "config.json").exists():
        return None
    try:
        file = cached_file(source, ADAPTER_CONFIG, revision=revision)
        config: Any = json.loads(Path(str(file)).read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError):
        return None
    if config is None:
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise RequestError(f"expected base_model_name_or_path in {ADAPTER_CONFIG} of {source}, got none")
    return Adapter(source, str(config.get("peft_type")), str(base), revision, config.get("revision"))


def apply_adapter(model: nn.Module, adapter: Adapter) -> tuple[nn.Module, str]:
    """The model that an adapter is for with the adapter merged into its weights, and a line that says so.

    Raises:
        RequestError: there is no PEFT here, or the adapter cannot be loaded or merged.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise RequestError(f"expected peft for the adapter {adapter.source}, got none; try pip install peft") from None
    try:
        config = PeftConfig.from_pretrained(adapter.source, revision=adapter.revision)
        config.task_type = None  # whatever head the model has
        adapted: nn.Module = PeftModel.from_pretrained(model, adapter.source, config=config, revision=adapter.revision)
    except MemoryError:
        raise
    except Exception as error:  # as of models: files, configurations and weights share no narrower class
        raise RequestError(f"cannot load the adapter {adapter.source}: {first_line(error).rstrip(' .')}") from error
    line = f"the adapter {adapter.source} ({adapter.kind}) was merged into the weights of {adapter.base}"
    return _merge(adapted), line


def has_adapters(model: nn.Module) -> bool:
    """Whether a model in memory has adapters of PEFT."""
    if "peft" not in sys.modules:
        return False
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules())


def merge_adapters(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy of a model with its adapters merged into its weights, and a line that says so.

    Raises:
        RequestError: they cannot be merged.
    """
    return _merge(copy.deepcopy(model)), "the model's adapters were merged into a copy of its weights"


def _merge(model: Any) -> nn.Module:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        try:
            merged: nn.Module = model.merge_and_unload(safe_merge=True)
        except (AttributeError, ValueError, NotImplementedError) as error:  # of prompts and prefixes, say
            kind = type(model).__name__
            raise RequestError(f"expected adapters that can be merged, got {kind} ({first_line(error)})") from None
        return merged
    # Put in by transformers itself.
    for path, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)  # type: ignore[attr-defined]
            model.set_submodule(path, module.get_base_layer())
    model._hf_peft_config_loaded = False
    vars(model).pop("_weight_conversions", None)  # under which it was last looked for: those of the adapter
    whole: nn.Module = model
    return whole
