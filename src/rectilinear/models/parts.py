"""The parts of a block that can be replaced: where they are, and what a stand-in has to do like them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from rectilinear.errors import RequestError
from rectilinear.models.capture import Span
from rectilinear.settings import Target


@dataclass(frozen=True)
class Part:
    """A module of the residual stream's width, or two with all that is between them, that adds to the stream.

    Attributes:
        path: dotted path of the module that gives the output.
        entry: of the one that takes the input; the same, where it is one module.
        outputs: how many values are returned, 0 for a bare tensor; ``listed`` where these are in a list.
        passes: arguments that further values are handed on from, by their places.
        adds: the argument that is the stream and that it adds itself.
        role: what it keeps in a cache: see `rectilinear.models.linear_block.LinearBlock`; None for nothing.
        cache_layers: indices of the layers of the cache that it keeps that in.
        width: of hidden states; of several residual streams together.
        in_stream: whether they are the stream's own, not those of one of several.
        entry_width: of what the entry gives.
        added: path of the module that makes of its output what is added to the stream, as a norm after it; "" for none.
    """

    path: str
    entry: str
    width: int
    in_stream: bool = True
    outputs: int = 0
    listed: bool = False
    passes: Mapping[str, str] = field(default_factory=dict)
    adds: str | None = None
    role: str | None = None
    cache_layers: tuple[int, ...] = ()
    entry_width: int = 0
    added: str = ""

    def span(self, model: nn.Module) -> Span:
        """Its modules in a model."""
        return Span(model.get_submodule(self.entry), model.get_submodule(self.path), self.adds)

    def update_span(self, model: nn.Module) -> Span:
        """From what it takes to what is added to the stream."""
        if not self.added:
            return self.span(model)._replace(is_update=True)
        return Span(model.get_submodule(self.entry), model.get_submodule(self.added), is_update=True)


@dataclass(frozen=True)
class Parts:
    """What can be replaced in each block of a stack: itself, the part that mixes tokens, the part that does not."""

    found: Sequence[Mapping[str, Part | str]]
    caches: bool = False  # whether the model keeps anything in a cache of transformers as it decodes

    def part(self, index: int, target: Target, removed: bool = False) -> Part:
        """A block or a part of one. RequestError, with the reason, where none could be replaced, or removed."""
        part = self.found[index]["removal" if removed else target]
        if isinstance(part, str):
            raise RequestError(part)
        return part


def check_not_shared(model: nn.Module, part: Part, removed: bool) -> None:
    """Raise `RequestError` for a part whose weights other parts of the model have too, unless it will be gone."""
    own = {id(parameter) for module in part.span(model)[:2] for parameter in module.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not removed and id(parameter) in own and not name.startswith((f"{part.path}.", f"{part.entry}.")):
            raise RequestError(
                f"expected something with weights of its own to replace, got {part.path}, which shares some with "
                f"{name}; try other blocks"
            )
