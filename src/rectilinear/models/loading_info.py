"""What a checkpoint holds that the model does not use, or lacks: refused or said, never passed over."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rectilinear.errors import RequestError, broken_promise
from rectilinear.models.find_blocks import find_blocks, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Whether the head of a model must be in its checkpoint, may be missing, or is put in anew whatever is there.
Head = Literal["needed", "optional", "new"]


def loading_warnings(loaded: Any) -> list[str]:
    """What to know before trusting numbers of a model or tokenizer, as seen when it was loaded; nothing of others."""
    return list(getattr(loaded, "loading_warnings", ()))


@contextmanager
def collecting_warnings() -> Iterator[list[str]]:
    """While open, what transformers and PEFT warn users of is put into a list, a line each, and not printed."""
    from transformers.utils import logging as library

    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.funcName not in _SAID_ELSEWHERE:
                found.append(_line(record.getMessage()))

    with warnings.catch_warnings(record=True) as raised, ExitStack() as loggers:
        for name in ("transformers", "accelerate"):
            loggers.enter_context(_handling(library.get_logger(name), Collector(logging.WARNING)))
        warnings.simplefilter("always")
        yield found
    found += [_line(str(each.message)) for each in raised if issubclass(each.category, UserWarning)]


#: The table of weights that were not used, which `check_loading_info` reads; that weights are on disk, as asked for.
_SAID_ELSEWHERE = {"log_state_dict_report", "dispatch_model"}


@contextmanager
def _handling(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """While open, a logger hands what it warns of to a handler alone."""
    before = logger.level, logger.handlers, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.level, logger.handlers, logger.propagate = before
        logger.setLevel(before[0])


def _line(message: str) -> str:
    """Another library's message in one line; in ours what is between backticks is an option."""
    return " ".join(message.split()).replace("`", "'")


def check_loading_info(
    model: str | Path, loaded: PreTrainedModel, info: Mapping[str, Collection[Any]], head: Head
) -> list[str]:
    """Refuse a model that is not what its checkpoint holds.

    Args:
        model: name of the checkpoint.
        loaded: what was loaded from it.
        info: what transformers says of that (``output_loading_info``).
        head: whether the checkpoint must have it.

    Returns:
        A line of other weights that are not used; none where all are.

    Raises:
        RequestError: weights are missing or of another shape, a quantisation is not carried out, or weights of
            whole blocks are not used.
    """
    kind, body = type(loaded).__name__, f"{loaded.base_model_prefix}."
    if absent := {"missing_keys", "unexpected_keys", "mismatched_keys"} - info.keys():
        raise broken_promise(
            "transformers", f"tell which weights a checkpoint lacks and which it has left over (`{sorted(absent)[0]}`)"
        )
    for config in (loaded.config, text_config(loaded.config)):
        quantisation = getattr(config, "quantization_config", None)
        # Transformers puts an object in the place of what it carries out.
        if isinstance(quantisation, dict) and getattr(loaded, "hf_quantizer", None) is None:
            raise RequestError(
                f"cannot load {str(model)!r}: its weights are quantised as {quantisation.get('quant_method')!r}, which "
                "this version of transformers does not know; try the original model"
            )
    if wrong := sorted((key, tuple(found), tuple(wanted)) for key, found, wanted in info["mismatched_keys"]):
        key, found, wanted = wrong[0]
        raise RequestError(
            f"cannot load {str(model)!r}: weights are not shaped as its configuration says ({len(wrong)}, {key} among "
            f"them: expected {[*wanted]}, got {[*found]})"
        )
    whole = head == "needed" or (head == "optional" and loaded.base_model is loaded)
    if missing := sorted(key for key in info["missing_keys"] if whole or key.startswith(body)):
        raise RequestError(
            f"cannot load {str(model)!r}: weights of {kind} are not in the checkpoint ({len(missing)}, {missing[0]} "
            "among them); is it a checkpoint of a causal language model?"
        )
    unused = sorted(key for key in info["unexpected_keys"] if head != "new" or key.startswith(body))
    if not unused:
        return []
    listed = f"{len(unused)}, {unused[0]} among them"
    if beyond := _blocks_beyond(loaded, unused):
        raise RequestError(
            f"cannot load {str(model)!r}: weights of block {beyond[0]} and others are not used ({listed}), since its "
            "configuration is of fewer blocks; is config.json that of another model?"
        )
    return [f"some weights of {model} are not used by {kind} ({listed})"]


def _blocks_beyond(loaded: PreTrainedModel, names: list[str]) -> list[int]:
    """Indices of blocks that names of weights speak of and the model's block stack does not have."""
    try:
        stack = find_blocks(loaded)
        list_name, count = re.escape(stack.path.rpartition(".")[2]), len(stack)
    except RequestError:  # of no blocks at all
        list_name, count = r"\w+", 0
    place = re.compile(rf"(?:^|\.){list_name}\.(\d+)\.")
    indices = {int(match[1]) for match in map(place.search, names) if match}
    return sorted(index for index in indices if index >= count)
