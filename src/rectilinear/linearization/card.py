"""The model card of a linearized checkpoint."""

from __future__ import annotations

from rectilinear.linearization.plan import Plan, Replacement


def model_card(plan: Plan, own_code: bool) -> str:
    """The text of ``README.md``: the recipe and its numbers, with the metadata that the Hub reads.

    Args:
        plan: what was done.
        own_code: whether the checkpoint brings code that is to be trusted.
    """
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        base_model=plan.model.id, library_name="transformers", pipeline_tag="text-generation", tags=["rectilinear"]
    )
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        "",
        f"# {plan.model.id}, linearized",
        "",
        f"Rectilinear replaced parts of `{plan.model.id}` "
        f"({plan.model.architecture}, width {plan.model.width}, blocks: {plan.model.num_blocks}, weights SHA-256 "
        f"`{str(plan.model.sha256)[:16]}`). `plan.json` has the whole recipe.",
        "",
        "| blocks | target | by | rank | parameters before | after | held-out share of the target explained |",
        "|---|---|---|---|---|---|---|",
        *(_line(replacement) for replacement in plan.replacements),
        "",
    ]
    if plan.parameters:
        before, after = plan.parameters.before, plan.parameters.after
        lines += [f"Parameters: {before:,} before, {after:,} after ({after / before - 1:+.1%}).", ""]
    chosen, healed = plan.selection, plan.heal
    if chosen and chosen.loss_before is not None and chosen.loss_after is not None:
        then = "after the fit" if healed else "after"
        lines += [
            f"Loss on {chosen.tokens:,} held-out tokens of `{plan.data.source}`: {chosen.loss_before:.4f} nats per "
            f"token before, {chosen.loss_after:.4f} {then}. Stand-ins were fitted on other rows of the same text.",
            "",
        ]
    if healed:
        lines += [f"{healed}.", ""]
    options = ", trust_remote_code=True" if own_code else ""
    lines += [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained(path{options})",
        f"model = AutoModelForCausalLM.from_pretrained(path{options})",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _line(replacement: Replacement) -> str:
    fit = replacement.fit
    by: str = replacement.kind
    if replacement.kind == "filter":
        by += f", {replacement.taps} taps, rates {', '.join(f'{rate:g}' for rate in replacement.rates) or 'none'}"
    explained = "-" if fit is None or fit.held_out is None else f"{fit.held_out:.4f}"
    before, after = (f"{fit.parameters_before:,}", f"{fit.parameters_after:,}") if fit else ("-", "-")
    blocks = ", ".join(map(str, replacement.blocks))
    return f"| {blocks} | {replacement.target} | {by} | {replacement.rank or '-'} | {before} | {after} | {explained} |"
