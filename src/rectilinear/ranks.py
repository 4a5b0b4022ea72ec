"""The processes that share a job, where torchrun or ``accelerate launch`` started several.

Each runs some of the rows, and what they gather is put together. Objects and moments, which lie in host memory, go over
gloo, whatever the models run on.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rectilinear.errors import JobError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a job, and which of them this is.

    Attributes:
        rank: number of this one; the first, 0, writes and prints.
        count: how many there are.
        here: how many of them are on this machine.
        group: over which they exchange what is in host memory; None for a single one.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """This one's of so many things: consecutive ones, as many as others have, or one more or less."""
        return range(self.rank * count // self.count, (self.rank + 1) * count // self.count)

    def gather(self, value: _Result) -> list[_Result]:
        """What each of them has, by rank, at all of them.

        All else that they exchange begins with this, so that a failure of one is known to all.

        Raises:
            JobError: one of them is gone.
            Exception: one of them failed, where it told so by `in_step`; of the same kind.
        """
        return [value] if self.count == 1 else self._exchange(None, value)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """While open, a failure of one of them is one of all, at what the others exchange next: none waits for it."""
        try:
            yield
        except Exception as error:
            if self.count > 1 and not _is_told(error):
                with suppress(Exception):  # that another is gone, or failed as well
                    self._exchange(_elsewhere(error, self.rank), None)
                error.add_note(_TOLD)
            raise
        self.gather(None)

    def from_first(self, make: Callable[[], _Result]) -> _Result:
        """What the first makes, by itself, at all of them."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        with _as(replace(ALONE, here=self.here)):  # by itself, but in memory that others have a part of
            found: list[Any] = [make() if self.is_first else None]
        self.gather(None)
        with _noticing_the_end():
            dist.broadcast_object_list(found, src=0, group=self.group)
        return found[0]  # type: ignore[no-any-return]

    def collect(self, tensors: Mapping[str, Tensor], at: int) -> Iterator[dict[str, Tensor]]:
        """At one of them, the tensors of the others, which are in host memory, by rank; nothing at the others.

        To be gone through by all of them. No more than those of one other are in memory at a time.
        """
        import torch
        import torch.distributed as dist

        shapes = self.gather({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        for other in range(self.count):
            if other == at:
                continue
            theirs = {}
            if self.rank == at:
                theirs = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes[other].items()}
            self.gather(None)  # there is room for them
            with _noticing_the_end():
                for tensor in filter(torch.numel, theirs.values()):
                    dist.recv(tensor, other, group=self.group)
                for tensor in filter(torch.numel, tensors.values() if self.rank == other else ()):
                    dist.send(tensor.contiguous(), at, group=self.group)
            if self.rank == at:
                yield theirs

    def _exchange(self, failure: Exception | None, value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _noticing_the_end():
            dist.all_gather_object(found, (failure, value), group=self.group)
        if failure is None:
            for error, _ in found:
                if error is not None:
                    error.add_note(_TOLD)
                    raise error
        return [value for _, value in found]


#: A single process.
ALONE = Ranks()

# The processes of the job that this one is of, once they have met: what is shared may be several things, in turn.
_JOB: list[Ranks] = []

_CURRENT: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def current() -> Ranks:
    """The processes that share what is done now."""
    return _CURRENT.get()


def processes_started() -> int:
    """How many processes torchrun, or ``accelerate launch``, started for the job."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def sharing(*, cpu: bool = False) -> Iterator[Ranks]:
    """While open, `measure`, `dynamics`, `linearize` and `evaluate` share their rows among the processes of a job.

    All of them are to make the same calls, and get the same results; the first one alone writes. Where torchrun or
    ``accelerate launch`` did not start several, nothing is shared.

    Args:
        cpu: whether what is trained is on the CPU even where there are accelerators.
    """
    if processes_started() < 2 or current().count > 1:
        yield current()
        return
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    if not _JOB:
        if not dist.is_initialized():
            atexit.register(leave)
        state = PartialState(cpu=cpu or not torch.accelerator.is_available())
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))  # one may have much to do where others wait
        here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        _JOB.append(Ranks(state.process_index, state.num_processes, here, group))
    with _as(_JOB[0]), _JOB[0].in_step():
        yield _JOB[0]


def leave() -> None:
    """Take leave of the other processes, at the end of a program that met them by `sharing`.

    Without it, threads of gloo abort a process that ends now and then. NCCL may wait for a process that failed.
    """
    import torch.distributed as dist

    if _JOB and dist.is_initialized() and dist.get_backend() == "gloo":
        _JOB.clear()
        dist.destroy_process_group()


@contextmanager
def _as(ranks: Ranks) -> Iterator[None]:
    token = _CURRENT.set(ranks)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def _noticing_the_end() -> Iterator[None]:
    """Say in a line that another process is gone, where a library says that a connection is."""
    try:
        yield
    except RuntimeError as error:
        raise JobError("another process of the job ended; see what it said") from error


# What an error is marked with that all processes know of.
_TOLD = "All processes of the job know of it."


def _is_told(error: BaseException | None) -> bool:
    """Whether all processes know of an error, or of one that it came of."""
    while error is not None:
        if _TOLD in getattr(error, "__notes__", ()):
            return True
        error = error.__cause__ or error.__context__
    return False


def _elsewhere(error: Exception, rank: int) -> Exception:
    """What others raise for an error of one, so that all go on alike: with fewer rows, or not at all."""
    from accelerate.utils.memory import should_reduce_batch_size

    if should_reduce_batch_size(error):
        return RuntimeError(f"process {rank} ran out of memory.")  # which is known by its end
    kind = next((kind for kind in (MemoryError, RequestError) if isinstance(error, kind)), JobError)
    return kind(f"stopped, as process {rank} failed: {error}")


def in_step(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have a function that processes share fail in all of them where it fails in one; see `Ranks.in_step`."""

    @wraps(function)
    def shared(*args: _Parameters.args, **options: _Parameters.kwargs) -> _Result:
        with current().in_step():
            return function(*args, **options)

    return shared
