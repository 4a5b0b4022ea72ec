"""The regulariser in Trainer and in a loop of one's own, against hidden states that the test captures itself."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    Trainer,
    TrainingArguments,
)

from rectilinear import JobError, Regularizer, RequestError, find_blocks, layer_penalty
from tests.families import TINY, build, token_rows

FAMILIES = ["llama", "gpt2", "opt", "bloom", "gemma3", "falcon", "mixtral"]
KINDS = ["cosine", "mse"]
RATE = 1e-3


def trained(family, **changes):
    """A tiny model in training mode, without dropout."""
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout"), 0.0)
    known = TINY[family].to_dict()
    return build(family, **{name: 0.0 for name in still if name in known}, **changes).train()


def batch_of(rows=6, seq_len=12, padding="right"):
    """Rows of uneven length, padded: ids, mask, labels."""
    ids = token_rows(rows, seq_len)
    mask = torch.ones_like(ids)
    for row in range(rows):
        gap = slice(seq_len - row, seq_len) if padding == "right" else slice(0, row)
        mask[row, gap] = 0
    ids = ids.where(mask == 1, 1)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask == 1, -100)}


def states_of(model, **inputs):
    """What goes into the first block and comes out of each, by hooks of the test's own."""
    blocks, seen = [*find_blocks(model)], []
    first = lambda value: value[0] if isinstance(value, tuple) else value  # noqa: E731
    handles = [blocks[0].register_forward_pre_hook(lambda m, args, kw: seen.append(args[0]), with_kwargs=True)]
    handles += [block.register_forward_hook(lambda m, args, out: seen.append(first(out))) for block in blocks]
    outputs = model(**inputs)
    for handle in handles:
        handle.remove()
    return seen, outputs


def row_weighted(states, mask, labels, kind):
    """The penalty as Trainer sums it: each row's mean, as often as Trainer counts labels of the row."""
    rows = [layer_penalty([s[i : i + 1] for s in states], mask[i : i + 1], kind) for i in range(len(mask))]
    items = (labels != -100).sum(1)
    return sum(row * count for row, count in zip(rows, items, strict=True)) / items.sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_is_the_models_loss_and_the_penalty(family, kind):
    model, batch = trained(family), batch_of()
    states, outputs = states_of(model, **batch)
    counted = batch["labels"] if family == "gpt2" else batch["labels"][:, 1:]  # its class names no loss
    wanted = row_weighted(states, batch["attention_mask"], counted, kind)
    regularizer = Regularizer(model, kind, 0.5)
    labels = batch.pop("labels")
    loss = regularizer(model(**batch), labels)
    torch.testing.assert_close(regularizer.last, wanted.detach())
    torch.testing.assert_close(loss, outputs.loss + 0.5 * wanted)

    model(**batch)
    torch.testing.assert_close(regularizer.penalty(), layer_penalty(states, batch["attention_mask"], kind))
    regularizer.remove()


def test_experts_balance_counts_as_in_the_models_own_loss():
    model, batch = trained("mixtral", output_router_logits=True, router_aux_loss_coef=0.7), batch_of()
    wanted = model(**batch).loss
    labels = batch.pop("labels")
    loss = Regularizer(model, strength=0)(model(**batch), labels)
    torch.testing.assert_close(loss, wanted)


def test_a_balance_that_is_not_returned_is_an_error():
    model, batch = trained("mixtral", output_router_logits=True, router_aux_loss_coef=0.7), batch_of()
    labels = batch.pop("labels")
    outputs = model(**batch)
    outputs.aux_loss = None
    with pytest.raises(JobError, match="have MixtralForCausalLM return `aux_loss` with `router_logits`"):
        Regularizer(model, strength=0)(outputs, labels)


def test_a_loss_that_takes_no_number_of_items_is_an_error(monkeypatch):
    model, batch = trained("llama"), batch_of()
    monkeypatch.setattr("rectilinear.models.trained.fixed_cross_entropy", lambda source, target, **options: None)
    labels = batch.pop("labels")
    with pytest.raises(JobError, match="expected transformers to divide losses by `num_items_in_batch`"):
        Regularizer(model, strength=0)(model(**batch), labels, num_items_in_batch=100)


