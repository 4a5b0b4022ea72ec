"""Results in plain words, for a reader who meets these numbers for the first time."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rectilinear.evaluation.record import Evaluation
from rectilinear.linearization.plan import Plan
from rectilinear.measurement.dynamics import Dynamics, Mean, mean_curve
from rectilinear.measurement.profile import BlockRecord, Profile


def explain_profile(profile: Profile) -> list[str]:
    """A few paragraphs that say what the profile's numbers mean; every number in them is the profile's."""
    blocks = [
        b for b in profile.blocks if b.linearity.in_sample is not None and b.update_linearity.in_sample is not None
    ]
    if not blocks:
        return ["No block's output varied, so there is nothing to explain."]
    return [
        f"What was measured. The model reads {profile.data.tokens:,} tokens. Each of its {profile.model.num_blocks} "
        f"blocks takes a vector x of {profile.model.width} numbers for each token and returns y = x + d; d is the "
        "block's update. The question is how much of y, and of d, a single matrix could have computed from x.",
        f"The output. A linear map explains {_span(b.linearity.in_sample for b in blocks)} of the variation of y. Read "
        f"that beside what doing nothing (y = x) explains: {_span(b.identity for b in blocks)}. The nearer the two, "
        "the more a high score only says that a block adds a small update to what it was given.",
        _about_updates(blocks),
        _about_trust(blocks),
        _about_sinks(blocks),
    ]


def explain_dynamics(dynamics: Dynamics) -> list[str]:
    """A paragraph that says how linearity changed over a training; every number in it is the record's."""
    curve = [point for point in mean_curve(dynamics) if point.mean is not None]
    if len(curve) < 2:
        return ["There are fewer than two steps with scores, so nothing can be said about a change."]
    first, last = curve[0], curve[-1]
    least = min(curve, key=lambda point: point.mean or 0.0)
    way = f" by way of its least, {_percent(least.mean):.1f} % at step {least.step:,},"
    between = "" if least in (first, last) else way
    return [
        f"Over training. The same rows, read by the model at {len(curve)} steps of its training, none of which saw "
        f"them. The mean over blocks of the update's score went from {_percent(first.mean):.1f} % at step "
        f"{first.step:,}{between} to {_percent(last.mean):.1f} % at step {last.step:,}: {_verdict(first, last)}. The "
        "paper reports that it falls over pretraining; one small model on generated stories neither proves nor "
        "refutes that."
    ]


def _verdict(first: Mean, last: Mean) -> str:
    change = (last.mean or 0.0) - (first.mean or 0.0)
    said = f"{'a fall' if change < 0 else 'a rise'} of {100 * abs(change):.1f} points"
    if first.stderr is None or last.stderr is None:
        return said
    error = math.hypot(first.stderr, last.stderr)
    sure = "more" if abs(change) > 2 * error else "not more"
    return f"{said}, {sure} than twice its standard error of {100 * error:.1f}"


def explain_linearization(plan: Plan, evaluation: Evaluation) -> list[str]:
    """What was lost and what was gained by a plan, by an evaluation against the original; every number is theirs."""
    if not plan.replacements:
        return ["Nothing was replaced."]
    targets = {"block": "Blocks", "attention": "The attentions of blocks", "mlp": "The MLPs of blocks"}
    what = f"{targets[plan.replacements[0].target]} {', '.join(replacement.where for replacement in plan.replacements)}"
    kinds = " and ".join(sorted({replacement.kind for replacement in plan.replacements}))
    said = [
        f"What was replaced. {what}, by stand-ins of kind {kinds}, fitted by least squares to {plan.data.tokens:,} "
        "tokens, without a gradient."
    ]
    other, differences = evaluation.against, evaluation.differences
    if evaluation.data is None or other is None or differences is None:
        return said
    error = "" if differences.loss_stderr is None else f", with a standard error of {differences.loss_stderr:.4f}"
    said.append(
        f"What was lost. On {evaluation.data.tokens:,} other tokens the loss went from {other.loss or 0.0:.4f} to "
        f"{evaluation.loss or 0.0:.4f} nats a token ({differences.loss or 0.0:+.4f}{error}), the perplexity from "
        f"{other.perplexity or math.inf:.3f} to {evaluation.perplexity or math.inf:.3f}."
    )
    saved = -differences.parameters
    gained = [f"{saved:,} of {other.parameters:,} parameters ({_percent(saved / other.parameters):.1f} %)"]
    if evaluation.cache_bytes is not None and other.cache_bytes:
        gained.append(
            f"a cache of {evaluation.cache_bytes:,} for {other.cache_bytes:,} bytes after "
            f"{evaluation.settings['prompt_tokens'] + evaluation.settings['new_tokens']} tokens"
        )
    speed = differences.tokens_per_second
    if speed.prefill is not None and speed.decode is not None:
        gained.append(f"reading {speed.prefill:.2f} and writing {speed.decode:.2f} times as fast as the original")
    said.append(
        f"What was gained. {'; '.join(gained)}. At this size and length attention costs next to nothing, so "
        "look at wide models and long texts for speed."
    )
    return said


def _about_updates(blocks: list[BlockRecord]) -> str:
    scores = {b.index: _percent(b.update_linearity.in_sample) for b in blocks}
    most, least = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    return (
        f"The update. Of d itself a linear map explains {scores[most]:.1f} % at block {most}, the most linear one, and "
        f"{scores[least]:.1f} % at block {least}, the least. What is left is what only a nonlinear block, or one that "
        "looks at other tokens, can do. This number, not the one before, says how much of a block's own contribution a "
        "matrix could make."
    )


def _about_trust(blocks: list[BlockRecord]) -> str:
    null, shifted = _percent(blocks[0].null), [b.null_shifted for b in blocks if b.null_shifted is not None]
    unrelated = f"tokens without any relation would score {null:.2f} % here"
    if shifted:
        unrelated += f", and inputs of other rows, which depend on each other as much, score {_span(shifted)}"
    pairs = [b.update_linearity for b in blocks if b.update_linearity.held_out is not None]
    if not pairs:
        return (
            f"How far to trust it. Any map fits a little noise: {unrelated}. There were too few rows to hold any out."
        )
    lost = [_percent(p.in_sample) - _percent(p.held_out) for p in pairs]
    error = max(_percent(p.stderr) for p in pairs)
    return (
        f"How far to trust it. Any map fits a little noise: {unrelated}. "
        f"On text held out from the fit the update's score changes by {-max(lost):+.2f} to {-min(lost):+.2f} points, "
        f"with a standard error over parts of the text of at most {error:.2f} points. From 20 tokens a feature on "
        "quote the held-out score with its interval, below that the adjusted one."
    )


def _about_sinks(blocks: list[BlockRecord]) -> str:
    found = [b for b in blocks if b.without_sinks.sinks]
    if not found:
        return (
            "Attention sinks. In some models a few tokens carry vectors so long that they alone decide a score. "
            "There are none here; where there are, read the scores without them."
        )
    worst = max(found, key=lambda b: b.without_sinks.sink_energy or 0.0)
    without = worst.without_sinks
    return (
        f"Attention sinks. At block {worst.index} {without.sinks} of {without.tokens + without.sinks:,} tokens carry "
        f"{_percent(without.sink_energy):.1f} % of the variation of y. So few tokens can decide a score; the scores "
        "without them are given beside it."
    )


def _percent(value: float | None) -> float:
    return 100 * (value or 0.0)


def _span(shares: Iterable[float | None]) -> str:
    values = [*map(_percent, shares)]
    return f"{min(values):.1f} % to {max(values):.1f} %"
