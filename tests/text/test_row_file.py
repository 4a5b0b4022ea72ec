"""Rows on disk are the rows of `pack_rows`."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rectilinear.text.rows import open_rows, pack_rows, stream_rows, write_rows
from rectilinear.text.tokens import Tokens, tokenize_with


def tokenize(texts):
    return (Tokens([*text.encode(), 0], True) for text in texts)


@given(lengths=st.lists(st.integers(1, 40), min_size=80, max_size=150), limit=st.integers(1, 500))
def test_stream_equals_pack(lengths, limit):
    documents = ["x" * length for length in lengths]
    whole = pack_rows(documents, tokenize, 8, 8 * limit)
    parts = [*stream_rows(documents, tokenize, 8, limit)]
    assert torch.equal(torch.cat(parts), whole.ids)
    assert all(len(part) for part in parts)


def test_file(documents, tiny_tokenizer, tmp_path):
    ids = tokenize_with(tiny_tokenizer)
    wanted = pack_rows(documents, ids, 16, 10**6)
    contents = write_rows(tmp_path / "rows.bin", stream_rows(documents, ids, 16))
    assert contents == (len(wanted.ids), 16, wanted.fingerprint)
    assert torch.equal(open_rows(tmp_path / "rows.bin", contents).long(), wanted.ids)
    assert (tmp_path / "rows.bin").stat().st_size == 4 * wanted.ids.numel()
