"""The code that a checkpoint with stand-ins brings along, and when there is no need to trust it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.models import linear_block

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: The module that a checkpoint with stand-ins brings along.
MODULE = "modeling_rectilinear"


def exported_code(made: Any) -> str:
    """The source of `MODULE` for decoders with stand-ins of some class: those, and two classes on top of stock ones."""
    stock, stock_config = made.__mro__[1], made.config_class.__mro__[1]
    source = Path(linear_block.__file__).read_text(encoding="utf-8")
    imports = "".join(f"from {made.__module__} import {made.__name__}\n" for made in (stock_config, stock))
    classes = (
        f"RectilinearForCausalLM = linearized_model({stock.__name__}, {stock_config.__name__})\n"
        "RectilinearConfig = RectilinearForCausalLM.config_class\n"
    )
    marker = "\n# Tokens that are filtered at once"
    head, rest = source.split(marker, 1)
    return f"{head}{imports}{marker}{rest}\n\n{classes}"


def own_model_class(model: str, revision: str | None = None) -> Any:
    """This package's class of a checkpoint with stand-ins; None for other checkpoints.

    What such a checkpoint brings along must be this package's code to the letter: then nothing of it needs to be run,
    or trusted.

    Args:
        model: Hub id or path.
        revision: branch, tag or commit on the Hub.

    Raises:
        RequestError: it is other code.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    except (OSError, ValueError):  # what is wrong shows where it is loaded
        return None
    before, _, kind = str(config.get("model_type") if isinstance(config, dict) else None).partition("rectilinear_")
    if before or kind not in CONFIG_MAPPING:
        return None
    made = _linearized(CONFIG_MAPPING[kind])
    brought = _code_of(model, revision)
    if made is None or brought != exported_code(made):
        got = "none" if brought is None else "other code, perhaps of another version"
        raise RequestError(
            f"expected {MODULE}.py as this version of rectilinear writes it in {model!r}, got {got}; if you trust what "
            "is there, try --trust-remote-code"
        )
    return made


def own_class_of(config: PretrainedConfig) -> Any:
    """The class of models with this configuration, if that is one of this package's own; else None."""
    own = type(config).__module__ == linear_block.__name__
    return _linearized(type(config).__mro__[1]) if own else None


def _linearized(stock_config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(stock_config, None)
    return stock and linear_block.linearized_model(stock, stock_config)


def _code_of(model: str, revision: str | None) -> str | None:
    """What a checkpoint brings along; None where it cannot be had."""
    from transformers.utils import cached_file

    try:
        file = cached_file(model, f"{MODULE}.py", revision=revision)
        return None if file is None else Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
