"""The table shows what was evaluated, and leaves out what was not."""

import io

import pytest
from rich.console import Console

from rectilinear.evaluation.comparison_table import evaluation_tables
from rectilinear.evaluation.record import Differences, Evaluation, Measurements
from rectilinear.report.terminal import show, show_table

ENVIRONMENT = {"rectilinear": "1", "torch": "2", "transformers": "5", "device": "cpu", "dtype": "float32"}


def measurements(name, loss, **changes):
    return {
        "model": {
            "id": name,
            "revision": None,
            "architecture": "TinyForCausalLM",
            "num_blocks": 3,
            "width": 16,
            "parameters": 1234567,
            "sha256": "0" * 64,
        },
        "environment": ENVIRONMENT,
        "perplexity": 6.00327,
        "loss": loss,
        "stderr": 0.0321,
        "tokens": 4080,
        "parameters": 1234567,
        "tokens_per_second": {"prefill": 31234.4, "decode": 987.6},
        "cache_bytes": 368640,
    } | changes


def make(name="org/tiny", speed=True, **changes):
    return Evaluation(
        **measurements(name, 1.79231, **changes),
        data={"source": "texts/tales.txt", "fingerprint": "f" * 64, "tokens": 4096, "rows": 16, "seq_len": 256},
        settings={"speed": speed, "prompt_tokens": 256, "new_tokens": 32},
    )


def make_pair():
    differences = {
        "loss": 0.25,
        "loss_stderr": 0.0125,
        "perplexity_ratio": 1.284,
        "parameters": -1000,
        "tokens_per_second": {"prefill": 1.5, "decode": None},
        "cache_bytes": 0.25,
    }
    other = measurements("org/other", 1.54231, tokens_per_second={"prefill": 20000.0})
    return make().model_copy(update={"against": Measurements(**other), "differences": Differences(**differences)})


def printed(evaluation, width=140):
    console = Console(file=io.StringIO(), width=width)
    show(evaluation, console)
    return console.file.getvalue()


def rows(text):
    """The body of the table, its lines written as ``cell|cell``."""
    body = [line.strip("│").split("│") for line in text.splitlines() if line[:1] == "│"]
    return ["|".join(cell.strip() for cell in cells) for cells in body]


def parts(text):
    """The tables that a text holds, each as headings and lines of cells."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("┃│").split("┃" if line[:1] == "┃" else "│")]
        if line[:1] == "┃":
            found.append((cells, []))
        elif line[:1] == "│":
            found[-1][1].append(cells)
    return found


def test_one_model():
    text = printed(make())
    assert rows(text) == [
        "perplexity|6.003",
        "loss (nats a token)|1.7923 ± 0.0321",
        "parameters|1,234,567",
        "prefill tokens/s|31,234",
        "decode tokens/s|988",
        "cache bytes|368,640",
    ]
    assert text.splitlines()[0] == "tiny: 4,096 tokens of tales.txt"
    assert "one row, 256 tokens read, 32 decoded" in text


def test_what_was_not_measured_has_no_row():
    text = printed(make(speed=False, perplexity=None, stderr=None, tokens_per_second={}, cache_bytes=None))
    assert rows(text) == ["loss (nats a token)|1.7923", "parameters|1,234,567"]
    assert "decoded" not in text


@pytest.mark.parametrize("width", [80, 140])
def test_two_models(width):
    text = printed(make_pair(), width)
    assert rows(text) == [
        "perplexity|6.003|6.003|x 1.284",
        "loss (nats a token)|1.7923 ± 0.0321|1.5423 ± 0.0321|+0.2500 ± 0.0125",
        "parameters|1,234,567|1,234,567|-1,000",
        "prefill tokens/s|31,234|20,000|x 1.500",
        "decode tokens/s|988|-|-",
        "cache bytes|368,640|368,640|x 0.250",
    ]
    assert text.splitlines()[0] == "tiny against other: 4,096 tokens of tales.txt"


@pytest.mark.parametrize("name", ["model[final]", "model[bold]"])
def test_square_brackets_in_names_are_letters(name):
    assert name in printed(make(name))


def test_square_brackets_in_headings_are_letters():
    assert "tiny[final]" in side_by_side([make("org/tiny[final]"), make("org/other")])


def side_by_side(evaluations, width=140):
    console = Console(file=io.StringIO(), width=width)
    for table in evaluation_tables(evaluations):
        show_table(table, console)
    return console.file.getvalue()


def scored(name, against=None, **tasks):
    """An evaluation on tasks alone; each accuracy as given, and less by 0.1 than the other model's."""
    metrics = {
        task: {"n": 20, "num_fewshot": 0, "version": 1, "source": "x", "cut": 0,
               "metrics": {"acc": {"value": value, "stderr": 0.05, "constant": 0.25}}}
        for task, value in tasks.items()
    }  # fmt: skip
    found = Evaluation(**measurements(name, None, tasks=metrics), data=None, settings={})
    if against is None:
        return found
    other = Measurements(**{field: getattr(against, field) for field in Measurements.model_fields})
    change = {"value": -0.1, "stderr": 0.03, "p_value": 0.02}
    none = {"loss": None, "loss_stderr": None, "perplexity_ratio": None, "tokens_per_second": {}, "cache_bytes": None}
    differences = Differences(**none, parameters=0, tasks={task: {"acc": change} for task in tasks})
    return found.model_copy(update={"against": other, "differences": differences})


