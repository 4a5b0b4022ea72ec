"""Train the storyteller: the small decoder, with its tokenizer, that ships inside the package.

The corpus is the seeded story generator, so the whole recipe runs offline: a byte-level BPE tokenizer, a
Llama of eight blocks and about a million parameters, the Hugging Face trainer. What it reached, and how
long it took on two busy CPU cores, is in ``training.json`` beside the weights:

    python examples/train_storyteller.py
"""

import json
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import Dataset
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

import rectilinear
from rectilinear.data.stories import generate_stories

TRAIN_SEED, HELD_OUT_SEED = 0, 1
TOKENIZER_STORIES, HELD_OUT_STORIES = 4000, 1000
ROW_TOKENS = 256
DESTINATION = Path(rectilinear.__file__).parent / "models" / "storyteller"


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Stories laid end to end and cut into rows of equal length; no padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, stories: int) -> None:
        documents = tokenizer(list(islice(generate_stories(seed), stories)))["input_ids"]
        stream = torch.tensor([token for document in documents for token in document])
        self.rows = stream[: len(stream) // ROW_TOKENS * ROW_TOKENS].view(-1, ROW_TOKENS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn 1024 byte-level BPE tokens; every document is encoded as ``<s> text </s>``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(islice(generate_stories(TRAIN_SEED), TOKENIZER_STORIES), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Eight blocks of width 96 with six heads, embeddings tied."""
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            **tokens,
        )
    )
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, max_new_tokens=384, **tokens)
    return model


def main(
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 1400,
    batch: Annotated[int, typer.Option(min=1, help="Rows of 256 tokens in one step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of the cosine schedule.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of the row order.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder to replace with the result.")] = DESTINATION,
) -> None:
    """Train the tokenizer and the decoder, then save both with a record of the run."""
    set_seed(seed)
    tokenizer = train_tokenizer()
    held_out = Rows(tokenizer, HELD_OUT_SEED, HELD_OUT_STORIES)
    # A story fills more than half a row, so there are rows enough for every step and none is seen twice.
    train = Rows(tokenizer, TRAIN_SEED, 2 * steps * batch)
    typer.echo(f"{len(train)} rows to train on, {len(held_out)} held out")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, steps // 10),
            weight_decay=0.05,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            logging_steps=20,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
            use_cpu=True,
        )
        model = build_model(tokenizer)
        trainer = Trainer(model=model, args=arguments, train_dataset=train, eval_dataset=held_out)
        before = trainer.evaluate()["eval_loss"]
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        after = trainer.evaluate()["eval_loss"]

        tokens = steps * batch * ROW_TOKENS
        record = {
            "command": f"python examples/train_storyteller.py --steps {steps} --batch {batch} "
            f"--learning-rate {learning_rate} --seed {seed}",
            "held_out": {
                "stories": f"the first {HELD_OUT_STORIES} of seed {HELD_OUT_SEED}",
                "tokens": len(held_out) * (ROW_TOKENS - 1),
                "loss_before": round(before, 4),
                "loss": round(after, 4),
                "perplexity": round(float(torch.tensor(after).exp()), 3),
            },
            "parameters": model.num_parameters(),
            "seconds": round(seconds, 1),
            "seed": seed,
            "steps": steps,
            "story_seed": TRAIN_SEED,
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds),
            "versions": {
                "rectilinear": rectilinear.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }
        result = Path(scratch) / "storyteller"
        model.config.use_cache = True  # the trainer turned it off
        model.save_pretrained(result)
        tokenizer.save_pretrained(result)
        (result / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in result.iterdir():
            file.chmod(0o644)
        if output.exists():
            shutil.rmtree(output)
        shutil.copytree(result, output)
    typer.echo(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
