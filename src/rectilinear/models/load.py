"""Loading models and tokenizers, from a folder, the Hub, or the one that is built in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rectilinear.errors import RequestError, broken_promise, first_line
from rectilinear.models.blocks import BlockStack, text_config
from rectilinear.models.own_code import own_class_of, own_model_class
from rectilinear.text.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from rectilinear.models.blocks import BlockStack

#: Name of the small decoder that comes with this package, trained on generated stories.
STORYTELLER = "storyteller"

DType = Literal["auto", "float32", "bfloat16", "float16"]


def resolve(model: str | Path, contents: Sequence[str] = ("config.json",)) -> str:
    """Where to load a model from: the built-in one's folder, else the path or Hub id itself.

    Args:
        model: its name.
        contents: files of which a folder must have one.

    Raises:
        RequestError: something that can only be a path is not such a folder.
    """
    name = str(model)
    if name == STORYTELLER:
        return str(Path(__file__).parent / STORYTELLER)
    path = Path(name).expanduser()
    wanted = " or ".join(contents)
    if path.is_dir() and not any((path / file).exists() for file in contents):
        raise RequestError(f"no model in {name}: expected a folder with a {wanted}")
    if path.is_dir():
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise RequestError(f"no model at {name}: expected a folder with a {wanted}, or a Hub id")
    return name


def pick_device(device: str) -> torch.device:
    """The device of that name; for ``auto`` CUDA, then MPS, then the CPU.

    Raises:
        RequestError: no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error).split(". ")[0][:80]
        raise RequestError(f"device {device!r} is not to be had here ({reason}); try --device cpu") from None
    if picked.type == "meta":
        raise RequestError("expected a device that computes such as cpu, cuda:0 or mps, got 'meta'")
    return picked


