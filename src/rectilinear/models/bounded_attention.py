"""Attention that keeps the first tokens of a document and the last ones, and of those between sums at most.

It is an attention function of transformers' own registry, which the modules of most architectures call with queries,
keys and values as they are after positions are in them, so that it knows none of these architectures. This file travels
with checkpoints as `modeling_rectilinear` does, so it imports torch and transformers only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from .bounded_step import Group, Heads, Looked, Reach, Terms, by_window, in_order, look
from .bounded_token import FullState, is_full, lay_out, look_once
from .far_summary import Far, FarSummary, FarSums, mixed
from .kept_tokens import KeptTokens, Places, find_places, starting
from .stand_ins import PaddingMask, StandIn, one_or_all

# The name by which a configuration asks for it.
_NAME = "rectilinear_bounded"

# Tokens that attend at once: what they see is a matrix of so many by what is kept and these.
_CHUNK = 256


#: What is asked of attention beside its inputs: its terms, and what there is of far tokens.
Asked = tuple[Terms, Far | None]


class Bounds(NamedTuple):
    """What is seen.

    Attributes:
        windows: tokens at the end, the querying one among them: for each key-value head, or one number for all.
        sinks: tokens at the beginning of a document.
    """

    windows: tuple[int, ...]
    sinks: int


class BoundedState(NamedTuple):
    """What is kept of a sequence by the key-value heads of each window, in rising order."""

    groups: tuple[Group, ...]

    @property
    def length(self) -> Tensor:
        """``[rows]`` int64, tokens of the document so far."""
        return self.groups[0].tokens.length

    def each_row(self, change: Callable[[Tensor, int], Tensor]) -> BoundedState:
        """The same, with each tensor changed; ``change`` takes one and the number of the axis that rows are on."""
        return BoundedState(tuple(group.each_row(change) for group in self.groups))


class BoundedAttention(StandIn):
    """Beside a class of attentions: one whose queries see some first and some last tokens only.

    The attention's own weights are kept. Token t of a document sees tokens ``s < sinks`` and ``t - window < s <= t``:
    StreamingLLM (arXiv 2309.17453), with positions as they are in the text. Where there is a far summary, all other
    tokens are one more entry of each softmax: see `FarSummary`.

    Attributes:
        bounds: what is seen.
        far_summary: of the tokens that are not; None for none.
        far_output: a linear map of what the heads give, of the mean values of far tokens and of 1, which is added to
            the output of tokens that have far ones; None for none.
        times_called: how often it has attended, by which it is known whether the module calls it at all.
    """

    kind = "bounded"
    role = "attention"
    # In one attribute, as attentions have some of their own, ``sinks`` say.
    bounds: Bounds
    _heads: Tensor | None
    far_summary: FarSummary | None
    far_output: nn.Linear | None
    times_called: int

    @property
    def remembers(self) -> bool:
        """It keeps tokens."""
        return True

    def options(self) -> dict[str, Any]:
        """The arguments that make another one like this, for a config."""
        windows = self.bounds.windows
        far = {} if self.far_summary is None else {"far": self.far_summary.options()}
        output = (
            {}
            if self.far_output is None
            else {"far_output": [self.far_output.in_features, self.far_output.out_features]}
        )
        return {
            "kind": self.kind,
            "window": windows[0] if len(windows) == 1 else [*windows],
            "sinks": self.bounds.sinks,
            "cache_index": one_or_all(self.cache_layers),
            **far,
            **output,
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the attention has it. A transformers `Cache` among the arguments keeps the state between calls."""
        layers = self._layers_in([*args, *kwargs.values()])
        for layer in layers:
            layer.hands_over = True
        self._kept = self._state_in(layers)
        attention: Any = super()
        try:
            output = attention.forward(*args, **kwargs)
            return output if self.far_output is None else self._with_far_output(output)
        finally:
            self._kept = self._heads = None

    def _with_far_output(self, output: Any) -> Any:
        first = output[0] if isinstance(output, (tuple, list)) else output
        changed = first + cast(nn.Linear, self.far_output)(cast(Tensor, self._heads)).view_as(first)
        return changed if first is output else type(output)([changed, *output[1:]])

    def attend_by(self, query: Tensor, key: Tensor, value: Tensor, options: Mapping[str, Any]) -> Tensor:
        """`attend`, told what transformers tells attention functions; padding and documents are seen here itself."""
        scaling, names = options.get("scaling"), {"sliding": "sliding_window", "softcap": "softcap", "sinks": "s_aux"}
        terms = Terms(
            query.shape[-1] ** -0.5 if scaling is None else scaling,
            dropout=options.get("dropout", 0.0),
            **{own: options.get(name) for own, name in names.items()},
        )
        return self.attend(query, key, value, terms)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, terms: Terms) -> Tensor:
        """Attention of ``[rows, heads, tokens, width]``; keys and values may have fewer heads.

        What came before is where `forward` found it, and what is kept of these goes there. Gives ``[rows, tokens,
        heads, width]``.
        """
        self.times_called += 1
        far = None if self.far_summary is None else self.far_summary.there()
        kept = self._kept
        state = cast("BoundedState | FullState | None", kept.state) if kept else None
        if state is None:
            state = self._begin(query, key, value)
        like = key.transpose(1, 2)
        positions = self._positions(like, kept.length if kept else 0)
        real, starts = self._noted(like)
        goes_on = key.shape[2] == 1 and real is None and starts is None and not terms.dropout
        lay = partial(lay_out, *self.bounds, key.shape[1], query.shape[1], key.device)
        if goes_on and isinstance(state, BoundedState) and is_full(state.groups, *self.bounds):
            state = FullState.of(state.groups, lay())
        if isinstance(state, FullState) and not goes_on:
            state = BoundedState(state.groups(lay()))
        places, before = find_places(state.length, positions, real, starts), state

        def go(tokens: int) -> tuple[list[Looked], BoundedState | FullState]:
            if isinstance(before, FullState):
                one, rest = look_once(query, key, value, before, places, lay(), (terms, far))
                return [one], rest
            parts = query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens]
            return self._go(*parts, before, places.part(0, tokens), (terms, far))

        looked, after = go(key.shape[2])
        if kept:
            kept.advance(after, key.shape[2], lambda tokens: go(tokens)[1] if tokens else before)
        output = self._combine(query, positions, looked, (terms, far))
        return output.transpose(1, 2).contiguous()

    def _by_window(self, query: Tensor, key: Tensor) -> tuple[tuple[Heads, ...], Tensor]:
        return by_window(self.bounds.windows, key.shape[1], query.shape[1], key.device)

    def _begin(self, query: Tensor, key: Tensor, value: Tensor) -> BoundedState:
        """The state before the first token."""
        groups, far = list[Group](), self.far_summary
        for heads in self._by_window(query, key)[0]:
            own = key[:, heads.shared], value[:, heads.shared]
            sums = None if far is None else FarSums.none(own[1], far.shared * far.count)
            groups.append(Group(KeptTokens.none(*own), sums))
        return BoundedState(tuple(groups))

    def _go(
        self, query: Tensor, key: Tensor, value: Tensor, state: BoundedState, places: Places, asked: Asked
    ) -> tuple[list[Looked], BoundedState]:
        """What queries get of some tokens at a time, and what is kept after all of them."""
        groups, (terms, far) = state.groups, asked
        found = list[Looked]()
        every, order = self._by_window(query, key)
        for begin in range(0, key.shape[2], _CHUNK):
            here = slice(begin, min(begin + _CHUNK, key.shape[2]))
            parts, after = list[Looked](), list[Group]()
            for heads, group in zip(every, groups, strict=True):
                own = terms if terms.sinks is None else terms._replace(sinks=terms.sinks[heads.queries])
                inputs = query[:, heads.queries, here], key[:, heads.shared, here], value[:, heads.shared, here]
                weigh = None if far is None else partial(far.weigh, scaling=terms.scaling, heads=heads.shared)
                reach = Reach(heads.window, self.bounds.sinks, weigh)
                part, rest = look(*inputs, group, places.part(here.start, here.stop), reach, own)
                parts.append(part)
                after.append(rest)
            found.append(in_order(parts, order))
            groups = tuple(after)
        return found, BoundedState(tuple(Group(starting(each.tokens), each.sums) for each in groups))

    def _combine(self, query: Tensor, positions: Tensor, looked: list[Looked], asked: Asked) -> Tensor:
        """What the heads give, ``[rows, heads, tokens, width]``, of what is kept and of far tokens."""
        terms, far = asked
        if far is None:
            return torch.cat([part.output for part in looked], 2)
        plain, outputs, begin = far.without_rotation(query, positions), list[Tensor](), 0
        for part in looked:
            end = begin + part.output.shape[2]
            sums = cast(Tensor, part.sums)
            value, mass = far.look(plain[:, :, begin:end], part.near, sums, part.counts, terms.scaling)
            outputs.append(mixed(part.output, part.near.kept, value, mass).to(part.output.dtype))
            begin = end
        output = torch.cat(outputs, 2)
        if self.far_output is not None:
            means = torch.cat([cast(Tensor, part.means) for part in looked], 2)[:, :: far.shared]
            given = torch.cat([output, means.to(output.dtype)], 1).transpose(1, 2).flatten(2)
            anything = torch.cat([part.counts for part in looked], 2).amax(1)[..., None] > 0
            self._heads = nn.functional.pad(given, (0, 1), value=1.0) * anything.to(given.dtype)
        return output


