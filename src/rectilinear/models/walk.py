"""Going through a model depth by depth: all rows through one block, then all of them through the next.

The model's own forward does the work. The hidden states of each batch at the depth that is reached are kept, and in a
pass that is resumed the blocks before are passed over: the last of them gives these states. What a block is called with
beside them, and what is between two blocks, is then what it would have been, in any architecture in which it depends on
nothing that the blocks passed over would have done but the states of the last one. Whether that is so is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from types import MappingProxyType
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from rectilinear.errors import JobError
from rectilinear.models.calls import rounding
from rectilinear.models.capture import first_value, with_first
from rectilinear.models.find_blocks import BlockStack, find_blocks
from rectilinear.models.linear_block import hidden_argument
from rectilinear.models.offload import in_memory, on_disk
from rectilinear.models.running import Enough, arguments_for, evaluating, hooked, run, runnable
from rectilinear.models.state_store import IN_MEMORY, StateStore
from rectilinear.models.surgery import Edits, swapped
from rectilinear.ranks import current
from rectilinear.text.batches import Batch, first_row, tensors_of

#: What a block returned, but for its tensors: the form in which a block that is passed over returns its own.
_Form = Any

#: Opens a pass over the batch of a number.
_Opens = Callable[[int], AbstractContextManager[None]]


class Passes:
    """Batches that run through a model, each from its beginning to its end."""

    #: What progress is reported as.
    stage = "rows"
    #: How many blocks the batches have been through when a pass begins.
    depth = 0
    #: Whether the next step is through the last block.
    ends = True

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches
        self.numbers: Sequence[int] = range(len(batches))  # of those to run, where other processes run others

    def step(self, batch: int, *, to_the_end: bool = False) -> None:
        """Run the batch of a number, for the hooks in the model."""
        run(self.model, self.batches[batch])

    def again(self) -> Passes:
        """The same, from the beginning."""
        return self

    def branch(self) -> Passes:
        """The same batches at the same depth, to go on by themselves."""
        return self

    def resumed(self, batch: int, rows: int | None = None) -> AbstractContextManager[None]:
        """While open, a pass over a batch, or over its first rows, begins at the depth that is reached."""
        return nullcontext()

    def advance(self, to: int, edits: Edits = MappingProxyType({})) -> None:
        """Go on to a depth, or as near as there is, through the model with some edits."""

    def close(self) -> None:
        """Let go what is kept in memory for them."""


class Walk(Passes):
    """Batches on their way through a model, all of them at one depth.

    Args:
        model, stack: what they go through; its modules may be others from depth to depth.
        batches: of rows.
        limit: see `StateStore`.
    """

    def __init__(
        self, model: nn.Module, stack: BlockStack, batches: Sequence[Batch], *, limit: int = IN_MEMORY
    ) -> None:
        super().__init__(model, batches)
        self.stack = stack
        self.depth = 0
        self.states = StateStore(limit)  # after the last block that they have been through
        self._forms: list[_Form] = []
        self._held, self._held_depth = ExitStack(), -1
        self._stepped: set[int] = set()  # batches that have been through the next block, too

    @property
    def stage(self) -> str:  # type: ignore[override]
        """What progress is reported as."""
        return f"rows through block {self.depth} of {len(self.stack)}"

    @property
    def ends(self) -> bool:  # type: ignore[override]
        """Whether the next step is through the last block."""
        return self.depth == len(self.stack) - 1

    def again(self) -> Walk:
        """The same, from the beginning."""
        other = Walk(self.model, self.stack, self.batches, limit=self.states.limit)
        other.numbers = self.numbers
        return other

    def branch(self) -> Walk:
        """The same batches at the same depth, to go on by themselves."""
        other = self.again()
        other.depth, other.states, other._forms = self.depth, self.states.copy(), [*self._forms]
        return other

    @contextmanager
    def resumed(self, batch: int, rows: int | None = None) -> Iterator[None]:
        """While open, a pass over a batch, or over its first rows, begins at the depth that is reached.

        The blocks are those that the model has as this is opened.
        """
        self._hold()
        if not self.depth:
            yield
            return
        states = self.states[batch]
        if rows is not None:
            states = states[: len(states) * rows // len(tensors_of(self.batches[batch])[0])]
        blocks = [self._block(index) for index in range(self.depth)]
        own = [vars(block).get("forward") for block in blocks]
        try:
            for index, block in enumerate(blocks):
                last = index == self.depth - 1
                vars(block)["forward"] = _passing_over(self._forms[index], states if last else None)
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                vars(block).pop("forward")
                if forward is not None:
                    vars(block)["forward"] = forward

    def step(self, batch: int, *, to_the_end: bool = False) -> None:
        """Run a batch through the next block, for the hooks in it, and keep its hidden states after it.

        Each batch is to take this step once, in any order; then the depth is one more. Where asked for, the pass goes
        on to the end of the model.

        Raises:
            JobError: the block did not run.
        """
        block, ran = self._block(self.depth), list[bool]()

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            states = first_value(output)
            if not ran and isinstance(states, Tensor):
                if not self._stepped:
                    self._forms[self.depth :] = [_without_tensors(output)]
                self.states[batch] = states
                ran.append(True)
            if not to_the_end:
                raise Enough

        with self.resumed(batch), hooked([block], note), suppress(Enough):
            run(self.model, self.batches[batch])
        if not ran:
            raise JobError(f"block {self.depth} did not run, or gave no tensor")
        self._stepped.add(batch)
        if len(self._stepped) == len(self.numbers):
            self.depth += 1
            self._stepped.clear()

    def advance(self, to: int, edits: Edits = MappingProxyType({})) -> None:
        """Go on to a depth, through the model with some edits."""
        while self.depth < to:
            with swapped(self.model, edits):
                for batch in self.numbers:
                    self.step(batch)
            self.depth += not self.numbers  # where all are on their way elsewhere

    def close(self) -> None:
        """Let go the weights of a block that are in memory for the walk, and the hidden states: the walk is over."""
        self._held.close()
        self._held_depth = -1
        self.states = StateStore(self.states.limit)

    def _hold(self) -> None:
        """Have the next block in memory, if it is on disk, and none before it."""
        if self._held_depth != self.depth:
            self._held.close()
            self._held_depth = self.depth
            if self.depth < len(self.stack):
                self._held.enter_context(in_memory(self.stack.blocks[self.depth]))

    def _block(self, index: int) -> nn.Module:
        return self.model.get_submodule(self.stack.path_of(index))


def find_passes(
    model: nn.Module, stack: BlockStack, batches: Sequence[Batch], *, stream: bool
) -> tuple[Passes, str | None]:
    """A walk, where a ``stream`` is wanted and passes can be resumed, else whole passes; and why they cannot."""
    if not stream or not batches:
        return Passes(model, batches), None
    reason = check_resumes(model, stack, first_row(batches[0]))
    return (Passes(model, batches) if reason else Walk(model, stack, batches)), reason


@contextmanager
def through_the_blocks(model: nn.Module, batches: Sequence[Batch], numbers: Sequence[int]) -> Iterator[_Opens]:
    """What opens a pass over a batch of some numbers: after all blocks, where weights are on disk, each read once.

    Of a model in memory, and where passes cannot be resumed, it is a whole one.
    """
    stack = find_blocks(model) if on_disk(model) else None
    passes = find_passes(model, stack, batches, stream=True)[0] if stack else Passes(model, batches)
    passes.numbers = numbers
    with closing(passes):
        passes.advance(len(stack or ()))
        yield passes.resumed


def _without_tensors(output: Any) -> _Form:
    if not isinstance(output, (tuple, list)):
        return None
    values = [None if isinstance(value, Tensor) else value for value in output]
    return values if isinstance(output, list) else tuple(values)


def _passing_over(form: _Form, states: Tensor | None) -> Callable[..., Any]:
    """What a block does that is passed over: it returns what it takes, or states that are given."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = hidden_argument(args, kwargs)
        if states is None or given is None:
            return with_first(form, given)  # type: ignore[arg-type]
        return with_first(form, states.to(given.device, copy=True))  # which the next block may write over

    return forward


