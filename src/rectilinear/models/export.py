"""Writing an edited model as a checkpoint that loads without this package, and proving that it does."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rectilinear.errors import JobError, RequestError, broken_promise, first_line
from rectilinear.models import reload_check
from rectilinear.models.code_files import drop_absent_code
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.logits import row_logits
from rectilinear.models.offload import disk_map, on_disk
from rectilinear.models.running import device_of, evaluating
from rectilinear.publish import nearest_existing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# How far logits may move between two processes, relative to the largest: kernels and their order may differ.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_COARSE_TOLERANCE = 5e-2

# Of the files that weights are written into where they are read from disk: one at a time is in memory.
_STREAMED = "1GB"


def check_exportable(model: PreTrainedModel, stand_ins: bool = True) -> None:
    """Raise `RequestError` for a model, not edited yet, of which no checkpoint could be made.

    That is one with stand-ins, quantised, or with a generation config that cannot be saved; and where it is to have
    stand-ins, one whose class is not transformers' own.
    """
    if hasattr(model.config, "rectilinear"):
        raise RequestError(
            "expected a model without stand-ins, got a linearized one; "
            "try the original model with a plan that has both its replacements and the new ones"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise RequestError("expected a model with weights of floating point, got a quantised one; try the original")
    try:
        if (generation := getattr(model, "generation_config", None)) is not None:  # of one that cannot generate
            generation.validate(strict=True)
    except ValueError as error:
        raise RequestError(f"the model's generation config cannot be saved ({' '.join(str(error).split())})") from None
    if stand_ins and has_own_code(model):
        raise RequestError(
            f"expected a model of transformers' own for stand-ins, got {type(model).__name__} with code of its own; "
            "try `kind=drop`, or start from the original model"
        )


def has_own_code(model: PreTrainedModel) -> bool:
    """Whether a model's class is not one of transformers' own, so that its checkpoint brings code along."""
    return not type(model).__module__.startswith("transformers.")


def check_space(model: PreTrainedModel, folder: Path) -> None:
    """Raise `RequestError` for a folder on a disk without room for the model's weights."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise RequestError(f"expected {needed:,} bytes free for the checkpoint in {folder}, got {free:,}")


def decodes(model: PreTrainedModel, ids: Tensor) -> str | None:
    """Why a model's decoding with its cache cannot be held to be that without; None where it can.

    It is tried on token ids ``[rows, seq_len]``.
    """
    name, allowed = type(model).__name__, allowed_difference(model.dtype)
    try:
        with evaluating(model):
            answer = reload_check.decoding(model, ids.to(device_of(model)))
    except Exception as error:  # whatever an architecture needs to decode
        return f"transformers does not decode with {name} ({type(error).__name__}: {first_line(error)})"
    if not answer.get("cached", 0.0) <= allowed or answer.get("uncached"):
        far = f"{answer['cached']:.1e} of the largest logit"
        return f"transformers decodes otherwise with the cache of {name} than without ({far})"
    return None


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    ids: Tensor,
    *,
    decoding: bool = True,
) -> None:
    """Write weights, configs, tokenizer and, for stand-ins, the code they need; then load it all afresh.

    The folder is made where it is missing; the models are compared on token ids ``[rows, seq_len]``, and where
    ``decoding`` says that the original's are alike, cached decoding with uncached.

    Raises:
        OSError: it could not be written.
        JobError: the checkpoint does not load in a fresh process, or computes something else there.
    """
    write_checkpoint(model, tokenizer, folder)
    check_reload(model, folder, ids, has_own_code(model), decoding)


def write_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Write weights, configs and tokenizer, with the code that runs them where that is not transformers' own."""
    streamed = {"max_shard_size": _STREAMED} if on_disk(model) else {}
    with writing(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")  # by shards
        model.save_pretrained(folder, **streamed)  # classes that are not transformers' bring their files along
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    drop_absent_code(folder)


@contextmanager
def writing() -> Iterator[None]:
    """Turn the operating system's errors, as safetensors, tokenizers and torch put them in words, into `OSError`."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if re.search(r"inline_container|PytorchStreamWriter", str(error)):  # torch's, which does not say what it was
            raise OSError(errno.EIO, "torch could not write all of a file; is the disk full?") from error
        if isinstance(error, OSError) or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def check_reload(model: PreTrainedModel, folder: Path, ids: Tensor, remote: bool, decoding: bool = True) -> None:
    """Load a checkpoint in a fresh process; compare logits with the model's, and cached with uncached decoding.

    A checkpoint that does not load, or differs, is a `JobError`.
    """
    from safetensors.torch import save_file

    with evaluating(model):
        logits = row_logits(model, ids).float().cpu()
    with tempfile.TemporaryDirectory() as scratch:
        expected = Path(scratch) / "expected.safetensors"
        with writing():
            save_file({"ids": ids.contiguous(), "logits": logits.contiguous()}, expected)
        # Remote code is copied into a cache of modules before it is imported: not into the user's.
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "HF_HUB_OFFLINE": "1"}
        # From there, so that nothing beside it is imported by mistake.
        script = shutil.copy(reload_check.__file__, scratch)
        command = [
            sys.executable,
            str(script),
            str(folder.absolute()),
            str(expected),
            str(int(remote)),
            str(int(decoding)),
            json.dumps(_streamed(model, scratch)),
        ]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    if done.returncode:
        reason = [f"exit code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise JobError(f"the checkpoint does not load in a fresh process ({reason})")
    check_answer(json.loads(done.stdout.strip().splitlines()[-1]), model.dtype)


def _streamed(model: PreTrainedModel, scratch: str) -> dict[str, Any]:
    """How a checkpoint is loaded so that its blocks stay on disk, where the model's do; else as usual."""
    if not on_disk(model):
        return {}
    return {"device_map": disk_map(model, find_blocks(model), "cpu"), "offload_folder": scratch}


def check_same_logits(wanted: Tensor, logits: Tensor) -> None:
    """Raise `JobError` where blocks that were taken out left something else than the same model without them."""
    difference = float((logits - wanted).abs().max() / wanted.abs().max())
    if not difference <= allowed_difference(wanted.dtype):
        raise JobError(
            f"without its blocks the model computes something else than with their updates left out (logits differ by "
            f"{difference:.1e} of the largest); does this architecture use a block's place for more than its cache?"
        )


def allowed_difference(dtype: torch.dtype) -> float:
    """How far logits in a precision may move between two processes, relative to the largest."""
    return _TOLERANCE.get(dtype, _COARSE_TOLERANCE)


def check_answer(answer: Mapping[str, float], dtype: torch.dtype) -> None:
    """Raise `JobError` for an answer of `reload_check.compare` that says that a model in some precision differs."""
    allowed = allowed_difference(dtype)
    differences = {"logits": "loads with other logits", "cached": "decodes otherwise with its cache than without"}
    for what, said in differences.items():
        if what in answer and not answer[what] <= allowed:  # NaN fails too
            raise JobError(
                f"the checkpoint {said}: they differ by {answer[what]:.1e} of the largest, above {allowed:.0e}; "
                "does this architecture number its blocks in a way that the config does not tell?"
            )
    if missing := answer.get("uncached"):
        raise broken_promise("transformers", f"decode with a cache of all tokens ({missing} are missing)")
