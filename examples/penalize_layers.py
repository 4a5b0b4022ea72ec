"""Train a small decoder with a penalty on the change from layer to layer, in a loop of one's own."""

from itertools import islice

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import rectilinear
from rectilinear.models.load import resolve

torch.manual_seed(0)
storyteller = resolve("storyteller")  # its tokenizer and its shape, with new weights
tokenizer = AutoTokenizer.from_pretrained(storyteller)
stories = list(islice(rectilinear.generate_stories(1), 32))
batch = tokenizer(stories, return_tensors="pt", padding=True, truncation=True, max_length=64)
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

for strength in (0.0, 0.5):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(storyteller, num_hidden_layers=4)).train()
    watching = rectilinear.Regularizer(model, "cosine", strength=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(20):
        loss = model(**batch, labels=labels).loss
        penalty = watching.penalty()
        (loss + strength * penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"strength {strength}: loss {loss:.3f}, sum over layers of 1 - cos {penalty:.3f}")
