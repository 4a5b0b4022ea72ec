"""Losses against ones that are known or computed by hand in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.perplexity import Losses, Perplexity, measure_perplexity, token_losses
from tests.conftest import VOCABULARY, build_llama


def token_rows(rows=10, seq_len=20, seed=0):
    return torch.randint(0, VOCABULARY, (rows, seq_len), generator=torch.Generator().manual_seed(seed))


def losses_by_hand(logits, ids):
    """``[rows, seq_len - 1]``: minus the logarithm of the softmax at the next token, written out in numpy's float64."""
    logits, ids = logits.detach().double().numpy(), ids.numpy()
    losses = np.zeros((len(ids), ids.shape[1] - 1))
    for row in range(len(ids)):
        for position in range(ids.shape[1] - 1):
            at = logits[row, position]
            losses[row, position] = at.max() + np.log(np.exp(at - at.max()).sum()) - at[ids[row, position + 1]]
    return losses


class Fixed(nn.Module):
    """The same logits ``[vocabulary]`` after every token."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, ids):
        return SimpleNamespace(logits=self.logits.expand(*ids.shape, -1))


@pytest.mark.slow
def test_a_trained_model_equals_its_loss_in_float64(shared):
    folder = shared / "models/stories260K"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    # Rows packed by hand, as the documentation says.
    text = (shared / "data/tinystories/valid.txt").read_text(encoding="utf-8")
    ids = [i for story in text.split("<|endoftext|>") if story.strip() for i in tokenizer(story.strip())["input_ids"]]
    rows = torch.tensor(ids[: 390 * 256]).view(390, 256)
    found = measure_perplexity(model, rows, 16)

    exact, losses = model.double(), []
    with torch.no_grad():
        for part in rows.split(30):
            logarithms = exact(part).logits[:, :-1].log_softmax(-1)
            losses.append(-logarithms.gather(2, part[:, 1:, None]).squeeze(2).sum(1))
    expected = torch.cat(losses)
    assert found.tokens == 390 * 255
    assert found.loss == pytest.approx(float(expected.sum()) / (390 * 255), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(float(expected.sum()) / (390 * 255)), rel=1e-6)
    assert round(found.perplexity, 2) == 5.04
    torch.testing.assert_close(found.rows.sums, expected, rtol=1e-5, atol=0)


def test_every_token_but_the_first_is_predicted_from_those_before():
    model, ids = build_llama(), token_rows()
    with torch.no_grad():
        by_hand = losses_by_hand(model(ids).logits, ids)
    found = measure_perplexity(model, ids, 3)
    assert found.tokens == 10 * 19
    assert (found.rows.sums.dtype, found.rows.sums.shape) == (torch.float64, (10,))
    np.testing.assert_allclose(found.rows.sums.numpy(), by_hand.sum(1), rtol=1e-6)
    assert found.loss == pytest.approx(by_hand.mean(), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(by_hand.mean()), rel=1e-6)


def test_the_error_is_that_of_row_means():
    model, ids = build_llama(), token_rows()
    means = losses_by_hand(model(ids).logits, ids).mean(1)
    assert measure_perplexity(model, ids).stderr == pytest.approx(np.std(means, ddof=1) / np.sqrt(10), rel=1e-5)
    assert measure_perplexity(model, ids[:1]).stderr is None


@pytest.mark.parametrize("with_bos", [False, True])
def test_errors_are_over_documents_which_neighbouring_rows_share(with_bos):
    model, ids, generator = build_llama(), token_rows(), torch.Generator().manual_seed(2)
    bos = int(ids[3, 5]) if with_bos else None
    documents = torch.randint(40, (200,), generator=generator).sort().values.view(10, 20).int() + 3
    losses, of = losses_by_hand(model(ids).logits, ids).flatten(), documents[:, 1:].flatten().numpy()
    known = np.ones(len(losses), bool) if bos is None else (ids[:, 1:] != bos).flatten().numpy()
    assert bos is None or not known.all()
    sums, sizes = (
        np.array([values[(of == number) & known].sum() for number in np.unique(of[known])])
        for values in (losses, np.ones(len(losses)))
    )
    found = measure_perplexity(model, ids, 3, documents=documents, bos=bos)
    mean = losses[known].mean()
    assert found.loss == pytest.approx(mean, rel=1e-6)
    assert found.tokens == known.sum()
    n = len(sums)
    expected = np.sqrt(n / (n - 1) * ((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    assert found.stderr == pytest.approx(expected, rel=1e-5)
    other = measure_perplexity(build_llama(seed=1), ids, 4, documents=documents, bos=bos)
    changes = (found.documents.sums - other.documents.sums).numpy()
    value, error = found.minus(other)
    assert value == pytest.approx(changes.sum() / sizes.sum())
    expected = np.sqrt(n / (n - 1) * ((changes - value * sizes) ** 2).sum()) / sizes.sum()
    assert error == pytest.approx(expected, rel=1e-9)


def test_errors_of_a_text_of_one_document_are_over_rows():
    model, ids = build_llama(), token_rows()
    found = measure_perplexity(model, ids, documents=torch.zeros_like(ids, dtype=torch.int32))
    assert found.clusters is found.rows
    assert found.stderr == measure_perplexity(model, ids).stderr


def test_two_models_are_compared_row_by_row():
    ids = token_rows()
    one, other = (measure_perplexity(build_llama(seed=seed), ids) for seed in (0, 1))
    differences = [
        losses_by_hand(build_llama(seed=0)(ids).logits, ids)[row].mean()
        - losses_by_hand(build_llama(seed=1)(ids).logits, ids)[row].mean()
        for row in range(10)
    ]
    difference, error = one.minus(other)
    assert difference == pytest.approx(np.mean(differences), rel=1e-4)
    assert error == pytest.approx(np.std(differences, ddof=1) / np.sqrt(10), rel=1e-4)
    assert difference == pytest.approx(one.loss - other.loss, rel=1e-9)
    assert one.minus(one) == (0.0, 0.0)


def of_rows(sums, tokens=10):
    return Perplexity(Losses(sums, torch.full((len(sums),), tokens)))


def test_what_makes_rows_hard_drops_out_of_the_paired_error():
    easy_and_hard = torch.tensor([10.0, 100.0, 40.0, 70.0], dtype=torch.float64)
    one, other = of_rows(easy_and_hard + 5), of_rows(easy_and_hard)
    difference, error = one.minus(other)
    assert (difference, error) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))
    assert min(one.stderr, other.stderr) > 1


def test_one_row_has_no_error_and_other_rows_no_difference():
    one = of_rows(torch.ones(1, dtype=torch.float64))
    assert one.minus(one) == (0.0, None)
    for other in (of_rows(torch.ones(2, dtype=torch.float64)), of_rows(one.rows.sums, 9)):
        with pytest.raises(ValueError, match="expected the same rows"):
            one.minus(other)


def test_uniform_logits_give_the_size_of_the_vocabulary():
    found = measure_perplexity(Fixed(torch.full((VOCABULARY,), 3.0)), token_rows())
    assert found.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.stderr == pytest.approx(0, abs=1e-6)


def test_a_known_distribution():
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    ids = torch.tensor([[3, 0, 0, 1], [0, 1, 2, 3]])  # the first of a row is not predicted
    found = measure_perplexity(Fixed(probabilities.log()), ids)
    bits = torch.tensor([1 + 1 + 2, 2 + 3 + 3], dtype=torch.float64)
    torch.testing.assert_close(found.rows.sums, bits * math.log(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_the_batch_size_changes_nothing(batch_size):
    model, ids = build_llama(), token_rows()
    found, expected = measure_perplexity(model, ids, batch_size), measure_perplexity(model, ids, 4)
    torch.testing.assert_close(found.rows.sums, expected.rows.sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("values", [1, 2 * 50, 2 * 50 * 3, 10**9])
def test_chunks_change_nothing(values):
    logits = 5 * torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0))
    ids = token_rows(2, 8) % 50
    found = token_losses(logits, ids, values)
    assert (found.dtype, found.shape) == (torch.float32, (2, 7))
    np.testing.assert_allclose(found.numpy(), losses_by_hand(logits, ids), rtol=1e-5, atol=1e-6)


def test_few_logits_are_in_float32_at_once(monkeypatch):
    sizes = []

    def spy(logits, *args, **kwargs):
        sizes.append((logits.numel(), logits.dtype))
        return torch.nn.functional.cross_entropy(logits, *args, **kwargs)

    monkeypatch.setattr("rectilinear.measurement.perplexity.cross_entropy", spy)
    token_losses(torch.zeros(2, 9, 50, dtype=torch.bfloat16), token_rows(2, 9) % 50, 2 * 50 * 3)
    assert sizes == [(300, torch.float32), (300, torch.float32), (200, torch.float32)]


def test_half_precision_logits_are_summed_in_float32():
    logits = (5 * torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0))).bfloat16()
    ids = token_rows(2, 8) % 50
    np.testing.assert_allclose(token_losses(logits, ids).numpy(), losses_by_hand(logits, ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_and_tied_weights(tied):
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=tied)
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(config).eval(), token_rows()
    with torch.no_grad():
        by_hand = losses_by_hand(model(ids).logits, ids)
    assert measure_perplexity(model, ids).loss == pytest.approx(by_hand.mean(), rel=1e-6)


def test_the_mode_is_left_as_it_was_and_dropout_is_off():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4, n_positions=32, resid_pdrop=0.5)
    model, ids = AutoModelForCausalLM.from_config(config).train(), token_rows()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert measure_perplexity(model, ids).loss == measure_perplexity(model, ids).loss
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_loss_that_is_not_finite_is_named():
    model, ids = build_llama(), token_rows(6) % (VOCABULARY - 1)
    with torch.no_grad():
        model.model.embed_tokens.weight[VOCABULARY - 1] = float("nan")
    ids[4, 7] = VOCABULARY - 1
    with pytest.raises(JobError, match=r"expected a finite loss, got nan at row 4 of the text$"):
        measure_perplexity(model, ids, 2)
    with pytest.raises(JobError, match=r"got nan at row 4 of the text; try `dtype=float32`$"):
        measure_perplexity(model.bfloat16(), ids, 5)


def test_a_token_that_cannot_come_is_no_finite_loss():
    with pytest.raises(JobError, match="got inf at row 0"):
        measure_perplexity(Fixed(torch.tensor([0.0, float("-inf")])), torch.tensor([[0, 1]]))


def test_a_perplexity_beyond_float64_is_infinite():
    found = measure_perplexity(Fixed(torch.tensor([0.0, -1000.0])), torch.tensor([[0, 1]]))
    assert (found.loss, found.perplexity) == (1000.0, math.inf)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)])
def test_nothing_to_predict_is_refused(shape):
    with pytest.raises(RequestError, match="rows of at least 2 tokens"):
        measure_perplexity(build_llama(), torch.zeros(shape, dtype=torch.int64))


def test_progress_counts_rows():
    said = []
    measure_perplexity(build_llama(), token_rows(7), 3, lambda *report: said.append(report))
    assert said == [("rows", 3, 7), ("rows", 6, 7), ("rows", 7, 7)]
