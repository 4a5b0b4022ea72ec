"""The model card of a linearized checkpoint."""

from __future__ import annotations

from rectilinear.linearization.plan import Plan, SelectionRecord
from rectilinear.models.card_metadata import bare_name, list_warnings, model_card_metadata, result_of, usage_snippet


def model_card(plan: Plan, code: str) -> str:
    """The text of ``README.md``: the recipe and its numbers, with the metadata that the Hub reads.

    Args:
        plan: what was done.
        code: what there is to say of code that the checkpoint brings; see `describe_code`.
    """
    model, name, source = plan.model, bare_name(plan.model.id), plan.data.source
    chosen = plan.selection or SelectionRecord(select="")
    losses = {
        "loss": chosen.loss_after if plan.heal is None else plan.heal.loss_after,
        "loss of the original": chosen.loss_before,
    }
    results = [result_of(metric, loss, source) for metric, loss in losses.items() if loss is not None]
    lines = [
        model_card_metadata(
            f"{name}, linearized",
            base_model=model.id,
            revision=model.revision,
            datasets=[source],
            results=results,
        ),
        "",
        f"# {name}, linearized",
        "",
        f"Rectilinear replaced parts of `{name}` ({model.architecture}, width {model.width}, blocks: "
        f"{model.num_blocks}, weights SHA-256 `{str(model.sha256)[:16]}`). `plan.json` has the whole recipe.",
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
    if chosen.loss_before is not None and chosen.loss_after is not None:
        lines += [
            f"Loss on {chosen.tokens:,} held-out tokens of `{bare_name(source)}`: {chosen.loss_before:.4f} nats per "
            f"token before, {chosen.loss_after:.4f} after{' the fit' if plan.heal else ''}. Stand-ins were fitted on "
            "other rows of the same text.",
            "",
        ]
    if plan.heal:
        lines += [f"{plan.heal}.", ""]
    lines += [*list_warnings(plan.all_warnings()), usage_snippet(code)]
    return "\n".join(lines) + "\n"
