"""Find the stack of decoder blocks of a model by structure alone, for any PyTorch module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from rectilinear.errors import RequestError

_Modules = tuple[nn.Module, ...]
_Lists = dict[str, _Modules]  # dotted path of a list -> its modules in order


@dataclass(frozen=True)
class BlockStack:
    """The blocks of a decoder, in order; `path` is where the list is in the model ("" when it is the model).

    `rule` says how it was found: "path" (asked for), "depth" (as long as the config's `num_hidden_layers`),
    "layer class" (all transformers' `GradientCheckpointingLayer`) or "only list" (no other is of one class).
    """

    path: str
    blocks: _Modules
    rule: str

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.blocks)

    def path_of(self, index: int) -> str:
        """Dotted path of a block."""
        return f"{self.path}.{index}" if self.path else str(index)


#: What `find_blocks` takes in place of a path: which of two stacks is meant.
HALVES = ("encoder", "decoder")


def find_blocks(model: nn.Module, path: str | None = None) -> BlockStack:
    """Find the block stack of `model`, or of its ``"encoder"`` or ``"decoder"``, or take the list at `path`.

    Lists under `model.get_decoder()` come first and lists inside other lists come last. A model without a config needs
    exactly one list of two or more modules of one class.

    Raises:
        RequestError: no list of modules is at `path`, or the structure leaves none or several to choose from.
    """
    if path in HALVES and (half := half_of(model, path)) is not model:
        where = next(name for name, module in model.named_modules() if module is half)
        inside = find_blocks(half)
        return BlockStack(f"{where}.{inside.path}".rstrip("."), inside.blocks, inside.rule)
    if path is not None and path not in HALVES:
        return BlockStack(path, _list_at(model, path), "path")
    for rule, found in _candidates(model):
        if found:
            chosen = _narrow(model, found)
            if len(chosen) > 1:
                raise _error("one stack of decoder blocks", f"{len(chosen)} that could be it", chosen)
            ((where, blocks),) = chosen.items()
            return BlockStack(where, blocks, rule)
    raise _error("a stack of decoder blocks", "none that stands out", _outermost(_all_lists(model)))


def half_of(model: nn.Module, half: str | None) -> nn.Module:
    """The encoder or the decoder of a model, where it takes inputs by itself; else, and for no half, the model."""
    if half not in HALVES:
        return model
    try:
        found: Any = getattr(model, f"get_{half}")()
    except Exception:  # it is a best-effort lookup, and remote code may raise anything
        return model
    return found if hasattr(found, "config") and hasattr(found, "main_input_name") else model


def _list_at(model: nn.Module, path: str) -> _Modules:
    """Return the indexed children of the module at `path`; raise RequestError when there are none."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        got = "nothing there"
    else:
        blocks = _children(module)
        numbered = list(module._modules) == [str(i) for i in range(len(blocks))]
        if blocks and (numbered or isinstance(module, nn.Sequential)):
            return blocks
        got = f"{type(module).__name__} {'without numbered modules' if blocks else 'with no modules in it'}"
    raise _error(f'a list of modules at "{path}"', got, _outermost(_all_lists(model)))


def _candidates(model: nn.Module) -> Iterator[tuple[str, _Lists]]:
    """Yield (rule, lists that satisfy it), the most trusted rule first."""
    depth = getattr(text_config(getattr(model, "config", None)), "num_hidden_layers", None)
    everything = _all_lists(model)
    for root in (_decoder(model), model):
        inside = {id(m) for m in root.modules() if isinstance(m, nn.ModuleList)}
        lists = {k: v for k, v in everything.items() if id(model.get_submodule(k)) in inside}
        for pool in (_outermost(lists), lists):
            yield "depth", _outermost({k: v for k, v in pool.items() if len(v) == depth})
            yield "layer class", _outermost({k: v for k, v in pool.items() if all(map(_is_layer, v))})
    alike = {k: v for k, v in everything.items() if len(v) > 1 and len(set(map(type, v))) == 1}
    yield "only list", _outermost(alike)


def _narrow(model: nn.Module, found: _Lists) -> _Lists:
    """Keep the lists that look most like blocks: each preference applies unless it would leave nothing.

    They belong to the text model (a vision or audio tower has a config class of its own), they are made of
    transformers' layers, their modules have parts (norms and embeddings have none).
    """
    text = type(text_config(getattr(model, "config", None)))
    for preferred in (
        {k for k in found if type(_owner_config(model, k)) is text},
        {k for k, v in found.items() if all(map(_is_layer, v))},
        {k for k, v in found.items() if all(map(_children, v))},
    ):
        found = {k: v for k, v in found.items() if k in preferred} or found
    return found


def _all_lists(model: nn.Module) -> _Lists:
    """Return every non-empty ModuleList and Sequential."""
    kinds = (nn.ModuleList, nn.Sequential)
    return {k: _children(m) for k, m in model.named_modules() if isinstance(m, kinds) and len(m)}


def _outermost(lists: _Lists) -> _Lists:
    """Drop the lists that lie inside another one of them."""
    return {k: v for k, v in lists.items() if not any(above in lists for above in _above(k))}


def _children(module: nn.Module) -> _Modules:
    """Return the direct submodules; a module that is there twice counts twice (not so in `children()`)."""
    return tuple(m for m in module._modules.values() if m is not None)


def _above(path: str) -> list[str]:
    """Return the paths of the modules around the one at `path`, closest first, the model ("") last."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in reversed(range(len(parts)))]


def _is_layer(module: nn.Module) -> bool:
    """Tell whether this is a transformers layer, without importing transformers."""
    return any(c.__name__ == "GradientCheckpointingLayer" for c in type(module).__mro__)


def _decoder(model: nn.Module) -> nn.Module:
    """Return `model.get_decoder()` where it answers with a module, else the model."""
    try:
        decoder: Any = model.get_decoder()  # type: ignore[operator]
    except Exception:  # it is a best-effort lookup, and remote code may raise anything
        return model
    return decoder if isinstance(decoder, nn.Module) else model


def takes_own_inputs(model: nn.Module, stack: BlockStack) -> bool:
    """Whether a stack is that of a decoder that has an encoder beside it, and so inputs of its own."""
    try:
        encoder: Any = model.get_encoder()  # type: ignore[operator]
    except Exception:  # there is none
        return False
    if not isinstance(encoder, nn.Module) or encoder is model or encoder is _decoder(model):
        return False
    return all(module is not stack.blocks[0] for module in encoder.modules())


def text_config(config: Any) -> Any:
    """Return the text decoder's part of a config, the whole where that is ambiguous or not said."""
    try:
        return config.get_text_config(decoder=True)
    except (AttributeError, ValueError):
        return config


def context_of(config: Any) -> int | None:
    """Tokens that fit into a decoder's context; None where its configuration names no limit."""
    text = text_config(config)
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    return next((context for context in named if isinstance(context, int) and context > 0), None)


def width_of(config: Any) -> int | None:
    """Width of a decoder's hidden states; None where its configuration does not say."""
    return getattr(text_config(config), "hidden_size", None)


def _owner_config(model: nn.Module, path: str) -> Any:
    """Return the config of the closest module around `path` that has one, or None."""
    configs = (getattr(model.get_submodule(above), "config", None) for above in _above(path))
    return next((config for config in configs if config is not None), None)


def _error(expected: str, got: str, lists: _Lists, most: int = 8) -> RequestError:
    """Write the one-line error that names the lists to choose from."""
    kinds = {k: "/".join(sorted({type(m).__name__ for m in v})) for k, v in lists.items()}
    named = [f"{k or 'the model itself'} ({len(v)} x {kinds[k]})" for k, v in lists.items()]
    more = [f"and {len(named) - most} more"] if len(named) > most else []
    hint = ", ".join(named[:most] + more) or "nothing in this model, which has no module lists"
    choose = 'try --blocks path.to.layers (--stack to linearize; in Python: blocks="path.to.layers") with one of'
    return RequestError(f"expected {expected}, got {got}; {choose}: {hint}")
