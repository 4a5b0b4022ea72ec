"""The code that checkpoints with stand-ins bring along: which of it is this package's own and needs no trust.

A checkpoint of any released version loads by the classes of this one, and nothing that it brings along is run. After
a change of that code, ``python -m rectilinear.models.released_code`` adds the new hash to the table of releases.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rectilinear.errors import RequestError
from rectilinear.models import modeling_rectilinear

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: The module whose classes a checkpoint with stand-ins names.
MODULE = "modeling_rectilinear"

#: What any version brought along: that module, and those that it imports; first those that the first versions had.
EVER = (
    f"{MODULE}.py",
    "causal_filter.py",
    "filter_cache.py",
    "linear_block.py",
    "bounded_attention.py",
    "bounded_step.py",
    "bounded_token.py",
    "far_summary.py",
    "kept_tokens.py",
    "stand_in_cache.py",
    "stand_ins.py",
)

#: What this version brings along.
FILES = tuple(file for file in EVER if file != "filter_cache.py")

# SHA-256 of the files' texts, one after the other, to the version that wrote them.
_TABLE = Path(__file__).with_name("released_code.json")

# What the first versions, which had one file, wrote into it for each architecture.
_GENERATED = re.compile(
    r"^from transformers\.[\w.]+ import \w+\n|^(?:RectilinearConfig, )?RectilinearForCausalLM = \w+\(\w+, \w+\)\n", re.M
)


def released_versions() -> dict[str, str]:
    """SHA-256 of all code that was ever released, and its version."""
    return dict(json.loads(_TABLE.read_text(encoding="utf-8")))


def hash_code(texts: list[str]) -> str:
    """What the table of releases knows the texts of `FILES` by."""
    return sha256("".join(texts).encode()).hexdigest()


def current_code() -> list[str]:
    """The texts of `FILES` of this version."""
    return [Path(__file__).with_name(file).read_text(encoding="utf-8") for file in FILES]


def own_model_class(model: str, revision: str | None = None) -> Any:
    """This package's class of a checkpoint with stand-ins, by its Hub id or path; None for other checkpoints.

    Raises:
        RequestError: the checkpoint brings along code that no version of this package has written.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    except (OSError, ValueError, TypeError, RecursionError):  # what is wrong shows where it is loaded
        return None
    before, _, kind = str(config.get("model_type") if isinstance(config, dict) else None).partition("rectilinear_")
    if before or kind not in CONFIG_MAPPING:
        return None
    made = _linearized(CONFIG_MAPPING[kind])
    texts = [text for file in EVER if (text := read_text_file(model, file, revision)) is not None]
    first = [_GENERATED.sub("", text) for text in texts] if len(texts) == 1 else texts
    here = [text for file in FILES if (text := read_text_file(model, file, revision)) is not None]  # what is run of it
    if made is None or not {hash_code(each) for each in (texts, first, here)} & released_versions().keys():
        got = "other code, perhaps of a later version" if texts else "none"
        raise RequestError(
            f"expected {FILES[0]} as a version of rectilinear wrote it in {model!r}, got {got}; if you trust what is "
            "there, try `trust_remote_code`"
        )
    return made


def own_class_of(config: PretrainedConfig) -> Any:
    """The class of models with this configuration, if that is one of this package's own; else None."""
    own = type(config).__module__ == modeling_rectilinear.__name__
    return _linearized(type(config).__mro__[1]) if own else None


def _linearized(stock_config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(stock_config, None)
    return stock and modeling_rectilinear.linearized_model(stock, stock_config)


def read_text_file(model: str, file: str, revision: str | None) -> str | None:
    """The text of a file of a path or Hub id; None where it cannot be had."""
    from transformers.utils import cached_file

    try:
        return Path(str(cached_file(model, file, revision=revision))).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def main() -> None:
    """Add the code of this version to the table, where it is not in there yet."""
    from rectilinear import __version__

    known = released_versions()
    known.setdefault(hash_code(current_code()), __version__)
    _TABLE.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
