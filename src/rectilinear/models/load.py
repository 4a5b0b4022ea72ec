"""Loading models and tokenizers, from a folder, the Hub, or the one that is built in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rectilinear.errors import RequestError, first_line, require
from rectilinear.models.checkpoint_files import check_config, check_folder, check_weights_fill, is_being_replaced
from rectilinear.models.find_blocks import text_config
from rectilinear.models.loading_info import Head, check_loading_info, collecting_warnings
from rectilinear.models.offload import streaming
from rectilinear.models.peft_adapters import ADAPTER_CONFIG, Adapter, apply_adapter, find_adapter
from rectilinear.models.released_code import own_class_of, own_model_class, read_text_file
from rectilinear.models.running import pick_device
from rectilinear.models.settings import Access, Loading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: Name of the small decoder that comes with this package, trained on generated stories.
STORYTELLER = "storyteller"


def resolve(model: str | Path, contents: Sequence[str] = ("config.json",)) -> str:
    """Where to load a model from: the built-in one's folder, else the path or Hub id itself.

    Raises:
        RequestError: what can only be a path is no folder with one of the files in ``contents``, or one whose JSON
            files cannot be those of a model.
    """
    name = str(model)
    if name == STORYTELLER:
        return str(Path(__file__).parent / STORYTELLER)
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long a name, or of a user who is not there
        raise RequestError(f"no model at {name!r:.100}: {getattr(error, 'strerror', None) or error}") from None
    if is_gguf(name):
        if not path.is_file():
            raise RequestError(f"no model at {name}: expected a GGUF file")
        require("gguf", "gguf")
        return str(path)
    wanted = " or ".join(contents)
    if path.is_dir():
        if not any((path / file).exists() for file in contents):
            if is_being_replaced(path):
                raise RequestError(
                    f"no model in {name}: a run was killed as it moved its result there; try the same command again, "
                    "which finishes that"
                )
            inside = next(path.glob("*.gguf"), None)
            hint = f"; try {inside}" if inside else ""
            raise RequestError(f"no model in {name}: expected a folder with a {wanted}{hint}")
        check_folder(path, {*contents, "generation_config.json", "special_tokens_map.json", "*.index.json"})
        return str(path)
    if path.exists() or path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise RequestError(f"no model at {name}: expected a folder with a {wanted}, or a Hub id")
    return name


def is_gguf(model: str | Path) -> bool:
    """Whether a model is a file of llama.cpp's, which has configuration, weights and tokenizer in one."""
    return Path(model).suffix.lower() == ".gguf"


def load_config(model: str | Path, access: Access = Access()) -> PretrainedConfig:
    """The configuration of a model, or of the one that an adapter is for.

    Raises:
        RequestError: there is none, or transformers does not know it.
    """
    from transformers import AutoConfig

    source, revision, _ = _find_weights(model, access)
    own = None if access.trust_remote_code or is_gguf(source) else own_model_class(source, revision)
    kind = own.config_class if own else AutoConfig
    return _load(kind, source, "configuration", revision=revision, trust_remote_code=access.trust_remote_code)


def load_model(
    model: str | Path, loading: Loading = Loading(), *, head: bool = False, any_kind: bool = False
) -> PreTrainedModel:
    """A decoder with its weights, in evaluation mode, on a device; adapters are merged into them.

    What to know of it before trusting its numbers is what `loading_warnings` gives.

    Args:
        model: Hub id or path of a model or an adapter of PEFT, or ``"storyteller"``.
        loading: how it is loaded.
        head: refuse a checkpoint without the head that gives logits.
        any_kind: take models that are no causal language models, without their heads.

    Raises:
        RequestError: no such model, not one that loads, or one whose configuration and weights do not belong together.
    """
    from transformers import AutoModelForCausalLM

    place = pick_device(loading.device)
    config = load_config(model, loading)
    skeleton = None if is_gguf(model) else build_without_weights(config, loading, any_kind=any_kind)
    dtype = loading.dtype if loading.dtype == "auto" else getattr(torch, loading.dtype)
    needed: Head = "needed" if head else "optional"  # hidden states do not need one
    kind = _saved_as(config) if any_kind else AutoModelForCausalLM
    adapted = skeleton is not None and find_adapter(resolve(model, ("config.json", ADAPTER_CONFIG)), loading.revision)
    streamed = streaming(None if adapted or any_kind else skeleton, loading, place)
    loaded = _load_weights(kind, model, needed, loading, skeleton, dtype=dtype, **streamed)
    return (loaded if streamed else loaded.to(place)).eval()


