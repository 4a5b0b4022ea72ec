"""Which files of a folder make up a checkpoint in it, so that those of two checkpoints are never mixed."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from rectilinear.errors import RequestError
from rectilinear.models.released_code import EVER

_TOKENIZER = (
    FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE
)  # fmt: skip


def checkpoint_files(folder: Path, result: str) -> list[str]:
    """Names of the files that go where another checkpoint takes the place of the one in a folder.

    Those are its weights, with the parts that their index names; of a checkpoint that this package wrote, known by the
    result beside it, also configuration, tokenizer and code. Whatever else is there is none of ours.

    Args:
        folder: which need not be there.
        result: name of the result that this package leaves beside such a checkpoint.

    Raises:
        RequestError: there is an adapter, which transformers would put onto any model in the folder.
    """
    if (folder / ADAPTER_CONFIG_NAME).exists():
        raise RequestError(
            f"expected a folder without an adapter for `out`, got {folder} with {ADAPTER_CONFIG_NAME}, which would be "
            "put onto what is written; try another"
        )
    names = [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, *_parts(folder / SAFE_WEIGHTS_INDEX_NAME)]
    if (folder / result).exists():
        names += [result, CONFIG_NAME, GENERATION_CONFIG_NAME, *_TOKENIZER, *EVER]
    return names


def _parts(index: Path) -> list[str]:
    """Files that an index of weights names, those elsewhere left out."""
    try:
        found = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sorted(name for name in found if isinstance(name, str) and Path(name).name == name)