@pytest.mark.parametrize("embedding", [True, False])
def test_the_embedding_counts_or_not(embedding):
    model, batch = trained("llama"), batch_of()
    states, _ = states_of(model, **batch)
    regularizer = Regularizer(model, embedding=embedding)
    model(**batch)
    wanted = layer_penalty(states, batch["attention_mask"], embedding=embedding)
    torch.testing.assert_close(regularizer.penalty(), wanted)


def run(tmp_path, rows, regularizer=None, model=None, batch_size=4, accumulation=1, steps=5, **options):
    """A real Trainer with plain SGD: its logged losses and gradient norms, and the weights."""
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        max_grad_norm=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    constant = torch.optim.lr_scheduler.ConstantLR(sgd, 1.0)
    trainer = Trainer(model, arguments, train_dataset=rows, compute_loss_func=regularizer, optimizers=(sgd, constant))
    trainer.get_train_dataloader = lambda: torch.utils.data.DataLoader(rows, batch_size)  # in order
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], model.state_dict()


def rows_of(batch):
    return [{name: batch[name][i] for name in batch} for i in range(len(batch["input_ids"]))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_by_hand_equals_trainer(kind, tmp_path, capsys):
    batch = {"input_ids": token_rows(20, 12), "labels": token_rows(20, 12)}
    model = trained("llama")
    got, weights = run(tmp_path, rows_of(batch), Regularizer(model, kind, 0.5), model)

    model, losses = trained("llama"), []
    regularizer = Regularizer(model, kind, 0.5)
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    for ids in batch["input_ids"].split(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss = loss + regularizer.strength * regularizer.penalty()
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        losses.append(loss.item())
    assert got == pytest.approx(losses, rel=1e-6)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bloom"))]
)
def test_strength_0_is_none_bit_for_bit(family, tmp_path, capsys):
    rows = rows_of(batch_of(20))
    plain, other = trained(family), trained(family)
    losses, weights = run(tmp_path, rows, None, plain)
    same, equal = run(tmp_path, rows, Regularizer(other, "cosine", 0.0), other)
    assert same == losses
    assert all(torch.equal(equal[name], tensor) for name, tensor in weights.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())


@pytest.mark.parametrize(
    ("family", "padding"),
    [
        pytest.param("llama", "right", marks=pytest.mark.slow),
        ("llama", "left"),
        pytest.param("gpt2", "right", marks=pytest.mark.slow),
    ],
)
def test_accumulation_changes_nothing(family, padding, tmp_path, capsys):
    rows = rows_of(batch_of(8, 12, padding)) * 2
    results = []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        model = trained(family)
        results.append(run(tmp_path, rows, Regularizer(model), model, batch_size, accumulation, steps=2))
    for losses, weights in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind):
    model, batch = trained("llama"), batch_of()
    regularizer = Regularizer(model, kind)
    wider = {name: torch.nn.functional.pad(value, (0, 5), value=0) for name, value in batch.items()}
    wider["labels"][:, -5:] = -100
    losses = []
    for inputs in (batch, wider):
        labels = inputs.pop("labels")
        losses.append(regularizer(model(**inputs), labels))
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    gradients = []
    for checkpointing in (False, True):
        model, batch = trained("llama"), batch_of()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        labels = batch.pop("labels")
        regularizer = Regularizer(model)
        regularizer(model(**batch), labels).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_autocast():
    model, batch = trained("llama"), batch_of()
    labels = batch.pop("labels")
    regularizer = Regularizer(model)
    exact = regularizer(model(**batch), labels)
    penalty = regularizer.last
    with torch.autocast("cpu", torch.bfloat16):
        loss = regularizer(model(**batch), labels)
    assert regularizer.last.dtype is torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(regularizer.last, penalty, rtol=0.02, atol=0.02)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_no_penalty_in_evaluation():
    model, batch = trained("llama").eval(), batch_of()
    regularizer = Regularizer(model)
    with torch.no_grad():
        wanted = model(**batch).loss
        labels = batch.pop("labels")
        assert torch.equal(regularizer(model(**batch), labels), wanted)
    assert regularizer.last is None


