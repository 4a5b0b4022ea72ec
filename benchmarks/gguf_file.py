"""Write a checkpoint of a Llama, with or without replaced blocks, attentions or MLPs, as a GGUF file in float32.

    python benchmarks/gguf_file.py CHECKPOINT FILE.gguf

It takes the package gguf (`pip install 'rectilinear[gguf]'`).

A layer of llama.cpp is an attention and a feed-forward network, each behind its norm. Its architecture `llama` has the
same of both everywhere; `deci` has layers without attention (no heads) and layers whose attention is one matrix without
bias behind the norm (heads, but none for keys). So a model is taken as a sequence of sublayers, and these are put into
layers in order:

    an attention or MLP that stayed        itself
    x + b           (kind mean)            the bias of the feed-forward network before, whatever that is
    x + A norm(x)   (kind affine)          a linear attention, with the norm that the attention or MLP had
    nothing         (kind drop, folded)    nothing

A layer without a feed-forward network gets one of width 1 whose weights are zero. So an affine map with a bias is a
layer of its own: the map, and the bias of such a network.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float32]
Tensors = dict[str, Array]

_ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
_FEED_FORWARD = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}


class NoPlaceError(Exception):
    """A replacement that no layer of llama.cpp's architectures `llama` and `deci` computes."""


@dataclass(frozen=True)
class Sublayer:
    """What is added to the residual stream, by its tensors' names in a layer of a GGUF file.

    ``kind`` is ``attention``, ``linear`` (an attention of one matrix), ``feed_forward`` or ``constant``.
    """

    kind: str
    tensors: Tensors

    @property
    def is_first(self) -> bool:
        """Whether its place in a layer is that of the attention."""
        return self.kind in ("attention", "linear")


@dataclass
class Layer:
    """A layer of llama.cpp: what is in the place of the attention, and in that of the feed-forward network."""

    first: Sublayer | None = None
    second: Tensors = field(default_factory=dict)


def write_gguf(checkpoint: Path, file: Path, literal: bool = False) -> str:
    """Convert a checkpoint, and give the architecture that the file names.

    With ``literal`` it says by name what llama.cpp does not compute as named, to show what that does: layers without
    MLP by a feed-forward length of 0, and a window of all attentions.

    Raises:
        NoPlaceError: something that llama.cpp has no layer for.
    """
    config, weights = json.loads((checkpoint / "config.json").read_text()), load_file(checkpoint / "model.safetensors")
    if config.get("sliding_window") and not literal:
        raise NoPlaceError(f"attentions with a window of {config['sliding_window']}")
    layers = pack([*sublayers(config, weights)])
    for layer in layers:
        if not literal or layer.second:
            _complete(layer, config["hidden_size"])
    kinds = [layer.first.kind if layer.first else "none" for layer in layers]
    widths = [len(layer.second["ffn_up.weight"]) if layer.second else 0 for layer in layers]
    uniform = {*kinds} == {"attention"} and len({*widths}) == 1
    architecture = "llama" if uniform else "deci"
    _write(file, architecture, checkpoint, config, weights, layers, (kinds, widths))
    return architecture


def sublayers(config: Mapping[str, Any], weights: Mapping[str, Array]) -> Iterator[Sublayer]:
    """What a checkpoint adds to the residual stream, in order."""
    made = config.get("rectilinear", {"stack": "model.layers", "blocks": []})
    options = {block["path"]: block for block in made["blocks"]}
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    for block in range(config["num_hidden_layers"]):
        path = f"{made['stack']}.{block}"
        if path in options:
            yield from _stand_in(options[path], path, None, weights)
            continue
        for part, norm, names, place in (
            ("self_attn", "input_layernorm", _ATTENTION, "attn_norm"),
            ("mlp", "post_attention_layernorm", _FEED_FORWARD, "ffn_norm"),
        ):
            if (inner := f"{path}.{part}") in options:
                yield from _stand_in(options[inner], inner, weights.get(f"{path}.{norm}.weight"), weights)
                continue
            tensors = {f"{place}.weight": weights[f"{path}.{norm}.weight"]}
            for name, old in names.items():
                for suffix in ("weight", "bias"):
                    if (tensor := weights.get(f"{inner}.{old}.{suffix}")) is not None:
                        turned = {"attn_q": heads, "attn_k": pairs}.get(name)
                        tensors[f"{name}.{suffix}"] = tensor if turned is None else interleaved(tensor, turned)
            yield Sublayer("attention" if part == "self_attn" else "feed_forward", tensors)


