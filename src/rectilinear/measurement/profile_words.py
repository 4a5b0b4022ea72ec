"""Profiles in plain words, and beside one another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from rectilinear.intervals import holm, welch
from rectilinear.measurement.dynamics import Mean, mean_of
from rectilinear.measurement.profile import BlockRecord, Profile
from rectilinear.measurement.profile_charts import labels, profiles_chart
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.results import Section
from rectilinear.settings import Target
from rectilinear.tables import Cell, Column, Estimate, Table

# The linearity of neighbouring layers that the paper reports.
_PAPERS = 0.99


def profile_words(profile: Profile) -> list[str]:
    """A few paragraphs that say what the profile's numbers mean."""
    if profile.target != "block":
        return []
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


def profile_headline(profile: Profile) -> str:
    """How much linear maps explain of what blocks, or their parts, give."""
    mean = _mean(profile, profile.target)
    if mean.mean is None:
        return ""
    what = {"block": "updates", "attention": "what attentions add", "mlp": "what MLPs add"}[profile.target]
    how = "in sample" if mean.stderr is None else f"± {100 * mean.stderr:.1f} at most, held out"
    found = f"Linear maps explain {100 * mean.mean:.1f} % ({how}) of {what}, the mean over blocks without sinks"
    outputs = [b.without_sinks.linearity.best for b in profile.blocks]
    known = [output for output in outputs if output is not None]
    return f"{found}, and {_span(known)} of their outputs." if known else f"{found}."


def profiles_section(profiles: Sequence[Profile]) -> Section:
    """Profiles over one another, and whether their means over blocks differ."""
    names = labels(profiles)
    few = [
        name for name, p in zip(names, profiles, strict=True) if p.data.tokens < TOKENS_A_FEATURE * (p.model.width or 0)
    ]
    warnings = []
    if few:
        warnings.append(f"below {TOKENS_A_FEATURE} tokens a feature, held-out scores are too low: {', '.join(few)}")
    if len({profile.data.fingerprint for profile in profiles}) > 1:
        warnings.append("the tokens are not the same: scores may differ because texts or tokenizers do")
    targets = dict.fromkeys(target for profile in profiles for target in profile.scores)
    tables = [table for target in targets for table in _beside(target, names, profiles)]
    charts = (profiles_chart(profiles),) if tables else ()
    return Section(
        title="How linear blocks are, models beside one another",
        charts=charts,
        tables=tuple(tables),
        warnings=tuple(warnings),
    )


def _beside(target: Target, names: Sequence[str], profiles: Sequence[Profile]) -> Iterator[Table]:
    """Means over blocks of those profiles that have a target, and their differences; nothing of a single one."""
    having = [(name, p, _mean(p, target)) for name, p in zip(names, profiles, strict=True) if target in p.scores]
    if len(having) < 2:
        return
    what = {"block": "the update's score", "attention": "attentions' scores", "mlp": "MLPs' scores"}[target]
    held_out = "held out where rows were" if any(mean.stderr for *_, mean in having) else "in sample"
    yield Table.of(
        ["model", "text", Column("tokens a feature", ",.0f"), Column("blocks"), Column("mean", ".4f")],
        [
            (name, p.data.source, p.data.tokens / (p.model.width or 1), len(p.scores[target]), mean.cells()[0])
            for name, p, mean in having
        ],
        title=f"Means over blocks of {what}, without attention sinks, {held_out}",
        caption="±: at most the standard error over parts of the text",
    )
    pairs = [(two, one, *_minus((p, b), (q, a))) for (one, q, a), (two, p, b) in combinations(having, 2)]
    p_values = [p for *_, p in pairs]
    yield Table.of(
        ["model", "against", Column("difference", "+.4f"), Column("p", ".3f")],
        [(two, one, change, _shown(p)) for (two, one, change, _), p in zip(pairs, holm(p_values), strict=True)],
        title="Differences of these means",
        caption="p: of no difference, by Welch's t test, corrected for how many there are (Holm, 1979); parts of the "
        "texts are taken to be independent, so that it is on the safe side where models read the same text",
    )


def _shown(p: float | None) -> Cell:
    return "< 0.001" if p is not None and p < 0.001 else p


def _mean(profile: Profile, target: Target) -> Mean:
    """Over blocks, of the update's score without sinks."""
    return mean_of({block.index: block.without_sinks.update_linearity for block in profile.scores[target]})


def _minus(one: tuple[Profile, Mean], other: tuple[Profile, Mean]) -> tuple[Cell, float | None]:
    """A difference of means, and how likely chance makes one."""
    (first, mean), (second, base) = one, other
    if mean.mean is None or base.mean is None:
        return None, None
    difference = mean.mean - base.mean
    folds = tuple(min(profile.settings.get("folds", 0), profile.data.rows) for profile in (first, second))
    if not mean.stderr or not base.stderr or min(folds) < 2:
        return Estimate(difference), None
    p = welch(difference, (mean.stderr, base.stderr), (folds[0], folds[1]))
    return Estimate(difference, math.hypot(mean.stderr, base.stderr)), p


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
    null, shifted = _percent(blocks[0].null), [b.without_sinks.null_shifted for b in blocks]
    unrelated = f"tokens without any relation would score {null:.2f} % here"
    if known := [share for share in shifted if share is not None]:
        without = " (without sinks)" * any(b.without_sinks.sinks for b in blocks)
        unrelated += f", and inputs of other rows, which depend on each other as much, score {_span(known)}{without}"
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
    everywhere, left = (
        sum((score.in_sample or 0.0) >= _PAPERS for score in scores)
        for scores in ([b.linearity for b in blocks], [b.without_sinks.linearity for b in blocks])
    )
    return (
        f"Attention sinks. At block {worst.index}, {without.sinks} of {without.tokens + without.sinks:,} tokens carry "
        f"{_percent(without.sink_energy):.1f} % of the variation of y. So few tokens can decide a score: of "
        f"{len(blocks)} blocks {everywhere} explain {_percent(_PAPERS):.0f} % of y or more over all tokens, {left} "
        "without the sinks."
    )


def _percent(value: float | None) -> float:
    return 100 * (value or 0.0)


def _span(shares: Iterable[float | None]) -> str:
    values = [*map(_percent, shares)]
    return f"{min(values):.1f} % to {max(values):.1f} %"
