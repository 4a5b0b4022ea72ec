"""Adapters of PEFT, as LoRA: merged into the weights of the model that they are for."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from rectilinear.errors import RequestError, first_line
from rectilinear.models.released_code import read_text_file

#: What tells an adapter's folder.
ADAPTER_CONFIG = "adapter_config.json"


class Adapter(NamedTuple):
    """An adapter of some kind (``LORA``, say) in a folder or on the Hub, and the model that it is for."""

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
    text = None if (Path(source) / "config.json").exists() else read_text_file(source, ADAPTER_CONFIG, revision)
    try:
        config: Any = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    if config is None:
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base:
        raise RequestError(f"expected base_model_name_or_path in {ADAPTER_CONFIG} of {source}, got none")
    base_revision = str(config["revision"]) if config.get("revision") else None
    return Adapter(source, str(config.get("peft_type")), str(base), revision, base_revision)


def apply_adapter(model: nn.Module, adapter: Adapter) -> tuple[Any, str]:
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
        adapted = PeftModel.from_pretrained(model, adapter.source, config=config, revision=adapter.revision)
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


def merge_adapters(model: nn.Module) -> tuple[Any, str]:
    """A copy of a model with its adapters merged into its weights, and a line that says so.

    Raises:
        RequestError: they cannot be merged.
    """
    return _merge(copy.deepcopy(model)), "the model's adapters were merged into a copy of its weights"


def _merge(model: Any) -> Any:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model, PeftModel):
        try:
            return model.merge_and_unload(safe_merge=True)
        except (AttributeError, ValueError, NotImplementedError) as error:  # of prompts and prefixes, say
            kind = type(model).__name__
            raise RequestError(f"expected adapters that can be merged, got {kind} ({first_line(error)})") from None
    # Put in by transformers itself.
    for path, module in [*model.named_modules()]:
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            model.set_submodule(path, module.get_base_layer())
    model._hf_peft_config_loaded = False
    vars(model).pop("_weight_conversions", None)  # under which it was last looked for: those of the adapter
    return model
