"""Tokenizers trained on a text."""

from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectilinear import RequestError
from rectilinear.training import tokenizer as module
from rectilinear.training.tokenizer import train_tokenizer

SMALL = train_tokenizer(["the cat sat on the mat"] * 3, 300)


@given(text=st.text())
def test_any_text_comes_back(text):
    ids = SMALL(text)["input_ids"]
    assert ids[0] == SMALL.bos_token_id
    assert SMALL.decode(ids[1:]) == text


def test_ends_and_padding(documents, tmp_path):
    tokenizer = train_tokenizer(documents, 300)
    assert len(tokenizer) == 300
    assert tokenizer.bos_token_id == tokenizer.eos_token_id != tokenizer.pad_token_id
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(documents[0])["input_ids"] == tokenizer(documents[0])["input_ids"]
    assert train_tokenizer(documents, 300).get_vocab() == tokenizer.get_vocab()


def test_an_endless_text_comes_to_an_end(monkeypatch):
    monkeypatch.setattr(module, "_CHARACTERS", 1000)
    seen = []
    train_tokenizer((seen.append(i) or "a story " * 5 for i in count()), 260)
    assert len(seen) == 26


def test_what_cannot_be():
    with pytest.raises(RequestError, match="vocabulary of at least 258, got 257"):
        train_tokenizer(["text"], 257)
    with pytest.raises(RequestError, match="expected text to train a tokenizer on, got none"):
        train_tokenizer(islice([" ", ""], 2), 300)