def interleaved(rows: Array, heads: int) -> Array:
    """Rows of queries or keys for rotary embedding of neighbours: 0, h/2, 1, h/2 + 1, .. of each head's h."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _stand_in(
    options: Mapping[str, Any], path: str, norm: Array | None, weights: Mapping[str, Array]
) -> Iterator[Sublayer]:
    """What is in the place of a part behind a norm, or of a whole block, which has none before it."""
    kind = options["kind"]
    if kind not in ("drop", "mean", "affine") or (kind == "affine" and norm is None):
        raise NoPlaceError(f"{path}: {kind}" + " of a whole block" * (norm is None))
    factors = [weights[name] for name in sorted(weights) if name.startswith(f"{path}.map.") and weights[name].ndim == 2]
    bias = next((weights[name] for name in weights if name.startswith(f"{path}.map.") and name.endswith(".bias")), None)
    if factors and norm is not None:
        matrix = factors[0]
        for factor in factors[1:]:
            matrix = factor @ matrix
        yield Sublayer("linear", {"attn_norm.weight": norm, "attn_output.weight": matrix})
    if bias is not None and bias.any():
        yield Sublayer("constant", {"ffn_down.bias": bias})


def pack(parts: Sequence[Sublayer]) -> list[Layer]:
    """Sublayers in as few layers as hold them in order."""
    layers: list[Layer] = []
    for part in parts:
        if not layers or part.is_first or (part.kind == "feed_forward" and layers[-1].second):
            layers.append(Layer())
        if part.is_first:
            layers[-1].first = part
        elif part.kind == "constant":
            before = layers[-1].second.get("ffn_down.bias", np.float32(0))
            layers[-1].second["ffn_down.bias"] = before + part.tensors["ffn_down.bias"]
        else:
            layers[-1].second = dict(part.tensors)
    return layers


def _complete(layer: Layer, width: int) -> None:
    """A feed-forward network of width 1 where there is none, or a constant alone."""
    if "ffn_up.weight" not in layer.second:
        layer.second["ffn_norm.weight"] = np.ones(width, np.float32)
        layer.second["ffn_gate.weight"] = layer.second["ffn_up.weight"] = np.zeros((1, width), np.float32)
        layer.second["ffn_down.weight"] = np.zeros((width, 1), np.float32)


def _write(
    file: Path,
    architecture: str,
    checkpoint: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Array],
    layers: Sequence[Layer],
    shapes: tuple[list[str], list[int]],
) -> None:
    import gguf

    kinds, widths = shapes
    writer = gguf.GGUFWriter(str(file), architecture)
    _describe(writer, config, kinds, widths)
    _add_tokenizer(writer, checkpoint)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], len(layers))
    for name, tensor in weights.items():
        if (new := names.get_name(name, try_suffixes=(".weight",))) and not new.startswith("blk."):
            writer.add_tensor(new, tensor.astype(np.float32))
    for number, layer in enumerate(layers):
        for name, tensor in {**(layer.first.tensors if layer.first else {}), **layer.second}.items():
            writer.add_tensor(f"blk.{number}.{name}", np.ascontiguousarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: Mapping[str, Any], kinds: list[str], widths: list[int]) -> None:
    """The hyperparameters; by layer where they differ."""
    heads, pairs = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    if rope.get("rope_type", "default") != "default" or config["hidden_act"] != "silu":
        raise NoPlaceError("expected plain rotary embedding and SiLU")
    counts = [heads if kind != "none" else 0 for kind in kinds], [pairs if kind == "attention" else 0 for kind in kinds]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(len(kinds))
    writer.add_feed_forward_length(_one_or_all(widths))
    writer.add_head_count(_one_or_all(counts[0]))
    writer.add_head_count_kv(_one_or_all(counts[1]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if window := config.get("sliding_window"):
        writer.add_sliding_window(window)


def _one_or_all(values: list[int]) -> int | list[int]:
    return values[0] if len({*values}) == 1 else values


def _add_tokenizer(writer: Any, checkpoint: Path) -> None:
    """Its tokens and merges: bytes and GPT-2's pattern, or SentencePiece's way, by which of both tokenizer.json is."""
    import gguf

    read = json.loads((checkpoint / "tokenizer.json").read_text())
    model = read["model"]
    added = {token["id"]: token["content"] for token in read.get("added_tokens", [])}
    tokens = {number: token for token, number in model["vocab"].items()} | added
    pieces = [tokens[number] for number in range(len(tokens))]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    types = [gguf.TokenType.CONTROL if number in added else gguf.TokenType.NORMAL for number in range(len(pieces))]
    if model.get("byte_fallback"):
        ranks = {"".join(merge): rank for rank, merge in reversed([*enumerate(merges)])}
        types = [
            gguf.TokenType.BYTE if len(piece) == 6 and piece.startswith("<0x") else of
            for piece, of in zip(pieces, types, strict=True)
        ]
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(ranks.get(piece, len(merges))) for piece in pieces])
        writer.add_add_space_prefix(True)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    config = json.loads((checkpoint / "config.json").read_text())
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


if __name__ == "__main__":
    print(write_gguf(Path(sys.argv[1]), Path(sys.argv[2])))