def test_several_models():
    text = side_by_side([scored("a/one", copa=0.5, boolq=0.6), scored("b/two", copa=0.7)])
    assert text.splitlines()[0] == "one, two"
    assert rows(text) == [
        "copa|20|acc|0.2500|0.5000 ± 0.0500|0.7000 ± 0.0500",
        "boolq|20|acc|0.2500|0.6000 ± 0.0500|-",
    ]
    assert "difference" not in text


def test_several_models_against_another():
    other = scored("b/dense", copa=0.6)
    text = side_by_side([scored("a/one", other, copa=0.5), scored("a/one", other, copa=0.4)])
    assert text.splitlines()[0] == "one, one against dense"
    assert rows(text) == [
        "copa|20|acc|0.2500|0.6000 ± 0.0500|0.5000 ± 0.0500|0.4000 ± 0.0500",
        "|||||-0.1000 ± 0.0300 *|-0.1000 ± 0.0300 *",
    ]


@pytest.mark.parametrize(("width", "at_once"), [(80, 1), (100, 2), (140, 4)])
def test_more_models_than_a_line_has_room_for(width, at_once):
    """Tables of as many as fit, the other model in each; nothing is cut off."""
    other = scored("dense", copa=0.6)
    text = side_by_side([scored(f"model{k}", other, copa=k / 10) for k in range(5)], width=width)
    found = parts(text)
    keys = ["task", "n", "metric", "constant", "dense"]
    assert all(headings[: len(keys)] == keys for headings, _ in found)
    assert [name for headings, _ in found for name in headings[len(keys) :]] == [f"model{k}" for k in range(5)]
    assert {len(headings) - len(keys) for headings, _ in found[:-1]} == {at_once}
    values = [cell for _, lines in found for cell in lines[0][len(keys) :]]
    assert values == [f"{k / 10:.4f} ± 0.0500" for k in range(5)]
    assert all(lines[0][:5] == ["copa", "20", "acc", "0.2500", "0.6000 ± 0.0500"] for _, lines in found)
    assert all(set(lines[1][5:]) == {"-0.1000 ± 0.0300 *"} for _, lines in found)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 100, 140])
def test_scores_fit_into_narrow_terminals(width):
    """What has no room beside the rest stands below it, with what its lines are of."""
    other = scored("b/dense", copa=0.6)
    text = printed(scored("a/one", other, copa=0.5), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    found = parts(text)
    assert all(lines[0][:4] == ["copa", "20", "acc", "0.2500"] for _, lines in found)
    assert [cell for _, lines in found for cell in lines[0][4:]] == [
        "0.5000 ± 0.0500", "0.6000 ± 0.0500", "-0.1000 ± 0.0300", "0.020"
    ]  # fmt: skip
    assert len(found) == (1 if width >= 100 else 2)


@pytest.mark.parametrize("width", [80, 120, 150])
def test_long_names_leave_the_rest_of_the_table_whole(width):
    other = scored("org/dense-with-a-name-that-goes-on-and-on", copa=0.6)
    long = "pythia-410m-deduped-with-all-attentions-as-filters-of-rank-"
    text = side_by_side([scored(f"org/{long}{rank}", other, copa=0.5) for rank in (24, 36, 48)], width)
    body = [line for line in text.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, body)) <= width
    found = parts(text)
    assert all(lines[0][:5] == ["copa", "20", "acc", "0.2500", "0.6000 ± 0.0500"] for _, lines in found)
    assert all(f"of-rank-{rank}" in text for rank in (24, 36, 48))
    assert all(
        any(name.endswith(f"-rank-{rank}") for headings, _ in found for name in headings) for rank in (24, 36, 48)
    )


def test_a_metric_with_a_long_name_wraps_where_there_is_no_room():
    name = "exact_match_of_the_last_number,flexible-extract-with-a-name-that-goes-on-and-on"
    long = scored("a/one", copa=0.5)
    task = long.tasks["copa"].model_copy(update={"metrics": {name: long.tasks["copa"].metrics["acc"]}})
    text = printed(long.model_copy(update={"tasks": {"copa": task}}), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "0.500±0.050" in text


def test_numbers_that_models_do_not_share():
    """Of constants none, of documents the least and the largest."""
    one, two = scored("a/one", copa=0.5), scored("b/two", copa=0.7)
    task = two.tasks["copa"]
    metric = task.metrics["acc"].model_copy(update={"constant": 0.5})
    two = two.model_copy(update={"tasks": {"copa": task.model_copy(update={"n": 30, "metrics": {"acc": metric}})}})
    assert rows(side_by_side([one, two])) == ["copa|20-30|acc|-|0.5000 ± 0.0500|0.7000 ± 0.0500"]
