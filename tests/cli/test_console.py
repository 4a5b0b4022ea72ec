"""What commands show on a terminal while they work."""

import pytest
import rich.progress

from rectilinear.cli import console


@pytest.fixture
def bars(monkeypatch):
    """The bars that are shown."""
    shown = []

    class Noted(rich.progress.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            shown.append(self)

    monkeypatch.setattr(console, "Progress", Noted)
    return shown


def test_progress_is_of_one_stage_at_a_time(bars):
    with console.progress() as report:
        [bar] = bars
        for stage, total in (("block 0", 3), ("rows", 2), ("rows", 2), ("block 0", 3)):
            for done in range(1, total + 1):
                report(stage, done, total)
                [task] = bar.tasks
                assert (task.description, task.completed, task.total) == (stage, done, total)
                assert task.finished == (done == total)


def test_news_of_a_stage_do_not_start_it_again(bars):
    with console.progress() as report:
        for done, news in enumerate(("", ": loss 9.1", ": loss 7.2", ": loss 7.2"), 1):
            report(f"pretrain{news}", done, 4)
            [task] = bars[0].tasks
            assert (task.description, task.completed, task.total) == (f"pretrain{news}", done, 4)
        assert len(task._progress) == 4  # the points that the ETA is of
