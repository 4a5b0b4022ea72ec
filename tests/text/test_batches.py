"""What holds tokens becomes batches with the same tokens in the same order; what holds text is left to be read."""

import copy

import datasets
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import DataCollatorForLanguageModeling

from rectilinear.errors import RequestError
from rectilinear.text.batches import as_batches

ROWS = torch.arange(60).view(12, 5)
RAGGED = [[*range(1, 2 + length % 7)] for length in range(20)]


def rows_of(batches):
    """The rows of batches, as lists without padding."""
    rows = []
    for batch in batches:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        assert ids.shape == mask.shape
        rows += [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    return rows


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_a_tensor_of_ids_is_rows(dtype):
    rows = as_batches(ROWS.to(dtype))
    assert torch.equal(rows, ROWS)
    assert rows.dtype == torch.int64


ONE_LENGTH = {
    "lists": ROWS.tolist(),
    "tensors": [*ROWS],
    "tuples": tuple(map(tuple, ROWS.tolist())),
    "iterator": iter([*ROWS]),
    "records": [{"input_ids": row, "attention_mask": [1] * 5, "labels": row} for row in ROWS.tolist()],
    "dataset": datasets.Dataset.from_dict({"input_ids": ROWS.tolist(), "attention_mask": [[1] * 5] * 12}),
    "dataset of tensors": datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}).with_format("torch"),
    "streamed dataset": datasets.Dataset.from_dict({"input_ids": ROWS.tolist()}).to_iterable_dataset(),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_LENGTH)
def test_rows_of_one_length_are_a_tensor(kind):
    rows = as_batches(ONE_LENGTH[kind])
    assert torch.equal(rows, ROWS)
    assert rows.dtype == torch.int64


@pytest.mark.parametrize("make", [
    list, lambda rows: [*map(torch.tensor, rows)], lambda rows: datasets.Dataset.from_dict({"input_ids": rows}),
])  # fmt: skip
def test_rows_of_other_lengths_are_padded_and_masked(make):
    assert rows_of(as_batches(make(RAGGED))) == RAGGED


def test_padding_stays_out():
    masks = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    table = datasets.Dataset.from_dict({"input_ids": ROWS[:3].tolist(), "attention_mask": masks})
    wanted = [[2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13]]
    assert rows_of(as_batches(table)) == wanted
    assert rows_of(as_batches([*table])) == wanted


def test_loaders_give_their_batches(tiny_tokenizer):
    table = [{"input_ids": row} for row in RAGGED]
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    loader = DataLoader(table, batch_size=3, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    batches = as_batches(loader)
    assert [{*batch} for batch in batches] == [{"input_ids", "attention_mask"}] * 7
    assert rows_of(batches) == RAGGED
    assert [len(batch["input_ids"]) for batch in batches] == [3] * 6 + [2]
    for loader in (DataLoader(ROWS, batch_size=4), DataLoader(TensorDataset(ROWS, ROWS), batch_size=4)):
        assert torch.equal(torch.cat(as_batches(loader)), ROWS)


def test_batches_are_taken_as_they_are():
    features = [torch.rand(2, 3, 4), torch.rand(1, 3, 4)]
    batches = [{"inputs_embeds": feature, "scale": 2} for feature in features]
    assert as_batches(batches) == batches
    assert all(a is b for a, b in zip(as_batches(iter(features)), features, strict=True))
    assert [batch.shape for batch in as_batches([ROWS, ROWS[:1]])] == [(12, 5), (1, 5)]
    assert as_batches([]) == []


@pytest.mark.parametrize("source", [
    "stories", ["one", "two"], ("one",), [{"text": "one"}], datasets.Dataset.from_dict({"text": ["one"]}),
    pandas.DataFrame({"text": ["one"]}), pandas.Series(["one"]), datasets.DatasetDict(), DataLoader(["one", "two"]), 7,
])  # fmt: skip
def test_text_is_left_to_be_read(source):
    if not isinstance(source, DataLoader):
        assert as_batches(source) is None
        return
    with pytest.raises(RequestError, match=r"expected batches of tensors \[rows, \.\.\.\], got list"):
        as_batches(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.rand(2, 3), "expected token ids .* got one tensor \\[2, 3\\] of torch.float32; try \\[batch\\]"),
        ({"input_ids": ROWS}, "got one batch; try \\[batch\\]"),
        (iter(["one"]), "got a text; try a list"),
        ([[1, 2], "three"], "expected rows of token ids, got str among them"),
        ([ROWS, "three"], "expected batches of tensors .* got str"),
    ],
)
def test_what_is_no_batches_is_refused(source, message):
    with pytest.raises(RequestError, match=message):
        as_batches(source)
