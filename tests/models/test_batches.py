"""How many rows run at once where memory does not suffice."""

import pytest
import torch

from rectilinear import JobError
from rectilinear.models.batches import reporting_exhausted_memory, with_batch_size

LAYER = torch.nn.Linear(2, 2)


def attempt_with_room_for(rows, sizes):
    def attempt(size):
        sizes.append(size)
        if size > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return size

    return reporting_exhausted_memory()(lambda: with_batch_size(attempt, "auto", LAYER, 256))


def test_batches_are_halved_until_they_fit():
    assert attempt_with_room_for(3, sizes := [])() == 2
    assert sizes == [8, 4, 2]


def test_where_not_even_one_row_fits_what_to_try_is_said():
    with pytest.raises(JobError, match="out of memory; try a smaller"):
        attempt_with_room_for(0, sizes := [])()
    assert sizes == [8, 4, 2, 1]


def test_other_errors_are_passed_on():
    def attempt(size):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        reporting_exhausted_memory()(lambda: with_batch_size(attempt, "auto", LAYER, 256))()
