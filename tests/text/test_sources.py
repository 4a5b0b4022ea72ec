"""Documents come out as they were written, in order, no further than they are read; or one clear line says why not."""

import json
from itertools import islice

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from rectilinear.errors import RequestError
from rectilinear.text.lines import read_lines
from rectilinear.text.sources import open_documents, open_text


@pytest.fixture
def write(tmp_path):
    """A function that writes bytes, text, records or a table by the suffix of the name, and returns the path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            pyarrow.parquet.write_table(pyarrow.table(content), path)
        elif isinstance(content, list):
            path.write_text("".join(json.dumps(record) + "\n" for record in content), encoding="utf-8")
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def stripped(source, **options):
    return [document.strip() for document in open_text(source, **options)]


def refusal(source, **options):
    with pytest.raises(RequestError) as caught:
        list(open_text(source, **options))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("one\n<|endoftext|>\ntwo\n<|endoftext|>\n", ["one", "two", ""]),
        ("one\n<|endoftext|>\ntwo", ["one", "two"]),
        ("one\n  <|endoftext|>\t\ntwo", ["one", "two"]),
        ("one\r\n<|endoftext|>\r\ntwo\r\nmore\r\n", ["one", "two\nmore"]),
        ("one\n\nsame\n<|endoftext|>\n<|endoftext|>\ntwo", ["one\n\nsame", "", "two"]),
        ("no line of its own <|endoftext|> here", ["no line of its own <|endoftext|> here"]),
        ("naïve œuvre 日本\n<|endoftext|>\nπ", ["naïve œuvre 日本", "π"]),
        ("", [""]),
    ],
)
def test_txt_is_cut_at_separator_lines(write, content, expected):
    assert stripped(write("a.txt", content)) == expected


def test_txt_keeps_the_lines_of_a_document(write):
    assert list(open_text(write("a.txt", "  one\n\n two\n<|endoftext|>\nthree"))) == ["  one\n\n two\n", "three"]


def test_jsonl_gives_the_column_asked_for(write):
    path = write("a.jsonl", [{"text": "one", "story": "eins"}, {"story": "zwei", "text": "two\nlines"}])
    assert list(open_text(path)) == ["one", "two\nlines"]
    assert list(open_text(path, column="story")) == ["eins", "zwei"]


def test_jsonl_skips_blank_lines(write):
    assert list(open_text(write("a.jsonl", '{"text": "one"}\n\n  \n{"text": "two"}'))) == ["one", "two"]


def test_parquet_gives_the_column_asked_for_in_order(write):
    texts = [f"document {i}" for i in range(600)]  # more than is read at once
    path = write("a.parquet", {"id": list(range(600)), "text": texts, "story": texts[::-1]})
    assert list(open_text(path)) == texts
    assert list(open_text(path, column="story")) == texts[::-1]


def test_folder_reads_every_kind_in_order_of_name(write, tmp_path):
    write("folder/c.txt", "five\n<|endoftext|>\nsix")
    write("folder/b.jsonl", [{"text": "three"}, {"text": "four"}])
    write("folder/a.parquet", {"text": ["one", "two"]})
    write("folder/README.md", "not text to read")
    assert list(open_text(tmp_path / "folder")) == ["one", "two", "three", "four", "five\n", "six"]
    assert list(open_text(str(tmp_path / "folder"))) == ["one", "two", "three", "four", "five\n", "six"]


def test_stories_depend_on_the_seed_alone():
    def take(seed):
        return list(islice(open_text("stories", seed=seed), 5))

    assert take(0) == take(0)
    assert all(text.strip() for text in take(0))
    assert not set(take(0)) & set(take(1))


def test_jsonl_is_read_no_further_than_needed(write):
    documents = open_text(write("a.jsonl", '{"text": "one"}\n{"text": "two"}\nbroken\n'))
    assert [next(documents), next(documents)] == ["one", "two"]
    with pytest.raises(RequestError):
        next(documents)


def test_txt_is_read_no_further_than_needed(write):
    documents = open_text(write("a.txt", b"one\n<|endoftext|>\n" + b"two\n" * 100_000 + b"\xff"))
    assert next(documents) == "one\n"
    with pytest.raises(RequestError):
        next(documents)


def test_folder_is_read_no_further_than_needed(write, tmp_path):
    write("folder/a.txt", "one\n<|endoftext|>\ntwo")
    write("folder/b.parquet", b"not parquet at all")
    documents = open_text(tmp_path / "folder")
    assert list(islice(documents, 2)) == ["one\n", "two"]
    with pytest.raises(RequestError, match=r"b\.parquet"):
        next(documents)


def test_missing_file_is_refused_before_reading(tmp_path):
    for source in (tmp_path / "none.txt", tmp_path / "none", "none.jsonl", "./none"):
        with pytest.raises(RequestError, match=r"no text at .*none"):
            open_text(source)


def test_unknown_suffix_is_refused_before_reading(write):
    with pytest.raises(RequestError, match=r"expected a \.txt, \.jsonl or \.parquet file, got .*a\.csv"):
        open_text(write("a.csv", "text\none\n"))


def test_empty_folder_is_refused_before_reading(write, tmp_path):
    write("folder/a.csv", "text\none\n")
    with pytest.raises(RequestError, match=r"expected \.txt, \.jsonl or \.parquet files in .*folder, found none"):
        open_text(tmp_path / "folder")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_missing_column_names_what_is_there(write, name):
    records = [{"story": "one", "title": "two"}]
    path = write(name, records if name.endswith("jsonl") else {k: [v] for k, v in records[0].items()})
    message = refusal(path)
    assert name in message
    assert "'text'" in message
    assert "story, title" in message
    assert "`column=title`" in message  # the nearest to the one asked for


def test_missing_column_of_an_empty_record(write):
    assert "line 1" in refusal(write("a.jsonl", [{}]))


def test_not_json_names_file_and_line(write):
    message = refusal(write("a.jsonl", '{"text": "one"}\n\n{"text": \n'))
    assert "a.jsonl, line 3" in message
    assert "'{\"text\":'" in message


def test_json_that_is_no_object_names_file_and_line(write):
    message = refusal(write("a.jsonl", '{"text": "one"}\n["two"]\n'))
    assert "a.jsonl, line 2" in message
    assert "list" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_column_that_is_no_text_is_refused(write, name):
    path = write(name, [{"text": "one"}, {"text": 7}] if name.endswith("jsonl") else {"text": [1, 7]})
    message = refusal(path)
    assert name in message
    assert "'text', got int" in message


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_not_utf8_names_file_and_byte(write, name):
    message = refusal(write(name, b"caf\xe9\n"))
    assert name in message
    assert "0xe9" in message


def test_not_parquet_names_the_file(write):
    assert "a.parquet" in refusal(write("a.parquet", b"not parquet at all"))


def test_hub_id_offline_is_refused_in_one_line():
    message = refusal("nobody/nothing")
    assert "'nobody/nothing'" in message
    assert "Hub dataset id" in message


def test_a_document_of_a_txt_is_read_no_further_than_needed(write):
    """Lines or none, its beginning is there before its end is read."""
    for line in ("x" * 79 + "\n", "x"):
        path = write("a.txt", line.encode() * (2**20 // len(line)) + b"\xff")
        [document] = islice(open_documents(path), 1)
        assert next(iter(document)).startswith("x" * 79)
        with pytest.raises(RequestError, match="0xff"):
            "".join(document)


@pytest.mark.parametrize("line", [65_535, 65_536, 65_537, 131_072])
def test_separators_at_the_ends_of_pieces(write, line):
    """Long lines are read in pieces; a piece that looks like a separator is none, one in much white space is."""
    ends = "x" * line + "<|endoftext|>\n"
    begins = " " * line + "<|endoftext|>" + " " * line + "\n"
    path = write("a.txt", ends + begins + "one" + "\r\n" + begins.replace("\n", "y\n") + begins.strip("\n"))
    first, second, third = open_text(path)
    assert first == ends
    assert second == "one\n" + begins.replace("\n", "y\n")
    assert third == ""


def test_documents_that_are_not_taken_are_passed_over(write):
    path = write("a.txt", "one\nmore\n<|endoftext|>\ntwo\n<|endoftext|>\nthree")
    assert ["".join(document) for place, document in enumerate(open_documents(path)) if place != 1] == [
        "one\nmore\n",
        "three",
    ]


@pytest.mark.parametrize("source", [
    ["one", "two"], ("one", "two"), iter(["one", "two"]), [{"text": "one"}, {"text": "two", "id": 2}],
    datasets.Dataset.from_dict({"id": [1, 2], "text": ["one", "two"]}), pandas.Series(["one", "two"]),
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_iterable_dataset(),
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["one", "two"]})),
    pandas.DataFrame({"id": [1, 2], "text": ["one", "two"]}, index=["b", "a"]),
])  # fmt: skip
def test_texts_in_memory(source):
    assert list(open_text(source)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "option", "what"),
    [
        ("tales.txt", {"split": "test"}, "expected no `split` with files"),
        ("tales.jsonl", {"config": "english"}, "expected no `config` with files"),
        ("tales.txt", {"column": "tale"}, "expected no `column` with a .txt file"),
        ("stories", {"split": "test"}, "expected no `split` with generated stories"),
    ],
)
def test_what_would_change_nothing_is_refused(tmp_path, monkeypatch, name, option, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales.txt").write_text("a tale")
    (tmp_path / "tales.jsonl").write_text('{"text": "a tale"}')
    with pytest.raises(RequestError, match=what):
        open_text(name, **option)


def test_columns_and_splits_of_tables_in_memory():
    table = {"story": ["eins", "zwei"], "text": ["one", "two"]}
    for made in (datasets.Dataset.from_dict(table), pandas.DataFrame(table)):
        assert list(open_text(made, column="story")) == ["eins", "zwei"]
        assert "there are story, text; try `column=story`" in refusal(made, column="stories")
    splits = datasets.DatasetDict(test=datasets.Dataset.from_dict(table))
    assert list(open_text(splits, split="test")) == ["one", "two"]
    assert "a split 'train', got test" in refusal(splits)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (["one", 2], "list, item 1: expected a text, got int"),
        (pandas.DataFrame({"text": ["one", None]}), "expected text in column 'text', got"),
        (7, "expected a path, a Hub dataset id or 'stories', or texts, got int"),
        ("", "expected a path, a Hub dataset id or 'stories', got a text ('')"),
    ],
)
def test_what_is_no_text_is_refused(source, message):
    assert message in refusal(source)


@pytest.mark.parametrize("text", ["Once upon a time, there was a cat.", "one\ntwo", "x" * 5000, "/a\n/b"])
def test_a_text_in_the_place_of_a_path_is_said_to_be_one(text):
    message = refusal(text)
    assert message.startswith("expected a path, a Hub dataset id or 'stories', got a text ('")
    assert message.endswith("; try [text]")
    assert list(open_text([text])) == [text]


HALF = "cut \ud83d here, \ude00 there; whole \U0001f600"
PLAIN = "cut \ufffd here, \ufffd there; whole \U0001f600"


@pytest.mark.parametrize("make", [
    lambda write: write("a.jsonl", [{"text": "one"}, {"text": HALF}]), lambda write: ["one", HALF],
    lambda write: [{"text": "one"}, {"text": HALF}], lambda write: iter(["one", HALF]),
])  # fmt: skip
def test_what_is_no_character_is_replaced_with_a_warning(write, make):
    """Valid JSON, and valid UTF-8 on disk, may name half a surrogate pair."""
    with pytest.warns(UserWarning, match=r"(a\.jsonl, line 2|item 1): half a surrogate pair .* U\+FFFD") as warned:
        assert list(open_text(make(write))) == ["one", PLAIN]
    assert len(warned) == 1


@pytest.mark.filterwarnings("error")
def test_escapes_of_whole_characters_are_no_reason_to_warn(write):
    path = write("a.jsonl", r'{"text": "\ud83d\ude00 \u00e9 \\ud83d \n", "n": [1e999, -0.1, 12345678901234567890]}')
    [line] = read_lines(path)
    assert line.record == {"text": "\U0001f600 é \\ud83d \n", "n": [float("inf"), -0.1, 12345678901234567890]}


def test_keys_and_parts_are_replaced_too(write):
    path = write("a.jsonl", [{"a\ud83d": {"b": ["\udc00"]}}])
    with pytest.warns(UserWarning, match="line 1"):
        [line] = read_lines(path)
    assert line.record == {"a\ufffd": {"b": ["\ufffd"]}}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("9" * 5000, "a number of too many digits"),
        ("[" * 100_000, "too deeply nested"),
        ("[" * 100_000 + r'"\ud83d"' + "]" * 100_000, "too deeply nested"),
    ],
)
def test_what_json_cannot_hold_names_file_and_line(write, value, reason):
    path = write("a.jsonl", '{"text": "one"}\n{"text": ' + value + "}\n")
    message = refusal(path)
    assert "a.jsonl, line 2: expected JSON, got " in message
    assert reason in message