def load_config(model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model.

    Raises:
        RequestError: there is none, or transformers does not know it.
    """
    from transformers import AutoConfig

    place = resolve(model)
    own = None if trust_remote_code else own_model_class(place, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return _load(own.config_class if own else AutoConfig, place, "configuration", **options)


def load_model(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: DType = "auto",
    trust_remote_code: bool = False,
    head: bool = False,
) -> PreTrainedModel:
    """A decoder with its weights, in evaluation mode, on a device.

    Args:
        model: Hub id, path, or ``"storyteller"``.
        revision: branch, tag or commit on the Hub.
        device: ``auto``, ``cpu``, ``cuda:0``, ``mps``.
        dtype: of the weights; ``auto`` is the checkpoint's own.
        trust_remote_code: run modelling code that comes with the checkpoint.
        head: refuse a checkpoint without the head that gives logits.

    Raises:
        RequestError: no such model, or not one that loads.
    """
    from transformers import AutoModelForCausalLM

    place, source = pick_device(device), resolve(model)
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    own = None if trust_remote_code else own_model_class(source, revision)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    loaded: PreTrainedModel
    loaded, info = _load(own or AutoModelForCausalLM, source, "model", dtype=kind, output_loading_info=True, **options)
    # Hidden states do not need a head.
    prefix = "" if head or loaded.base_model is loaded else f"{loaded.base_model_prefix}."
    _check_complete(model, loaded, info, prefix)
    return loaded.to(place).eval()  # type: ignore[arg-type]


def load_classifier(
    model: str | Path,
    labels: Sequence[str],
    padding: int,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A decoder with a new head that gives each text a score for every label, in float32.

    Args:
        model: Hub id, path, or ``"storyteller"``.
        labels: names of the labels.
        padding: id that texts are padded with; the head reads the last token that is not this one.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run modelling code that comes with the checkpoint.

    Raises:
        RequestError: no such model, or not one that classifies texts.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    names = dict(enumerate(labels))
    options: dict[str, Any] = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    options |= {"revision": revision, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    loaded: PreTrainedModel
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is what was asked for
    try:
        loaded, info = _load(
            AutoModelForSequenceClassification, resolve(model), "classifier", dtype=torch.float32, **options
        )
    finally:
        logging.set_verbosity(verbosity)
    _check_complete(model, loaded, info, f"{loaded.base_model_prefix}.")
    loaded.config.pad_token_id = text_config(loaded.config).pad_token_id = padding
    return loaded


def check_classifier(config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Refuse an architecture for which there is no classifier of texts; needs no weights.

    Raises:
        RequestError: there is none.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError:
        raise RequestError(
            f"expected a model that transformers has a classifier for, got {config.model_type}"
        ) from None


def load_tokenizer(
    model: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or one by itself; a folder may have no more than its vocab.json and merges.txt.

    Raises:
        RequestError: there is none.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    described = ("tokenizer.json", "tokenizer_config.json", "config.json")
    place = resolve(model, (*described, "merges.txt"))
    # Byte-level BPE as GPT-2's, of which transformers cannot tell the class by these two files alone.
    bare = (Path(place) / "merges.txt").exists() and not any((Path(place) / file).exists() for file in described)
    kind = GPT2TokenizerFast if bare else AutoTokenizer
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if not trust_remote_code and (own := own_model_class(place, revision)):
        options["config"] = own.config_class.from_pretrained(place, revision=revision)  # else read as of no known type
    return _load(kind, place, "tokenizer", **options)


def check_context(config: PretrainedConfig | None, seq_len: int) -> None:
    """Refuse rows longer than the model's context.

    Raises:
        RequestError: they are.
    """
    context = getattr(text_config(config), "max_position_embeddings", None)
    if isinstance(context, int) and 0 < context < seq_len:
        raise RequestError(
            f"expected rows within the model's context of {context} tokens, "
            f"got rows of {seq_len}; try --seq-len {context}"
        )


def check_rows(config: PretrainedConfig | None, ids: Tensor) -> None:
    """Refuse token ids ``[rows, seq_len]`` that the model cannot take; tensors that are not ids pass.

    Raises:
        RequestError: rows longer than its context, or an id outside its vocabulary.
    """
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        return
    check_context(config, ids.shape[1])
    vocabulary, largest = getattr(text_config(config), "vocab_size", None), int(ids.max())
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise RequestError(
            f"expected token ids below the model's vocabulary of {vocabulary}, got {largest}; "
            "is this the model's own tokenizer?"
        )


def build_without_weights(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The decoder of a configuration on the ``meta`` device: its structure, no memory.

    Raises:
        RequestError: the configuration is not that of a decoder.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import meta_device_safe_creation_ops

    try:
        # As from_pretrained builds it: models with code of their own may read numbers out of torch.linspace.
        with torch.device("meta"), meta_device_safe_creation_ops():
            if own := own_class_of(config):
                return own(config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        raise RequestError(f"expected a causal language model, got {config.model_type} ({first_line(error)})") from None


def describe(model: PreTrainedModel, stack: BlockStack) -> dict[str, Any]:
    """What there is to know of a decoder and its block stack without weights.

    Returns:
        ``architecture``, ``blocks`` (path of the stack), ``found_by``, ``block_class``,
        ``num_blocks``, ``width``, ``parameters``, ``block_parameters`` (of all blocks),
        ``vocabulary`` and ``context`` in tokens (None where the model has no limit).
    """
    text = text_config(model.config)
    classes = sorted({type(block).__name__ for block in stack})
    return {
        "architecture": type(model).__name__,
        "blocks": stack.path,
        "found_by": stack.rule,
        "block_class": "/".join(classes),
        "num_blocks": len(stack),
        "width": getattr(text, "hidden_size", None),
        "parameters": count_parameters([model]),
        "block_parameters": count_parameters(list(stack)),
        "vocabulary": getattr(text, "vocab_size", None),
        "context": getattr(text, "max_position_embeddings", None),
    }


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules, shared ones once."""
    unique = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    return sum(unique.values())


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a line ``name dtype [shape] SHA-256-of-its-bytes`` for each tensor of the state dict, by name."""
    state = sorted(model.state_dict().items())
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda named: fingerprint([named[1]]), state)
    return fingerprint(
        f"{name} {tensor.dtype} {[*tensor.shape]} {digest}\n"
        for (name, tensor), digest in zip(state, digests, strict=True)
    )


def commit_of(model: str | Path, revision: str | None) -> str | None:
    """The commit that a revision of a Hub id is at; None for a path, and where it is not known."""
    from transformers.utils.hub import resolve_revision

    if str(model) == STORYTELLER or Path(model).expanduser().exists():
        return None
    commit: str | None = getattr(resolve_revision(str(model), revision), "resolved", None)
    return commit


def _check_complete(model: str | Path, loaded: PreTrainedModel, info: Any, prefix: str) -> None:
    """Refuse a checkpoint that lacks weights whose names begin like this: they would be random."""
    if "missing_keys" not in info:
        raise broken_promise("transformers", "tell which weights a checkpoint lacks (`missing_keys`)")
    if missing := sorted(key for key in info["missing_keys"] if key.startswith(prefix)):
        raise RequestError(
            f"cannot load {str(model)!r}: weights of {type(loaded).__name__} are not in the checkpoint "
            f"({len(missing)}, {missing[0]} among them); is it a checkpoint of a causal language model?"
        )


def _load(auto_class: Any, model: str | Path, what: str, **options: Any) -> Any:
    try:
        return auto_class.from_pretrained(model, **options)
    except MemoryError:
        raise
    except Exception as error:  # Hub, configuration, code and weight errors share no narrower class.
        hint = "; if you trust it, try --trust-remote-code" if "trust_remote_code=True" in str(error) else ""
        elsewhere = "" if Path(model).exists() else ", which is no folder here"
        raise RequestError(
            f"cannot load the {what} of {str(model)!r}{elsewhere}: {first_line(error).rstrip(' .')}{hint}"
        ) from error
