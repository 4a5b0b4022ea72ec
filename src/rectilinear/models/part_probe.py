"""Which modules of a block mix tokens, and which see each token alone: found by running them, not by their names.

The part of a block that mixes tokens is called its attention, whatever it is (a convolution, a recurrence), and the
other part its MLP. All is found on a few tokens, and holds for any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rectilinear.models.calls import (
    Call,
    Kept,
    added_argument,
    changing,
    random_weights,
    record_calls,
    record_kept,
    rounding,
    same,
)
from rectilinear.models.capture import first_value, with_first
from rectilinear.models.find_blocks import BlockStack
from rectilinear.models.offload import in_memory
from rectilinear.models.parts import Part, Parts
from rectilinear.models.running import evaluating, hooked, hooked_before, run

_ROWS, _TOKENS = 2, 7  # of what blocks are tried on: no two sizes are the same


def probe_parts(model: nn.Module, stack: BlockStack, inputs: Tensor) -> Parts:
    """Run a model on a few token ids of ``[rows, seq_len]`` and find the parts of its blocks."""
    ids = torch.unique(inputs)  # of equal tokens the hidden states are equal
    ids = ids.repeat(-(-_ROWS * _TOKENS // len(ids)))[: _ROWS * _TOKENS].view(_ROWS, _TOKENS)
    with evaluating(model), torch.no_grad():
        calls = record_calls(model, stack, ids)
        kept = record_kept(model, stack, ids)
        probes = [_BlockProbe(model, stack, ids, calls, kept, index) for index in range(len(stack))]
        return Parts([probe.parts() for probe in probes], bool(kept))


@dataclass(frozen=True, eq=False)
class _BlockProbe:
    """One block of a model that ran."""

    model: nn.Module
    stack: BlockStack
    ids: Tensor
    calls: Mapping[nn.Module, list[Call]]
    kept: Mapping[nn.Module, Kept] | None
    index: int

    @property
    def block(self) -> nn.Module:
        return self.stack.blocks[self.index]

    @property
    def stream(self) -> Tensor:
        """What came into the block; nothing where no hidden states did."""
        return torch.empty(0) if (x := self.calls[self.block][0].x) is None else x

    @property
    def where(self) -> str:
        return self.stack.path_of(self.index)

    @property
    def name(self) -> str:
        return f"block {self.index} ({type(self.block).__name__})"

    def parts(self) -> dict[str, Part | str]:
        """The block, as something to replace or to remove, its attention and its MLP, or why there is none."""
        ran = self.calls.get(self.block, [])
        if len(ran) != 1:
            times = "does not run on text" if not ran else f"runs {len(ran)} times"
            reason = f"expected blocks that run once in a forward pass, got {self.name}, which {times}"
            return dict.fromkeys(("removal", "block", "attention", "mlp"), reason)
        with in_memory(self.block):
            removal = self._part(self.block, self.where, ran[0], removed=True)
            return {"removal": removal, **self._replaceable(ran)}

    def _replaceable(self, ran: Sequence[Call]) -> dict[str, Part | str]:
        x, y = ran[0].x, ran[0].y
        if x is None or not isinstance(y, Tensor) or x.shape != y.shape or not self._is_standard(x):
            shapes = f"{[*x.shape] if x is not None else None} in, {[*y.shape] if isinstance(y, Tensor) else None} out"
            reason = (
                f"expected blocks that take and give hidden states [rows, tokens, width], got {self.name} with "
                f"{shapes} for {_ROWS} rows of {_TOKENS} tokens"
            )
            return dict.fromkeys(("block", "attention", "mlp"), reason)
        candidates = [*self._candidates(self.block, self.where)]
        mixing = {part.path: self._mixes(part) for part in candidates}
        mixers = [part for part in candidates if mixing[part.path]]
        others = [part for part in candidates if not mixing[part.path] and not self._is_chained(part, candidates)]
        others += self._spans(mixers, others) if mixers else []
        return {
            "block": self._part(self.block, self.where, ran[0]),
            "attention": self._only(mixers, "attention", "mixes tokens"),
            "mlp": self._only(others, "mlp", "sees each token alone"),
        }

    def _is_standard(self, x: Tensor) -> bool:
        return tuple(x.shape[:2]) == (_ROWS, _TOKENS) if x.ndim > 2 else len(x) == _ROWS * _TOKENS

    def _only(self, parts: Sequence[Part], target: str, does: str) -> Part | str:
        if len(parts) == 1:
            return replace(parts[0], added=self._added(parts[0]))
        paths = ", ".join(part.path.removeprefix(f"{self.where}.") for part in parts) or "none"
        return f"expected one {target} in {self.name}, a part that {does}, got {paths}; try `target=block`"

    def _added(self, part: Part) -> str:
        """The module, as a norm, that a part's output goes straight through before it is added; "" for none."""
        own, found = self.model.get_submodule(part.path), ""
        inside, given = {*own.modules()}, self.calls[own][0].y
        for name, module in self.block.named_modules():
            calls = self.calls.get(module, [])
            through = len(calls) == 1 and module not in inside and same(calls[0].x, given)
            if through and not module._modules and getattr(calls[0].y, "shape", None) == given.shape:
                found, given = f"{self.where}.{name}", calls[0].y
        return found

    def _candidates(self, module: nn.Module, where: str) -> Iterator[Part]:
        """The outermost modules that take and give vectors of the stream and that the stream goes around."""
        for name, child in module._modules.items():
            if child is None or not any(parameter.ndim > 1 for parameter in child.parameters()):
                continue
            path, calls = f"{where}.{name}", self.calls.get(child, [])
            part = self._part(child, path, calls[0]) if len(calls) == 1 else "runs several times, or never"
            if isinstance(part, Part) and self._fits(calls[0]) and self._goes_around(child, part):
                yield part
            else:
                yield from self._candidates(child, path)

    def _fits(self, call: Call) -> bool:
        """Whether it takes and gives a vector of the stream, or of one of several, for each token."""
        x, y, width = call.x, call.y, self.stream.shape[-1]
        sizes = (_ROWS * _TOKENS * width, width)
        return x is not None and isinstance(y, Tensor) and all((t.numel(), t.shape[-1]) == sizes for t in (x, y))

    def _part(self, module: nn.Module, path: str, call: Call, removed: bool = False) -> Part | str:
        """A module as something that can be replaced; a reason where what it returns beside cannot be."""
        output, outputs = call.output, 0
        what = "block" if module is self.block else "part"
        if type(output) in (tuple, list):
            outputs = len(output)
        elif not isinstance(output, Tensor):
            return (
                f"expected a {what} that returns a tensor or a tuple, got {path}, which returns {type(output).__name__}"
            )
        passes, lost = {}, []
        for place, value in enumerate(call.values[1:], 1):
            if isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and value):
                name = self._handed_on(module, place)
                if name is not None:
                    passes[str(place)] = name
                else:
                    lost.append(place)
        if lost and not removed and not self._does_without(module, lost):
            return f"expected a {what} that gives hidden states alone, got {path}, which gives others something beside"
        kept = None if self.kept is None else self.kept.get(module, set())
        if kept is None and not removed:
            return (
                f"expected a model that keeps what it remembers in a cache of transformers, got {self.name}, which "
                "keeps it elsewhere; try `kind=drop`"
            )
        adds = added_argument(module, call) if module is not self.block else None
        roles = {role for role, _ in kept or ()}
        role = None if not roles else "both" if module is self.block or len(roles) > 1 else roles.pop()
        layers = tuple(sorted({layer for _, layer in kept or ()}))
        width = 0 if call.x is None else call.x.numel() // (_ROWS * _TOKENS)
        in_stream = call.x is not None and call.x.numel() == self.stream.numel()
        return Part(path, path, width, in_stream, outputs, isinstance(output, list), passes, adds, role, layers)

    def _handed_on(self, module: nn.Module, place: int) -> str | None:
        """The argument that takes, in the next block, what this one returns at a place."""
        if module is not self.block or len(self.stack) < 2:
            return None
        pair = self.stack.blocks[min(self.index, len(self.stack) - 2) :][:2]
        given, taken = (self.calls.get(block, []) for block in pair)
        values = given[0].values[place : place + 1] if given and taken else []
        named = taken[0].named(pair[1]) if values else {}
        return next((name for name, argument in named.items() if argument is values[0]), None)

    def _does_without(self, module: nn.Module, places: Sequence[int]) -> bool:
        """Whether the last block gives the same where these values that a module returns are None."""

        def blank(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            values = [None if place in places else value for place, value in enumerate(output)]
            return values if isinstance(output, list) else tuple(values)

        last = self.stack.blocks[-1]
        changed = self._rerun(last, [module], blank)
        return changed is not None and torch.equal(changed, self.calls[last][-1].y)

    def _rerun(self, wanted: nn.Module, modules: Sequence[nn.Module], change: Callable[..., Any]) -> Tensor | None:
        """What a module of this block, or a block, gives with changed outputs of modules; None where that fails."""
        seen: list[Tensor] = []

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen.append(first_value(output).clone())  # what comes after may write over it

        call = self.calls[self.block][0]
        inside = wanted is self.block or any(wanted is module for module in self.block.modules())
        for alone in (True, False) if inside else (False,):  # by itself, and where that fails in the whole model
            try:
                with hooked(modules, change), hooked([wanted], note):
                    if alone:
                        call.again(self.block)
                    else:
                        run(self.model, self.ids)
            except Exception:  # whatever a model makes of it
                continue
            if seen:
                return seen[-1]
        return None

    def _goes_around(self, module: nn.Module, part: Part) -> bool:
        """Whether a block's output still depends on its tokens where this part of it gives zeros."""

        def nothing(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            zeros = torch.zeros_like(first_value(output))
            if part.adds:
                zeros = zeros + Call(args, kwargs).named(module)[part.adds]
            return with_first(output, zeros)

        y = self._rerun(self.block, [module], nothing)
        if y is None or not y.isfinite().all():
            return False
        flat = y.reshape(_ROWS * _TOKENS, -1)
        return bool((flat - flat[0]).abs().max() > 1e-3 * flat.abs().max())

    def _mixes(self, part: Part) -> bool:
        """Whether what a part gives for a token depends on others: the first token of each row is changed."""
        entry, module = (self.model.get_submodule(path) for path in (part.entry, part.path))
        place = [row * _TOKENS for row in range(_ROWS)]

        def shifted(value: Tensor) -> Tensor:
            rows = value.clone().reshape(_ROWS * _TOKENS, -1)
            rows[place] = rows[place].roll(1, -1) + rows[[each + 1 for each in place]]
            return rows.view_as(value)

        def moved() -> Tensor | None:
            """How far what it gives moves, for each token, relative to the largest value."""
            was = self._rerun(module, [], lambda *_: None)
            with hooked_before([entry], changing(shifted)):
                now = self._rerun(module, [], lambda *_: None)
            if was is None or now is None:
                return None
            flat = (now - was).reshape(_ROWS * _TOKENS, -1).abs().amax(-1)
            return flat / was.abs().max().clamp(min=torch.finfo(was.dtype).tiny)

        found = moved()
        if found is not None and not found.any():  # a part that gives nothing, as before training
            with random_weights(module):
                found = moved()
        kept = [each for each in range(_ROWS * _TOKENS) if each not in place]
        return found is None or not bool(found[kept].max() <= rounding(self.calls[module][0].y, 1e-5) * found.max())

    def _is_chained(self, part: Part, candidates: Sequence[Part]) -> bool:
        """Whether it hands what it gives straight to another part, as a norm does, or takes what another gives."""
        own = self.calls[self.model.get_submodule(part.path)][0]
        others = [self.calls[self.model.get_submodule(each.path)][0] for each in candidates if each is not part]
        return any(same(own.y, each.x) or same(each.y, own.x) for each in others)

    def _spans(self, mixers: Sequence[Part], others: Sequence[Part]) -> list[Part]:
        """Two matrices and what is between them, outside of all other parts, as one part."""
        inside = [module for part in (*mixers, *others) for module in self.model.get_submodule(part.path).modules()]
        fed = [self.calls[self.model.get_submodule(part.path)][0].y for part in mixers]
        names = {module: f"{self.where}.{name}" for name, module in self.block.named_modules()}
        ran = [
            (names[module], calls[0])
            for module, calls in self.calls.items()  # in the order in which they ran
            if module in names and not module._modules and getattr(getattr(module, "weight", None), "ndim", 0) == 2
            if len(calls) == 1 and not any(module is each for each in inside)
        ]
        ran = [(path, call) for path, call in ran if not any(same(call.x, y) for y in fed)]
        size = self.stream.numel()
        takes = [(p, c) for p, c in ran if c.x is not None and c.x.numel() == size]
        gives = [(p, c) for p, c in ran if isinstance(c.y, Tensor) and c.y.numel() == size]
        if not takes or not gives or takes[0][0] == gives[-1][0]:
            return []
        entry, path = takes[0][0], gives[-1][0]
        part = Part(path, entry, self.stream.shape[-1], entry_width=takes[0][1].y.shape[-1])
        ends = self._goes_around(self.model.get_submodule(path), part) and not self._mixes(part)
        return [part] if ends and self._depends_on_entry_alone(part) else []

    def _depends_on_entry_alone(self, part: Part) -> bool:
        """Whether what two matrices and all between them give is the same where only the rest of the block changes."""
        entry, module = (self.model.get_submodule(path) for path in (part.entry, part.path))
        x = self.calls[entry][0].x
        other = changing(lambda stream: stream.roll(1, -1))
        own = changing(lambda given: given if x is None else x.clone())
        with hooked_before([self.block], other), hooked_before([entry], own):
            now = self._rerun(module, [], lambda *_: None)
        was = self.calls[module][0].y
        return now is not None and bool((now - was).abs().max() <= rounding(was, 1e-5) * was.abs().max())
