"""What commands show on a terminal while they work."""

import rich.progress

from rectilinear.cli import console


def test_progress_is_of_one_stage_at_a_time(monkeypatch):
    bars = []

    class Noted(rich.progress.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            bars.append(self)

    monkeypatch.setattr(console, "Progress", Noted)
    with console.progress() as report:
        [bar] = bars
        for stage, total in (("block 0", 3), ("rows", 2), ("rows", 2), ("block 0", 3)):
            for done in range(1, total + 1):
                report(stage, done, total)
                [task] = bar.tasks
                assert (task.description, task.completed, task.total) == (stage, done, total)
                assert task.finished == (done == total)
