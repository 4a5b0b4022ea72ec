"""Watch how linear each block is while a decoder is trained with transformers' Trainer, and plot it."""

import tempfile
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

import rectilinear
from rectilinear.models.load import resolve

set_seed(0)
storyteller = resolve("storyteller")  # its tokenizer and its shape, with new weights
tokenizer = AutoTokenizer.from_pretrained(storyteller)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(storyteller, num_hidden_layers=4))


def rows(seed: int, stories: int) -> torch.Tensor:
    """Stories laid end to end and cut into rows ``[rows, 64]``."""
    documents = tokenizer(list(islice(rectilinear.generate_stories(seed), stories)))["input_ids"]
    stream = torch.tensor([token for document in documents for token in document])
    return stream[: len(stream) // 64 * 64].view(-1, 64)


with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder,
            max_steps=40,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            logging_steps=10,
            report_to="none",  # "tensorboard" or "wandb" get the scores as well
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows(seed=0, stories=120)],
    )
    watcher = rectilinear.LinearityCallback(trainer, rows(seed=1, stories=20)[:32], every=10)
    trainer.add_callback(watcher)
    trainer.train()

    dynamics = rectilinear.Dynamics.load(folder)  # dynamics.json, renewed at each point
    rectilinear.plot_dynamics(dynamics).savefig(Path(folder) / "dynamics.png")
    print("steps", [point.step for point in dynamics.points])
    print("update linearity of block 0", [round(p.blocks[0].update_linearity.held_out, 3) for p in dynamics.points])
    assert dynamics == watcher.dynamics
    assert [point.step for point in dynamics.points] == [0, 10, 20, 30, 40]