def _called(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """The attention function, of whatever version of this file the module is."""
    return module.attend_by(query, key, value, options), None


AttentionInterface.register(_NAME, _called)


def _blank(replaced: Any) -> Any:
    """A stand-in without attributes yet: what a pickle of one begins with."""
    made = bounded_class(replaced)
    return made.__new__(made)


@cache
def bounded_class(replaced: Any) -> Any:
    """`BoundedAttention` as a kind of the class of attentions that it stands for."""

    def __reduce__(self: Any) -> Any:
        return _blank, (replaced,), vars(self)

    return type(f"Bounded{replaced.__name__}", (BoundedAttention, replaced), {"__reduce__": __reduce__})


def bounded_attention(
    old: Any,
    padding: PaddingMask,
    *,
    window: int | Sequence[int],
    sinks: int,
    cache_index: int | Sequence[int] | None = None,
    far: dict[str, Any] | None = None,
    far_output: Sequence[int] | None = None,
    kind: str = "bounded",
) -> Any:
    """An attention like another, with its weights, that sees some first and some last tokens only.

    Args:
        old: the attention, whose ``config`` says which function of transformers' registry it calls.
        padding: where the attention mask is to be had.
        window: at least 1; for each key-value head, or one for all.
        sinks: see `Bounds`.
        cache_index: the layer of the cache that the attention has; None for none.
        far: options of the `FarSummary`; None for none.
        far_output: the numbers of features and outputs of the map beside it; None for none.
    """
    replaced: Any = type(old)
    made = replaced if isinstance(old, BoundedAttention) else bounded_class(replaced)
    new = made.__new__(made)
    # The tables too: a module that is put into one must not get into the other.
    vars(new).update({name: copy.copy(own) if isinstance(own, dict) else own for name, own in vars(old).items()})
    for name in ("forward", "_hf_hook", "_old_forward"):  # what reads weights from disk is in its children
        vars(new).pop(name, None)
    new.config = copy.deepcopy(old.config)
    new.config._attn_implementation = _NAME
    new.bounds = Bounds((window,) if isinstance(window, int) else tuple(window), sinks)
    new.padding, new.times_called = padding, 0
    new._kept = new._heads = None
    like = next((each for each in old.parameters() if each.is_floating_point()), torch.empty(0))
    with torch.device(like.device):
        new.far_summary = None if far is None else FarSummary(**far).to(like.dtype)
        new.far_output = (
            None if far_output is None else nn.Linear(far_output[0], far_output[1], bias=False).to(like.dtype)
        )
    new.cache_layers = (cache_index,) if isinstance(cache_index, int) else tuple(cache_index or ())
    return new