def _saved_as(config: PretrainedConfig) -> Any:
    """The class of transformers that a checkpoint was saved as, which has weights for it all; else `AutoModel`."""
    import transformers

    found = getattr(transformers, next(iter(config.architectures or ()), ""), None)
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model else transformers.AutoModel


def load_classifier(
    model: str | Path, labels: Sequence[str], padding: int, access: Access = Access()
) -> PreTrainedModel:
    """A decoder with a new head that gives each text a score for every label, in float32; see `load_model`.

    Texts are padded with the id ``padding``: the head reads the last token that is not this one.

    Raises:
        RequestError: no such model, or not one that classifies texts.
    """
    from transformers import AutoModelForSequenceClassification

    names = {"id2label": dict(enumerate(labels)), "label2id": {name: index for index, name in enumerate(labels)}}
    kind = AutoModelForSequenceClassification
    skeleton = None if is_gguf(model) else build_without_weights(load_config(model, access), access)
    loaded = _load_weights(kind, model, "new", access, skeleton, dtype=torch.float32, **names)
    loaded.config.pad_token_id = text_config(loaded.config).pad_token_id = padding
    return loaded


def check_classifier(config: PretrainedConfig, access: Access) -> None:
    """Raise `RequestError` for an architecture that there is no classifier of texts for; needs no weights."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config, trust_remote_code=access.trust_remote_code)
    except ValueError:
        raise RequestError(f"expected a model transformers has a classifier for, got {config.model_type}") from None


def load_tokenizer(model: str | Path, access: Access = Access()) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or one by itself; a folder may have no more than its vocab.json and merges.txt.

    Where an adapter has none beside it, it is that of the model that the adapter is for.

    Raises:
        RequestError: there is none.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast

    described = ("tokenizer.json", "tokenizer_config.json", "config.json")
    place = resolve(model, (*described, "merges.txt", ADAPTER_CONFIG))
    there = {file for file in (*described, "merges.txt") if (Path(place) / file).exists()}
    if not there and not is_gguf(place) and (adapter := find_adapter(place, access.revision)):
        return load_tokenizer(adapter.base, access.model_copy(update={"revision": adapter.base_revision}))
    # Byte-level BPE as GPT-2's, of which transformers cannot tell the class by these two files alone.
    kind = GPT2TokenizerFast if there == {"merges.txt"} else AutoTokenizer
    options: dict[str, Any] = access.part(Access).model_dump()
    if not (access.trust_remote_code or is_gguf(place)) and (own := own_model_class(place, access.revision)):
        # Else read as of no known type.
        options["config"] = _load(own.config_class, place, "configuration", revision=access.revision)
    with collecting_warnings() as warnings:
        tokenizer = _load(_Tried(kind), place, "tokenizer", **options)
    tokenizer.loading_warnings = warnings
    return tokenizer


class _Tried:
    """A class of tokenizers, of which each is tried once it is loaded: its files may say what only shows then."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def from_pretrained(self, *args: Any, **options: Any) -> Any:
        """What the class gives."""
        tokenizer = self.kind.from_pretrained(*args, **options)
        tokenizer("a", verbose=False)
        return tokenizer


