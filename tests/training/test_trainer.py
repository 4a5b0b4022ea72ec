"""What training rests on in transformers' Trainer is checked to be there."""

import pytest
from transformers import Trainer, TrainingArguments

from rectilinear import JobError, Regularizer
from rectilinear.training.trainer import GuardedTrainer
from tests.families import build, token_rows


def guarded(folder, *, regularizer=True, **options):
    model = build("llama").train()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=1,
        **options,
    )
    rows = [{"input_ids": row, "labels": row.clone()} for row in token_rows(8, 12)]
    watching = Regularizer(model, "cosine", 0.5) if regularizer else None
    return GuardedTrainer(model, arguments, train_dataset=rows, regularizer=watching)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_items_are_counted_as_trainer_counts_them(accumulation, tmp_path):
    trainer = guarded(tmp_path, gradient_accumulation_steps=accumulation)
    trainer.train()
    assert [entry["penalty"] > 0 for entry in trainer.state.log_history if "loss" in entry] == [True, True]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda count: count + 2, marks=pytest.mark.slow),
        pytest.param(lambda count: count - 2, marks=pytest.mark.slow),
        lambda count: None,
    ],
)
def test_another_count_of_items_is_an_error(other, tmp_path, monkeypatch):
    count_items = Trainer.get_batch_samples

    def recount(self, *args, **options):
        batches, count = count_items(self, *args, **options)
        return batches, other(count)

    monkeypatch.setattr(Trainer, "get_batch_samples", recount)
    with pytest.raises(JobError, match=r"expected transformers to count 22 items in a step where Trainer counts"):
        guarded(tmp_path).train()
    guarded(tmp_path, regularizer=False).train()  # nothing rests on the count where nothing is added to the loss


@pytest.mark.parametrize("hook", ["_get_grad_norm", "_save_checkpoint"])
def test_a_trainer_without_what_is_guarded_is_refused(hook, tmp_path, monkeypatch):
    monkeypatch.delattr(Trainer, hook)
    with pytest.raises(JobError, match=rf"expected transformers to call Trainer\.{hook}, which version \d"):
        guarded(tmp_path)


def test_gradients_that_are_not_finite_are_noticed_before_the_step(tmp_path):
    trainer = guarded(tmp_path, regularizer=False)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.model.lm_head.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(JobError, match="expected a finite gradient norm"):
        trainer.train()
    assert all((tensor == weights[name]).all() for name, tensor in trainer.model.state_dict().items())
