"""A training that is watched, in processes of its own: ``train_watched.py CHECKPOINT FOLDER HOW``.

HOW is ``replicated`` (DDP), ``sharded`` (FSDP2) or ``broken`` (FSDP2, weights that are not finite from the start).
"""

import os
import sys

import torch
from transformers import LlamaForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig

import rectilinear
from tests.families import token_rows


def main(checkpoint, folder, how):
    # Before anything is loaded: the mesh of sharded models is made of these processes.
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=2,
        seed=0,
    )
    size = int(os.environ["WORLD_SIZE"])
    options = {} if how == "replicated" else {"distributed_config": DistributedConfig(fsdp_size=size)}
    model = LlamaForCausalLM.from_pretrained(checkpoint, **options)
    rows = token_rows(64, 24)
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.add_callback(rectilinear.LinearityCallback(trainer, token_rows(32, 24, seed=1), every=2))
    if how == "broken":
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.mul_(float("nan"))
    trainer.train()
    assert trainer.state.global_step == 4
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads abort a process that takes its leave now and then


if __name__ == "__main__":
    main(*sys.argv[1:])
