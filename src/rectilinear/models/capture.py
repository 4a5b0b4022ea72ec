"""Running a model and handing over what goes into and comes out of each block, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from rectilinear.errors import JobError
from rectilinear.models.linear_block import hidden_argument
from rectilinear.models.running import Enough, arguments_for, hooked, hooked_before, run, runnable
from rectilinear.models.stand_ins import named_arguments

#: Called with a block's index, its input and its output, as the block returned them.
Consume = Callable[[int, Tensor, Tensor], None]


class Passage(NamedTuple):
    """What a module took and gave in one call: ``[rows, seq_len, ...]`` or ``[rows * seq_len, width]`` each."""

    x: Tensor
    y: Tensor


class Span(NamedTuple):
    """A part of a block: the module that takes its input, the one that gives its output, often the same.

    `adds` is the argument that the output contains as it is; what counts as output is the rest. `is_update` says
    whether that is for the block to add to the residual stream, not the stream itself.
    """

    entry: nn.Module
    exit: nn.Module
    adds: str | None = None
    is_update: bool = False

    def update_of(self, output: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """What the part itself gives, of an output that may hold one of its arguments too."""
        if self.adds is None:
            return output
        added: Tensor = named_arguments(self.exit, args, kwargs)[self.adds]
        return output - added


def as_spans(modules: Sequence[nn.Module | Span]) -> list[Span]:
    """Modules as parts of one module each."""
    return [each if isinstance(each, Span) else Span(each, each) for each in modules]


@contextmanager
def capture_blocks(
    blocks: Sequence[nn.Module | Span], consume: Consume, *, final: nn.Module | None = None, copy: bool = True
) -> Iterator[None]:
    """While open, hand ``(index, input, output)`` of each block to ``consume`` as it runs.

    Nothing is kept: an input lives until its block returns. A block that writes over its input is noticed at its first
    call and given to ``consume`` with a copy of what came in.

    Args:
        blocks: the block stack, or parts of blocks.
        consume: what to do with a pair.
        final: where given, the last block's output is taken from this module's output instead: the last hidden state
            after the final norm, as the paper has it.
        copy: where false, nothing is ever copied, so that gradients flow as they would, and a block that writes over
            its input is an error.

    Raises:
        JobError: while running, a block without a tensor input or output, or that may not write over it.
    """
    waiting: dict[int, tuple[Tensor, Tensor, int]] = {}  # input, what is handed over, version
    overwriting: dict[int, bool] = {}
    # A module that stands several times in the stack runs as each of its indices in turn.
    spans = as_spans(blocks)
    turns = {each.entry: cycle([i for i, other in enumerate(spans) if other.entry is each.entry]) for each in spans}
    current: dict[nn.Module, int] = {}
    last = len(blocks) - 1

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if block not in turns:
            raise JobError("expected the model itself to run, got a copy as of torch.nn.DataParallel; try torchrun")
        index = next(turns[block])
        current[spans[index].exit] = index
        x = _input_of(index, args, kwargs)
        # Only a tensor's version tells whether it was written over; inference tensors have none.
        cloned = copy and (x.is_inference() or overwriting.get(index, True))
        waiting[index] = (x, x.clone() if cloned else x, _version(x))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        index = last if module is final else current[module]
        if final is not None and index == last and module is not final:
            return
        if index not in waiting:
            raise JobError(f"block {index}: its output came without its input")
        original, x, version = waiting.pop(index)
        changed = _version(original) != version
        overwriting.setdefault(index, changed or original.is_inference())
        if changed and not copy:
            raise JobError(f"block {index}: expected a block that leaves its input as it is, got one that changes it")
        y = spans[index].update_of(_output_of(index, output), args, kwargs)
        if x.shape != y.shape:
            raise JobError(f"block {index}: expected an output shaped like its input {[*x.shape]}, got {[*y.shape]}")
        consume(index, x, y)

    exits = [span.exit for span in spans] + ([] if final is None else [final])
    with hooked(exits, after), hooked_before([span.entry for span in spans], before):
        yield


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _input_of(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found = hidden_argument(args, kwargs)
    if found is not None:
        return found
    raise JobError(f"block {index}: expected hidden states as first argument or hidden_states=, got none")


def _output_of(index: int, output: Any) -> Tensor:
    tensor = first_value(output)
    if not isinstance(tensor, Tensor):
        raise JobError(f"block {index}: expected a tensor or a tuple that starts with one, got {type(tensor).__name__}")
    return tensor


def first_value(output: Any) -> Any:
    """Where a module's hidden states are in what it returns: the first of several values, else the whole."""
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    if isinstance(output, (tuple, list)):
        return output[0] if output else None
    return output


def with_first(output: Any, value: Tensor) -> Any:
    """What a module returned, with other hidden states."""
    if not isinstance(output, (tuple, list)):
        return value
    values = [value, *output[1:]]
    return values if isinstance(output, list) else tuple(values)


def run_until(
    model: nn.Module, inputs: Tensor | Mapping[str, Any], modules: Sequence[nn.Module | Span]
) -> list[Passage]:
    """Input and output of some modules in one forward pass, which goes no further than the last of them.

    Both are copies: a module may write over its input, and what comes after it over its output.

    Raises:
        JobError: one of them did not run, or has no tensor in or out.
    """
    spans = as_spans(modules)
    given: dict[nn.Module, Tensor] = {}
    seen: dict[nn.Module, Passage] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for place, span in enumerate(spans):
            if module is span.entry and span.exit not in given:
                given[span.exit] = _input_of(place, args, kwargs).clone()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for place, span in enumerate(spans):
            if module is span.exit and module not in seen:
                y = span.update_of(_output_of(place, output), args, kwargs).clone()
                seen[module] = Passage(given[module], y)
        if len(seen) == len({span.exit for span in spans}):
            raise Enough

    with suppress(Enough), hooked([s.exit for s in spans], after), hooked_before([s.entry for s in spans], before):
        run(model, inputs)
    if missing := [type(span.exit).__name__ for span in spans if span.exit not in seen]:
        raise JobError(f"expected every module to be replaced to run, but {missing[0]} did not")
    return [seen[span.exit] for span in spans]


def states_after(
    model: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    modules: Sequence[nn.Module],
    weights: Mapping[nn.Parameter, Tensor] | None = None,
    *,
    logits: bool = False,
) -> tuple[list[Tensor], Tensor | None]:
    """Hidden states after some modules in one forward pass, and its logits; with gradients where they are enabled.

    Args:
        model, inputs: of the forward pass.
        modules: whose outputs are wanted, ``[rows, seq_len, width]`` each.
        weights: tensors that take the place of parameters of the model.
        logits: whether to go on to the logits; else the pass goes no further than the last of the modules.
    """
    runner = model if logits else runnable(model)
    seen: dict[nn.Module, Tensor] = {}
    output: Any = None

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen[module] = first_value(output).clone()  # what comes after may write over it
        if not logits and len(seen) == len(set(modules)):
            raise Enough

    args, kwargs = arguments_for(model, inputs)
    named = {name: weights[own] for name, own in runner.named_parameters() if own in weights} if weights else {}
    with suppress(Enough), hooked(modules, note):
        output = functional_call(runner, named, args, kwargs)
    return [seen[module] for module in modules], output.logits if logits else None
