"""The model card of a pretrained decoder."""

from __future__ import annotations

from rectilinear.training.pretraining.record import Training


def model_card(training: Training) -> str:
    """The text of ``README.md``: the recipe and its numbers, with the metadata that the Hub reads."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=["rectilinear"])
    model, settings, held_out = training.model, training.settings, training.held_out
    penalty = "no penalty on hidden states"
    if settings["regularizer"] != "none":
        penalty = f"{settings['strength']:g} times the {settings['regularizer']} penalty on neighbouring hidden states"
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        "",
        f"# {settings['preset']}, pretrained on {training.data.source}",
        "",
        f"Rectilinear trained this decoder ({model.architecture}, {model.num_blocks} blocks of width {model.width}, "
        f"{model.parameters:,} parameters) from random weights for {training.steps:,} steps of {settings['rows']} rows "
        f"of {settings['seq_len']} tokens, {training.data.tokens:,} tokens in all, with {penalty}, seed "
        f"{settings['seed']}. `training.json` has the whole recipe and the log.",
        "",
        f"Loss on {held_out.data.tokens:,} held-out tokens of {held_out.data.source}: {held_out.told} nats per token, "
        f"perplexity {held_out.perplexity:.2f}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        "model = AutoModelForCausalLM.from_pretrained(path)",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "```",
    ]
    return "\n".join(lines) + "\n"
