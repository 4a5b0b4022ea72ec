"""The one fixed way from documents to rows, against a few lines that say the same."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rectilinear.errors import RequestError
from rectilinear.text.fingerprint import fingerprint
from rectilinear.text.rows import pack_rows, read_rows
from rectilinear.text.settings import Rows
from rectilinear.text.tokens import Tokens

BOS, EOS = 1, 2


def tokenize(texts):
    """One token a character, between the special tokens of its document."""
    for text in texts:
        yield Tokens([BOS, *(ord(character) for character in text), EOS], True)


def ids(*parts):
    return [part if isinstance(part, int) else ord(part) for part in parts]


def reference(documents, seq_len, max_tokens, bos=None):
    """Rows of pairs: a token, and which document it is of."""
    stream = []
    for number, document in enumerate(filter(str.strip, documents)):
        stream += [(token, number) for token in (BOS, *map(ord, document.strip()), EOS)]
    length = seq_len if bos is None else seq_len - 1
    rows = [stream[i : i + length] for i in range(0, len(stream), length)]
    lead = [] if bos is None else [bos]
    rows = [[*((token, row[0][1]) for token in lead), *row] for row in rows if len(row) == length]
    return rows[: max_tokens // seq_len]


def test_rows_run_on_over_documents_and_the_remainder_is_dropped():
    rows = pack_rows(["  ab ", "\n \t", "", "c d\n", "efgh"], tokenize, seq_len=4, max_tokens=100)
    assert rows.ids.tolist() == [
        ids(BOS, "a", "b", EOS),
        ids(BOS, "c", " ", "d"),
        ids(EOS, BOS, "e", "f"),
    ]  # "g", "h" and the last EOS do not fill a row


@pytest.mark.parametrize(("max_tokens", "rows"), [(4, 1), (7, 1), (8, 2), (11, 2), (12, 3), (1000, 3)])
def test_as_many_rows_as_max_tokens_holds(max_tokens, rows):
    assert len(pack_rows(["ab", "c d", "efgh"], tokenize, 4, max_tokens).ids) == rows


@given(
    st.lists(st.text("ab \n\u00a0é", max_size=12), max_size=150),
    st.integers(2, 9),
    st.integers(0, 400),
    st.sampled_from([None, BOS, 7]),
)
def test_rows_are_those_of_the_reference(documents, seq_len, spare, bos):
    max_tokens = seq_len + spare
    expected = reference(documents, seq_len, max_tokens, bos)
    if not expected:
        with pytest.raises(RequestError):
            pack_rows(documents, tokenize, seq_len, max_tokens, bos)
        return
    rows = pack_rows(iter(documents), tokenize, seq_len, max_tokens, bos)
    wanted, of = (np.array(expected)[:, :, part] for part in (0, 1))
    assert rows.ids.tolist() == wanted.tolist()
    assert rows.documents.tolist() == of.tolist()
    assert rows.lead == bos
    assert rows.fingerprint == hashlib.sha256(wanted.astype("<i8").tobytes()).hexdigest()


class Tokenizer:
    """As much of a tokenizer as it takes: one that puts BOS before each document, or has none."""

    is_fast = False

    def __init__(self, bos):
        self.bos_token_id = bos

    def __call__(self, texts, verbose):
        return {"input_ids": [tokens.ids for tokens in tokenize(texts)]}


@pytest.mark.parametrize(
    ("bos", "rows"),
    [
        ("document", [ids(BOS, "a", "b", EOS), ids(BOS, "c", EOS, BOS), ids("d", "e", "f", "g")]),
        ("row", [ids(BOS, BOS, "a", "b"), ids(BOS, EOS, BOS, "c"), ids(BOS, EOS, BOS, "d"), ids(BOS, "e", "f", "g")]),
        ("none", [ids("a", "b", EOS, "c"), ids(EOS, "d", "e", "f")]),
    ],
)
def test_bos_at_documents_rows_or_nowhere(bos, rows):
    found = read_rows(["ab", "c", "defg"], Tokenizer(BOS), Rows(seq_len=4, bos=bos))
    assert found.ids.tolist() == rows


def test_rows_cannot_begin_with_a_bos_that_a_tokenizer_does_not_have():
    with pytest.raises(RequestError, match="BOS token for `bos=row`, got one without; try `bos=document`"):
        read_rows(["ab"], Tokenizer(None), Rows(seq_len=4, bos="row"))
    assert len(read_rows(["ab"], Tokenizer(None), Rows(seq_len=4, bos="none")).ids) == 1


def test_fingerprint_is_that_of_little_endian_int64():
    rows = pack_rows(["ab"], tokenize, seq_len=2, max_tokens=4)
    eight_bytes_each = b"".join(token.to_bytes(8, "little") for token in ids(BOS, "a", "b", EOS))
    assert rows.fingerprint == hashlib.sha256(eight_bytes_each).hexdigest()
    assert fingerprint(rows.ids) == fingerprint([rows.ids]) == rows.fingerprint


def test_an_endless_source_is_read_no_further_than_needed():
    def endless():
        for _ in range(100 + 64):  # documents are tokenised in groups
            yield "abcdefgh"  # ten tokens
        pytest.fail("read on, though there were tokens enough")

    assert pack_rows(endless(), tokenize, seq_len=10, max_tokens=1000).ids.shape == (100, 10)


@pytest.mark.parametrize("documents", [[], ["", " \n"], ["abcd"]])
def test_less_than_one_row_is_refused(documents):
    tokens = sum(len(row.ids) for row in tokenize(filter(str.strip, documents)))
    got = f"{tokens} tokens; try a smaller" if tokens else "none: there is no text in it"
    with pytest.raises(RequestError, match=f"at least one row of 7 tokens, got {got}"):
        pack_rows(documents, tokenize, seq_len=7, max_tokens=100)


@pytest.mark.parametrize(("seq_len", "max_tokens"), [(8, 7), (0, 7), (-1, 7)])
def test_sizes_that_hold_no_row_are_refused(seq_len, max_tokens):
    with pytest.raises(RequestError, match=f"got {max_tokens} and {seq_len}"):
        pack_rows(["abcdefgh"], tokenize, seq_len, max_tokens)
