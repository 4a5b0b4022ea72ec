"""What jobs show while they work, on a terminal and from Python, and what libraries do not show meanwhile."""

import os
import subprocess
import sys

import datasets
import pytest
import rich.progress
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

import rectilinear
from rectilinear.progress import reporting


@pytest.fixture
def bars(monkeypatch):
    """The bars that are shown."""
    shown = []

    class Noted(rich.progress.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options)
            shown.append(self)

    monkeypatch.setattr(rich.progress, "Progress", Noted)
    return shown


def test_progress_is_of_one_stage_at_a_time(bars):
    with reporting(True) as report:
        [bar] = bars
        for stage, total in (("block 0", 3), ("rows", 2), ("rows", 2), ("block 0", 3)):
            for done in range(1, total + 1):
                report(stage, done, total)
                [task] = bar.tasks
                assert (task.description, task.completed, task.total) == (stage, done, total)
                assert task.finished == (done == total)


def test_news_of_a_stage_do_not_start_it_again(bars):
    with reporting(True) as report:
        for done, news in enumerate(("", ": loss 9.1", ": loss 7.2", ": loss 7.2"), 1):
            report(f"pretrain{news}", done, 4)
            [task] = bars[0].tasks
            assert (task.description, task.completed, task.total) == (f"pretrain{news}", done, 4)
        assert len(task._progress) == 4  # the points that the ETA is of


def test_a_stage_of_unknown_length_is_shown_as_such(bars):
    with reporting(True) as report:
        report("rows", 5, 5)
        report("hashing the weights", 0, 0)
        [task] = bars[0].tasks
        assert (task.description, task.completed, task.total) == ("hashing the weights", 0, None)


def test_a_function_of_one_s_own_hears_of_every_stage(tiny_checkpoint, text_file, bars):
    heard = []
    rows = rectilinear.Rows(max_tokens=256, seq_len=32)
    rectilinear.measure(tiny_checkpoint, text_file, rows=rows, progress=lambda *news: heard.append(news))
    stages = list(dict.fromkeys(stage for stage, _, _ in heard))
    needs = stages.pop(2)
    assert stages == ["reading the text", "loading the model", "hashing the weights", "rows", "blocks"]
    assert needs.startswith("measuring: ")
    assert heard[-1] == ("blocks", 3, 3)
    assert bars == []


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_unless_there_is_to_be_none(progress, tiny_checkpoint, text_file, bars):
    rows = rectilinear.Rows(max_tokens=256, seq_len=32)
    rectilinear.measure(tiny_checkpoint, text_file, rows=rows, progress=progress)
    assert len(bars) == progress


def states():
    return logging.is_progress_bar_enabled(), not are_progress_bars_disabled(), datasets.is_progress_bar_enabled()


def test_bars_of_libraries_are_off_meanwhile_and_then_as_they_were():
    before = states()
    try:
        for mine in ((True, True, True), (False, False, True), (False, True, False)):
            (logging.enable_progress_bar if mine[0] else logging.disable_progress_bar)()
            if mine[1]:
                enable_progress_bars()
            (datasets.enable_progress_bars if mine[2] else datasets.disable_progress_bars)()
            assert states() == mine
            with reporting(False):
                assert states() == (False, False, False)
            assert states() == mine
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
        (datasets.enable_progress_bars if before[2] else datasets.disable_progress_bars)()


def test_from_python_nothing_is_printed_where_there_is_no_terminal(tiny_checkpoint, text_file):
    program = (
        "import rectilinear\n"
        f"rows = rectilinear.Rows(max_tokens=2048, seq_len=32)\n"
        f"profile = rectilinear.measure({str(tiny_checkpoint)!r}, {str(text_file)!r}, rows=rows)\n"
        "from transformers.utils import logging\nassert logging.is_progress_bar_enabled()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
