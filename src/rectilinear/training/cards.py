"""The model cards of decoders that were trained here."""

from __future__ import annotations

from pathlib import Path

from rectilinear.models.card_metadata import bare_name, list_warnings, model_card_metadata, result_of, usage_snippet
from rectilinear.models.code_files import describe_code
from rectilinear.training.results import Finetuning, Training


def decoder_card(training: Training, code: str) -> str:
    """Of a decoder that was pretrained: the recipe and its numbers, with the metadata that the Hub reads.

    Args:
        training: what was done.
        code: what there is to say of code that the checkpoint brings; see `describe_code`.
    """
    model, settings, held_out = training.model, training.settings, training.held_out
    penalty = "no penalty on hidden states"
    if settings["regularizer"] != "none":
        penalty = f"{settings['strength']:g} times the {settings['regularizer']} penalty on neighbouring hidden states"
    name = f"{settings['preset']}, pretrained on {bare_name(training.data.source)}"
    stderr = "" if held_out.stderr is None else f" ± {held_out.stderr:.4f}"
    results = [result_of("perplexity", held_out.perplexity, held_out.data.source)]
    warnings = "\n".join([*list_warnings(training.all_warnings()), ""])
    metadata = model_card_metadata(name, datasets=[training.data.source], results=results)
    return f"""{metadata}

# {name}

Rectilinear trained this decoder ({model.architecture}, {model.num_blocks} blocks of width {model.width}, \
{model.parameters:,} parameters) from random weights for {training.steps:,} steps of {settings["rows"]} rows of \
{settings["seq_len"]} tokens, {training.data.tokens:,} tokens in all, with {penalty}, seed {settings["seed"]}. \
`training.json` has the whole recipe and the log.

Loss on {held_out.data.tokens:,} held-out tokens of {bare_name(held_out.data.source)}: {held_out.loss:.4f}{stderr} \
nats per token, perplexity {held_out.perplexity:.2f}.

{warnings}{usage_snippet(code)}
"""


def classifier_card(result: Finetuning, folder: Path) -> str:
    """Of a decoder that one seed has fine-tuned, as its checkpoint is in a folder."""
    name, source = f"{bare_name(result.model.id)}, fine-tuned on {result.task}", result.model.id
    metadata = model_card_metadata(name, base_model=source, revision=result.model.revision, task="text-classification")
    about = (
        f"A classifier of texts (`AutoModelForSequenceClassification`), trained with seed {result.runs[0].seed}; its "
        "numbers are in the `finetuning.json` of Rectilinear."
    )
    warnings = "\n".join(list_warnings(result.all_warnings()))
    said = filter(None, (metadata, f"# {name}", about, warnings, describe_code(folder, source)))
    return "\n\n".join(said) + "\n"