def build_without_weights(
    config: PretrainedConfig, access: Access = Access(), *, any_kind: bool = False
) -> PreTrainedModel:
    """The decoder of a configuration on the ``meta`` device: its structure, no memory; where asked for any model.

    Raises:
        RequestError: the configuration is not that of a decoder.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.initialization import meta_device_safe_creation_ops

    try:
        # As from_pretrained builds it: models with code of their own may read numbers out of torch.linspace.
        with torch.device("meta"), meta_device_safe_creation_ops():
            if own := own_class_of(config):
                return own(config)
            if getattr(config, "is_encoder_decoder", False) and not any_kind:
                raise RequestError(
                    f"expected a causal language model, got {config.model_type} with an encoder and a decoder; measure "
                    "takes one of them, as `blocks=encoder` or `blocks=decoder`"
                )
            kind = AutoModel if any_kind else AutoModelForCausalLM
            return kind.from_config(config, trust_remote_code=access.trust_remote_code)
    except (MemoryError, RequestError):
        raise
    except Exception as error:  # whatever an architecture meets with in a configuration
        raise RequestError(f"expected a causal language model, got {config.model_type} ({first_line(error)})") from None


def check_revision(model: str | Path, revision: str | None) -> None:
    """Raise `RequestError` for a revision of what has none: a path, or the built-in model."""
    if revision is not None and is_here(model):
        raise RequestError(f"expected no `revision` of {model}, which is no Hub id; try without it")


def is_here(model: str | Path) -> bool:
    """Whether it is a path, or the built-in model."""
    return str(model) == STORYTELLER or Path(model).expanduser().exists()


def commit_of(model: str | Path, revision: str | None) -> str | None:
    """The commit that a revision of a Hub id is at; None for a path, and where it is not known."""
    from transformers.utils.hub import resolve_revision

    if is_here(model):
        return None
    commit: str | None = getattr(resolve_revision(str(model), revision), "resolved", None)
    return commit


def _find_weights(model: str | Path, access: Access) -> tuple[str, str | None, Adapter | None]:
    """Where the weights of a model are and in which revision, and the adapter for them, if that is what was named."""
    source = resolve(model, ("config.json", ADAPTER_CONFIG))
    if is_gguf(source):
        return source, None, None
    adapter = find_adapter(source, access.revision)
    revision = access.revision
    if adapter:
        source, revision = resolve(adapter.base), adapter.base_revision
    if text := read_text_file(source, "config.json", revision):
        check_config(source, text, access.trust_remote_code)
    return source, revision, adapter


def _load_weights(
    auto_class: Any,
    model: str | Path,
    head: Head,
    access: Access,
    skeleton: PreTrainedModel | None,
    **options: Any,
) -> Any:
    source, revision, adapter = _find_weights(model, access)
    if skeleton is not None and Path(source).is_dir():
        check_weights_fill(Path(source), skeleton.num_parameters())
    if not (access.trust_remote_code or is_gguf(source)):
        auto_class = own_model_class(source, revision) or auto_class
    options |= {"revision": revision, "trust_remote_code": access.trust_remote_code}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with collecting_warnings() as warnings:
        loaded, info = _load(auto_class, source, "classifier" if head == "new" else "model", **options)
        warnings += check_loading_info(model, loaded, info, head)
        if adapter:
            loaded, merged = apply_adapter(loaded, adapter)
            warnings.append(merged)
        if is_gguf(source):  # its weights are floating point now
            loaded.hf_quantizer.remove_quantization_config(loaded)
            warnings.append(f"the weights of {source} were read from a GGUF file, which may hold them quantised")
    loaded.loading_warnings = warnings
    return loaded


def _load(auto_class: Any, model: str | Path, what: str, **options: Any) -> Any:
    place, file = (Path(model).parent, {"gguf_file": Path(model).name}) if is_gguf(model) else (model, {})
    try:
        return auto_class.from_pretrained(place, **file, **options)
    except MemoryError:
        raise
    except Exception as error:  # Hub, configuration, code and weight errors share no narrower class.
        hint = "; if you trust it, try `trust_remote_code`" if "trust_remote_code=True" in str(error) else ""
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"; try `pip install {error.name}`"
        elsewhere = "" if Path(model).exists() else ", which is no folder here"
        raise RequestError(
            f"cannot load the {what} of {str(model)!r}{elsewhere}: {first_line(error).rstrip(' .')}{hint}"
        ) from error