def test_classifiers_and_losses_of_ones_own():
    model = LlamaForSequenceClassification(type(TINY["llama"])(**{**TINY["llama"].to_dict(), "num_labels": 3})).train()
    batch = batch_of()
    del batch["labels"]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    states, outputs = states_of(model, **batch)
    means = [layer_penalty([s[i : i + 1] for s in states], batch["attention_mask"][i : i + 1]) for i in range(6)]
    wanted = torch.stack(means).mean()
    whole = Regularizer(model, strength=0.3)(model(**batch), labels)
    torch.testing.assert_close(whole, cross_entropy(outputs.logits, labels) + 0.3 * wanted)

    regularizer = Regularizer(model, strength=0.3)
    parts = []
    for some in torch.arange(6).split(2):
        outputs = model(**{name: value[some] for name, value in batch.items()})
        parts.append(regularizer(outputs, labels[some], 6))
    torch.testing.assert_close(sum(parts), whole)

    own = Regularizer(model, strength=0.3, loss=lambda outputs, labels, items: outputs.logits.sum() / items)
    outputs = model(**batch)
    torch.testing.assert_close(own(outputs, labels), outputs.logits.sum() / 6 + 0.3 * wanted)


def test_labels_of_each_token():
    config = type(TINY["llama"])(**{**TINY["llama"].to_dict(), "num_labels": 3})
    model, batch = LlamaForTokenClassification(config).eval(), batch_of()  # it has dropout
    batch["labels"] = batch["labels"].where(batch["labels"] == -100, batch["input_ids"] % 3)
    wanted = model(**batch).loss
    labels = batch.pop("labels")
    torch.testing.assert_close(Regularizer(model, strength=0)(model(**batch), labels), wanted)


@pytest.mark.parametrize("labels", [torch.rand(6), torch.rand(6, 2).round()], ids=["regression", "many labels"])
def test_losses_that_are_means_are_spread_over_batches(labels):
    config = type(TINY["llama"])(**{**TINY["llama"].to_dict(), "num_labels": labels[0].numel()})
    model, batch = LlamaForSequenceClassification(config).train(), batch_of()
    del batch["labels"]
    wanted = model(**batch, labels=labels).loss
    regularizer = Regularizer(model, strength=0)
    parts = [
        regularizer(model(**{name: value[some] for name, value in batch.items()}), labels[some], labels.numel())
        for some in torch.arange(6).split(2)
    ]
    torch.testing.assert_close(sum(parts), wanted)


def test_another_model_is_noticed():
    watched, other, batch = trained("llama"), trained("llama"), batch_of()
    regularizer = Regularizer(watched)
    labels = batch.pop("labels")
    with pytest.raises(JobError, match="of the model that the regularizer watches, got none"):
        regularizer(other(**batch), labels)
    with pytest.raises(JobError, match="watches, got none"):
        regularizer.penalty()
    watched(**batch)
    regularizer.penalty()
    with pytest.raises(JobError, match="watches, got none"):
        regularizer.penalty()


def test_removed_leaves_nothing():
    model = trained("llama")
    Regularizer(model).remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strengths_that_cannot_be(strength):
    with pytest.raises(RequestError, match=f"expected a regularizer strength of at least 0, got {strength}"):
        Regularizer(trained("llama"), "cosine", strength)


def test_other_requests_that_cannot_be():
    with pytest.raises(RequestError, match="expected regularizer 'cosine' or 'mse', got 'l1'"):
        Regularizer(trained("llama"), "l1")
    with pytest.raises(RequestError, match="two blocks or more"):
        Regularizer(trained("llama", num_hidden_layers=1), embedding=False)


def test_a_block_that_writes_over_its_input_is_an_error():
    class Overwriting(torch.nn.Linear):
        def forward(self, x):
            return x.mul_(2) if x.requires_grad else super().forward(x)

    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2)), Overwriting(4, 4))
    Regularizer(model, blocks="")
    with pytest.raises(JobError, match="block 2: expected a block that leaves its input as it is"):
        model(torch.randn(2, 3, 4))
