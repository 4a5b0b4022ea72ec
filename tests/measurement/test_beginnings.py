"""A model that is out of its element on rows as they begin is told, by its own losses with BOS and without."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rectilinear.measurement.beginnings import bos_warnings
from tests.conftest import VOCABULARY, build_llama

BOS = 1


class Minds(nn.Module):
    """A model that predicts the right token where its row begins as it wants to, and knows nothing otherwise."""

    def __init__(self, wants_bos):
        super().__init__()
        self.wants_bos, self.config = wants_bos, None
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, ids):
        knows = ((ids[:, :1] == BOS) == self.wants_bos) & (ids != BOS)  # nothing of a first token after BOS
        following = nn.functional.one_hot((ids + 1) % VOCABULARY, VOCABULARY)
        return SimpleNamespace(logits=following * self.scale * knows[..., None])


def rows(with_bos, count=6, length=20):
    begin = torch.arange(count)[:, None] * 7 + 5
    ids = begin + torch.arange(length - with_bos)
    return torch.cat([torch.full((count, 1), BOS), ids], 1) if with_bos else ids


@pytest.mark.parametrize("wants_bos", [True, False])
@pytest.mark.parametrize("with_bos", [True, False])
def test_it_is_told_where_the_other_way_is_far_better(wants_bos, with_bos):
    found = bos_warnings(Minds(wants_bos), rows(with_bos), BOS, BOS if with_bos else None)
    if wants_bos == with_bos:
        assert found == []
    else:
        better = ("with BOS", "`bos=row`") if wants_bos else ("without BOS", "`bos=document`")
        assert all(part in found[0] for part in better)
        # The logarithm of 128; and of the same tokens, so that the first after BOS is not among them.
        sure = math.log(1 + (VOCABULARY - 1) / math.exp(5))
        assert f"({sure:.2f} nats a token over the beginnings of 4 rows, 4.85 as they are)" in found[0]


def test_nothing_is_said_where_there_is_nothing_to_compare():
    model = build_llama()
    assert bos_warnings(model, rows(False), None, None) == []
    assert bos_warnings(model, rows(True), BOS, None) == []  # each begins with it anyway
    assert bos_warnings(model.model, rows(False), BOS, None) == []  # no logits
    assert bos_warnings(Minds(True), rows(False, length=1), BOS, None) == []
