"""The model card of a linearized checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rectilinear.linearization.plan import Plan, SelectionRecord
from rectilinear.models.load import STORYTELLER
from rectilinear.models.origin import short_name
from rectilinear.results import ModelRecord

_SNIPPET = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or the id of this repository
tokenizer = AutoTokenizer.from_pretrained(path{options})
model = AutoModelForCausalLM.from_pretrained(path{options})
inputs = tokenizer("Once upon a time", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True))
```"""


def model_card(plan: Plan, own_code: bool) -> str:
    """The text of ``README.md``: the recipe and its numbers, with the metadata that the Hub reads.

    Args:
        plan: what was done.
        own_code: whether the checkpoint brings code that is to be trusted.
    """
    name, data = short_name(plan.model.id), _hub_id(plan.data.source) or short_name(plan.data.source)
    lines = [
        f"# {name}, linearized",
        "",
        f"Rectilinear replaced parts of `{_hub_model(plan.model) or name}` "
        f"({plan.model.architecture}, width {plan.model.width}, blocks: {plan.model.num_blocks}, weights SHA-256 "
        f"`{str(plan.model.sha256)[:16]}`). `plan.json` has the whole recipe.",
        "",
        "| blocks | target | by | parameters before and after | held-out share of the target explained |",
        "|---|---|---|---|---|",
    ]
    for one in plan.replacements:
        explained = "-" if one.fit is None or one.fit.held_out is None else f"{one.fit.held_out:.4f}"
        weighs = one.fit.parameters if one.fit else "-"
        lines.append(f"| {', '.join(map(str, one.blocks))} | {one.target} | {one.by} | {weighs} | {explained} |")
    lines.append("")
    if plan.parameters:
        before, after = plan.parameters.before, plan.parameters.after
        lines += [f"Parameters: {before:,} before, {after:,} after ({after / before - 1:+.1%}).", ""]
    chosen = plan.selection
    if chosen and chosen.loss_before is not None and chosen.loss_after is not None:
        then = "after the fit" if plan.heal else "after"
        lines += [
            f"Loss on {chosen.tokens:,} held-out tokens of `{data}`: {chosen.loss_before:.4f} nats per token before, "
            f"{chosen.loss_after:.4f} {then}. Stand-ins were fitted on other rows of the same text.",
            "",
        ]
    if plan.heal:
        lines += [f"{plan.heal}.", ""]
    lines.append(_SNIPPET.format(options=", trust_remote_code=True" if own_code else ""))
    return f"---\n{_metadata(plan, name, data)}\n---\n\n" + "\n".join(lines) + "\n"


def _metadata(plan: Plan, name: str, data: str) -> str:
    """What the Hub reads: where the model and its text come from, under which licence, and the losses."""
    from huggingface_hub import EvalResult, ModelCardData

    chosen = plan.selection or SelectionRecord(select="")
    after = chosen.loss_after if plan.heal is None else plan.heal.loss_after
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=f"{chosen.tokens:,} tokens of {data} that nothing was fitted on",
            metric_type="loss",
            metric_name=f"{metric}, nats per token",
            metric_value=value,
        )
        for metric, value in {"loss": after, "loss of the original": chosen.loss_before}.items()
        if value is not None
    ]
    dataset = _hub_id(plan.data.source)
    metadata = ModelCardData(
        base_model=_hub_model(plan.model),
        datasets=dataset and [dataset],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rectilinear"],
        model_name=f"{name}, linearized",
        eval_results=results or None,
        **_licence(plan.model),
    )
    return str(metadata.to_yaml())


def _hub_id(source: str) -> str | None:
    """A source's name where that is ``owner/name`` on the Hub; None for files."""
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    return source if named and not Path(source).exists() else None


def _hub_model(model: ModelRecord) -> str | None:
    """The model's id on the Hub; None for one that is not from there."""
    if model.id in (STORYTELLER, model.architecture) or Path(model.id).expanduser().exists():
        return None
    return _hub_id(model.id) or (model.id if model.revision else None)


def _licence(model: ModelRecord) -> dict[str, Any]:
    """The licence that the source's own card gives, in the words that the Hub has for it."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    try:
        file = cached_file(model.id, "README.md", revision=model.revision) if model.id != STORYTELLER else None
        found = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict() if file else {}
    except (OSError, ValueError):
        found = {}
    return {key: found[key] for key in ("license", "license_name", "license_link") if found.get(key)}