def check_resumes(model: nn.Module, stack: BlockStack, inputs: Tensor | Mapping[str, Any]) -> str | None:
    """Why passes through a model cannot be resumed at every depth; None where they give what whole ones do.

    Processes that share a job all take the reason of one of them.

    Args:
        model, stack: the model.
        inputs: a few rows to try it on.
    """
    return next(filter(None, current().gather(_why_not(model, stack, inputs))), None)


def _why_not(model: nn.Module, stack: BlockStack, inputs: Tensor | Mapping[str, Any]) -> str | None:
    if len({*map(id, stack.blocks)}) < len(stack):
        return "blocks share one module"
    whole: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        whole.append(first_value(output).clone())

    try:
        with evaluating(model), torch.no_grad(), closing(Walk(model, stack, [inputs])) as walk:
            with hooked(stack.blocks, note):
                end = _end(model, inputs)
            if len(whole) != len(stack):
                return "blocks do not run one after the other"
            for index, wanted in enumerate(whole):
                walk.advance(index + 1)
                if not _alike(walk.states[0].to(wanted.device), wanted):
                    return f"block {index} depends on more than the block before it"
            with walk.resumed(0):
                if not _alike(_end(model, inputs), end):
                    return "what follows the blocks depends on more than the last of them"
    except Exception as error:  # whatever a model meets with where blocks are passed over
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            raise
        return f"{type(error).__name__}: {error}"
    return None


def _end(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> Tensor:
    """What the model gives for hidden states, or else for logits."""
    args, kwargs = arguments_for(model, inputs)
    output: Tensor = first_value(runnable(model)(*args, **kwargs))
    return output


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    return torch.equal(one, other) or bool((one - other).norm() <= rounding(other, 1e-6) * other.norm())
