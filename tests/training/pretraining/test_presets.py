"""The decoders that can be pretrained have the sizes of their names."""

import re
from types import SimpleNamespace

import pytest
import torch

from rectilinear import RequestError
from rectilinear.models.describe import count_parameters
from rectilinear.training.pretraining.presets import PRESETS, find_preset


class Tokenizer(SimpleNamespace):
    def __len__(self):
        return self.size


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    preset = PRESETS[name]
    tokenizer = Tokenizer(size=preset.vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    with torch.device("meta"):
        model = preset.build(tokenizer)
    millions = int(re.search(r"(\d+)m$", name)[1])
    assert count_parameters([model]) == pytest.approx(millions * 1e6, rel=0.02)
    assert preset.rows % preset.batch_size == 0
    assert model.config.max_position_embeddings >= preset.seq_len


def test_another_name():
    with pytest.raises(RequestError, match="got 'mistral-650M'; try mistral-650m"):
        find_preset("mistral-650M")
