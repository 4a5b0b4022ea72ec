"""Whatever data and options are: what was asked for, or a refusal in one line, and never another error."""

import json
import math
import re
import sys
import unicodedata
from contextlib import suppress
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectilinear import (
    CalibrationRows,
    Corpus,
    Evaluating,
    Fitting,
    Judging,
    Measurement,
    Monitoring,
    Probing,
    Profiling,
    Recipe,
    Rows,
    Selection,
    Stories,
    Tuning,
)
from rectilinear.characters import visible, writable
from rectilinear.cli.main import COMMANDS, build, main
from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.kinds import KINDS
from rectilinear.models.settings import Loading
from rectilinear.results import json_text
from rectilinear.text.rows import pack_rows
from rectilinear.text.sources import open_documents, open_text
from rectilinear.text.tasks import TASKS, read_task
from rectilinear.text.tokens import tokenize_with
from tests.hostile import examples, files, lines, records, scalars, texts, values

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:.*half a surrogate pair")]


def refusals():
    """While open, errors are refusals and failures that are told in a line."""
    return suppress(RequestError, JobError)


def columns_of(name):
    return {
        "boolq": ["question", "passage", "label"],
        "copa": ["premise", "question", "choice1", "choice2", "label"],
        "multirc": ["passage", "idx"],
        "wsc": ["text", "target", "label"],
        "reward": ["prompt", "chosen", "rejected"],
    }.get(name, ["premise", "hypothesis", "word", "sentence1", "sentence2", "label"])


@given(content=st.one_of(files(), files(st.one_of(records(["text"]), texts)), st.binary(max_size=200)), data=st.data())
@examples(80, 3000)
def test_files_of_text(content, data, tiny_tokenizer, tmp_path):
    path = tmp_path / f"data{data.draw(st.sampled_from(['.txt', '.jsonl', '.parquet']))}"
    path.write_bytes(content)
    with refusals():
        for text in open_text(path):
            text.encode()  # whatever is read can be written
    with refusals():
        rows = pack_rows(open_documents(path), tokenize_with(tiny_tokenizer), 4, 64)
        assert rows.ids.shape[1] == 4


@given(name=st.sampled_from(sorted(TASKS)), data=st.data())
@examples(60, 2000)
def test_files_of_tasks(name, data, tmp_path):
    folder = tmp_path if name == "reward" else tmp_path / name
    folder.mkdir(exist_ok=True)
    for split in ("train", "val"):
        content = data.draw(files(st.one_of(records(columns_of(name)), records(columns_of(name)), lines)))
        (folder / f"{split}.jsonl").write_bytes(content)
    with refusals():
        found = read_task(name, tmp_path)
        for question in (*found.train, *found.validation):
            for text in question.texts:
                text.encode()


@given(items=st.lists(st.one_of(texts, values, st.fixed_dictionaries({"text": st.one_of(texts, scalars)})), max_size=5))
@examples(60, 2000)
def test_texts_in_memory(items):
    with refusals():
        for text in islice(open_text(items), 10):
            text.encode()


SETTINGS = [
    *(Measurement, Rows, Loading, CalibrationRows, Selection, Fitting, Recipe, Corpus, Monitoring, Tuning, Profiling),
    *(Evaluating, Probing, Stories, Judging, *(kind for kind in KINDS.values() if kind.model_fields)),
]


@given(kind=st.sampled_from(SETTINGS), data=st.data())
@examples(300, 10_000)
def test_settings(kind, data):
    names = data.draw(st.lists(st.sampled_from(sorted(kind.model_fields)), max_size=4, unique=True))
    lists = st.lists(scalars, max_size=3)
    words = scalars.map(str) | st.sampled_from(["auto", "0-99999999999", "1-", "-1", "5%", "nan%", ",", "1,1", "inf"])
    given_values = {name: data.draw(st.one_of(scalars, words, lists, lists.map(tuple))) for name in names}
    with refusals():
        made = kind(**given_values)
        for value in made.model_dump().values():
            for each in value if isinstance(value, (list, tuple)) else (value,):
                assert not isinstance(each, float) or math.isfinite(each)
                assert not isinstance(each, int) or abs(each) <= 10**15
        json.dumps(writable(made.model_dump(mode="json")), allow_nan=False).encode()


ABSURD = ["0", "-1", "1", str(10**9), str(10**15), str(10**30), "9" * 5000, "nan", "inf", "1e-320", "", ",", "1,1"]


@cache
def program(name):
    """The program with one command, and the command's options."""
    app = build([name])
    return app, sorted(
        {name for each in app[name].assemble_argument_collection() for name in each.names if name.startswith("--")}
    )


@given(name=st.sampled_from([name for name in COMMANDS if name != "demo"]), data=st.data())
@examples(60, 5000)
def test_command_lines(name, data, monkeypatch, capfd):
    """Options of every command with absurd values are read, or refused in one line."""
    app, options = program(name)
    words = st.sampled_from([*ABSURD, "0-99999999999", "%"]) | texts.filter(lambda text: "\0" not in text)
    drawn = data.draw(st.lists(st.tuples(st.sampled_from(options), words), max_size=4))
    line = [name, "model", "--text", "text", *(word for option in drawn for word in option)]
    monkeypatch.setattr(sys, "argv", ["rectilinear", *line])
    monkeypatch.setattr("rectilinear.cli.main._run", lambda arguments: app.parse_args(arguments) and 0)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr().err
    assert ended.value.code in (0, 2)
    if ended.value.code:
        assert re.fullmatch(r"rectilinear: error: [^\n]{1,3000}\n", told)
        assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in told.rstrip())


@given(text=texts, value=values)
@examples(100, 2000)
def test_what_is_shown_and_written(text, value):
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in visible(text).translate({9: "", 10: ""}))
    json.dumps(writable({text: value}), ensure_ascii=False).encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite(number):
    with pytest.raises(JobError, match="expected finite numbers in a result"):
        json_text({"loss": [number]})
