"""Progress of a job: one bar of the present stage with an estimate of the time left, instead of those of libraries."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rectilinear.ranks import current

#: Called with what is being done (perhaps news of it after a colon), how much of it is done, and how much there is;
#: 0 where nobody knows how much.
Progress = Callable[[str, int, int], None]


@contextmanager
def reporting(progress: bool | Progress) -> Iterator[Progress]:
    """What a job is to report its progress to; the bars of libraries are off meanwhile.

    Args:
        progress: a function of one's own, True for a bar on standard error where that is a terminal (or in a
            notebook), False for none.
    """
    with _libraries_without_bars():
        if callable(progress):
            yield progress
        elif progress and current().is_first:
            with _bar() as report:
                yield report
        else:
            yield lambda stage, done, total: None


@contextmanager
def _libraries_without_bars() -> Iterator[None]:
    """No bars of transformers, huggingface_hub and datasets; afterwards they are as they were."""
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    # Beside transformers, which turns the bars of the Hub off and on with its own.
    others: list[Any] = [hub, *filter(None, [sys.modules.get("datasets")])]
    was_on, were_off = logging.is_progress_bar_enabled(), [other.are_progress_bars_disabled() for other in others]
    logging.disable_progress_bar()
    for other in others:
        other.disable_progress_bars()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the environment has the last word
            (logging.enable_progress_bar if was_on else logging.disable_progress_bar)()
            for other, off in zip(others, were_off, strict=True):
                (other.disable_progress_bars if off else other.enable_progress_bars)()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()]
    columns += [progress.TimeRemainingColumn(), progress.TimeElapsedColumn()]
    with progress.Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("starting", total=None)  # a sign of life while libraries are imported

        def report(stage: str, done: int, total: int) -> None:
            nonlocal task
            name, before = (text.partition(":")[0] for text in (stage, bar.tasks[0].description))
            if name != before or done < bar.tasks[0].completed:  # another stage, or the same one again
                bar.remove_task(task)
                task = bar.add_task(stage, total=total or None)
            bar.update(task, description=stage, completed=done, total=total or None)

        yield report
