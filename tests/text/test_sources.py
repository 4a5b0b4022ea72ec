"""Documents come out as they were written, in order, no further than they are read; or one clear line says why not."""

import json
from itertools import islice

import pyarrow
import pyarrow.parquet
import pytest

from rectilinear.errors import RequestError
from rectilinear.text.sources import open_text


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
