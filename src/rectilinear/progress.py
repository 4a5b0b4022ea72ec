"""Progress of a job: a bar of the present stage with an estimate of the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with what is being done (perhaps news of it after a colon), how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


@contextmanager
def reporting(progress: bool | Progress) -> Iterator[Progress]:
    """What a job is to report its progress to.

    Args:
        progress: a function of one's own, True for a bar on standard error where that is a terminal (or in a
            notebook), False for none.
    """
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda stage, done, total: None
    else:
        with _bar() as report:
            yield report


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("starting", total=None)  # a sign of life while libraries are imported and models loaded

        def report(stage: str, done: int, total: int) -> None:
            name, before = (text.partition(":")[0] for text in (stage, bar.tasks[0].description))
            if name != before or done < bar.tasks[0].completed:  # another stage, or the same one again
                bar.reset(task, total=total)
            bar.update(task, description=stage, completed=done, total=total)

        yield report
