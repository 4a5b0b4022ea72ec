"""Rows of tokens packed by hand, and a short way to linearize on them."""

import pytest
import torch

from tests import conftest

SEQ_LEN, ROWS, FITTED = 32, 64, 58  # a tenth of the rows, 6, is held out


@pytest.fixture(scope="session")
def rows(documents, tiny_tokenizer):
    """``[64, 32]``: the first rows of `documents`, as the documentation says."""
    ids = [i for document in documents for i in tiny_tokenizer(document.strip())["input_ids"]]
    return torch.tensor(ids[: ROWS * SEQ_LEN]).view(ROWS, SEQ_LEN)


@pytest.fixture
def linearize(text_file, tiny_tokenizer):
    """`tests.conftest.linearize` on these rows."""

    def run(model, text=text_file, **options):
        size = {"max_tokens": ROWS * SEQ_LEN, "seq_len": SEQ_LEN, "device": "cpu", **options}
        return conftest.linearize(model, text, **{"tokenizer": tiny_tokenizer, **size})

    return run


def learn(model, rows, epochs):
    """The model after it learnt some rows a little, so that losing parts of it costs something."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))].split(8):
            optimizer.zero_grad()
            model(batch, labels=batch, use_cache=False).loss.backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def loss_by_hand(model, rows):
    """Nats a token of every token but a row's first."""
    return losses_by_hand(model, rows).mean()


@torch.no_grad()
def losses_by_hand(model, rows):
    """The same of each row, float64 ``[rows]``."""
    logits = model.eval()(rows, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    return -logits.gather(-1, rows[:, 1:, None]).mean((1, 2)).numpy()


@torch.no_grad()
def divergence_by_hand(model, other, ids):
    wanted, found = (each(ids, use_cache=False).logits.double().log_softmax(-1) for each in (model, other))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())
