"""Profiles in plain words, and beside one another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from rectilinear.intervals import holm, welch
from rectilinear.measurement.block_means import Mean, mean_of
from rectilinear.measurement.profile import BlockRecord, Profile
from rectilinear.measurement.profile_charts import profiles_chart
from rectilinear.measurement.score_choice import WHY_ADJUSTED, ScoreChoice, from_to, in_percent
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.names import distinct_names, labels
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
    choice = ScoreChoice.of(profile)
    if all(choice.of_all_rows(b.update_linearity) is None for b in blocks):
        return [f"{_too_few(profile)} {WHY_ADJUSTED}"]
    return [
        f"What was measured. The model reads {profile.data.tokens:,} tokens. Each of its {profile.model.num_blocks} "
        f"blocks takes a vector x of {profile.model.width} numbers for each token and returns y = x + d; d is the "
        "block's update. The question is how much of y, and of d, a single matrix could have computed from x.",
        f"The output. A linear map explains {from_to(choice.of_all_rows(b.linearity) for b in blocks)} of the "
        "variation of y. Read that beside what doing nothing (y = x) explains: "
        f"{from_to(b.identity for b in blocks)}. The nearer the two, the more a high score only says that a block "
        "adds a small update to what it was given.",
        _about_updates(blocks, choice),
        _about_trust(blocks, choice),
        _about_sinks(blocks, choice),
    ]


def profile_headline(profile: Profile) -> str:
    """How much linear maps explain of what blocks, or their parts, give."""
    mean, choice = _mean(profile, profile.target), ScoreChoice.of(profile)
    if mean.mean is None:
        scored = any(b.update_linearity.in_sample is not None for b in profile.blocks)
        return _too_few(profile) if scored and choice.few else ""
    what = {"block": "updates", "attention": "what attentions add", "mlp": "what MLPs add"}[profile.target]
    how = f"± {100 * mean.stderr:.1f} at most, held out" if mean.stderr is not None else _how([profile])
    found = f"Averaged over blocks and without sinks, linear maps explain {in_percent(mean.mean)} of {what} ({how})"
    outputs = [choice.value(b.without_sinks.linearity) for b in profile.blocks]
    known = [output for output in outputs if output is not None]
    return f"{found}; block by block they explain {from_to(known)} of outputs." if known else f"{found}."


def profiles_section(profiles: Sequence[Profile]) -> Section:
    """Profiles over one another, and whether their means over blocks differ."""
    names = labels(profiles)
    few = [name for name, profile in zip(names, profiles, strict=True) if ScoreChoice.of(profile).few]
    warnings = []
    if few:
        warnings.append(
            f"fewer than {TOKENS_A_FEATURE} tokens a feature: adjusted scores stand for those of {'; '.join(few)}, and "
            "no difference from them is tested"
        )
    if len({profile.data.fingerprint for profile in profiles}) > 1:
        warnings.append("the tokens are not the same: scores may differ because texts or tokenizers do")
    targets = dict.fromkeys(target for profile in profiles for target in profile.scores)
    tables = [table for target in targets for table in _beside(target, names, profiles)]
    charts = (profiles_chart(profiles),) if tables else ()
    return Section(
        title="How linear blocks are, models beside one another",
        headline=_profiles_headline(names, profiles),
        charts=charts,
        tables=tuple(tables),
        warnings=tuple(warnings),
    )


def _profiles_headline(names: Sequence[str], profiles: Sequence[Profile]) -> str:
    """The means over blocks, from the most linear model on; "" where fewer than two have the same target."""
    having = [(name, p, _mean(p, "block")) for name, p in zip(names, profiles, strict=True) if "block" in p.scores]
    known = [(mean.mean, name) for name, _, mean in having if mean.mean is not None]
    if len(known) < 2:
        return ""
    shares = "; ".join(f"{in_percent(share)} in {name}" for share, name in sorted(known, key=lambda pair: -pair[0]))
    how = _how([profile for _, profile, _ in having])
    return f"Averaged over blocks and without sinks, linear maps explain so much of updates ({how}): {shares}."


def _how(profiles: Sequence[Profile]) -> str:
    """Which scores stand for the blocks of some profiles."""
    found = [
        ScoreChoice.of(profile).name(b.without_sinks.update_linearity for b in profile.blocks) for profile in profiles
    ]
    return " or ".join(dict.fromkeys(found))


def _too_few(profile: Profile) -> str:
    """Of a profile on no more tokens than features."""
    return (
        f"{profile.data.tokens:,} tokens are too few to score blocks of width {profile.model.width}: measure at least "
        f"{TOKENS_A_FEATURE * (profile.model.width or 0):,}."
    )


def _beside(target: Target, names: Sequence[str], profiles: Sequence[Profile]) -> Iterator[Table]:
    """Means over blocks of those profiles that have a target, and their differences; nothing of a single one."""
    having = [(name, p, _mean(p, target)) for name, p in zip(names, profiles, strict=True) if target in p.scores]
    if len(having) < 2:
        return
    what = {"block": "the update's score", "attention": "attentions' scores", "mlp": "MLPs' scores"}[target]
    few = [ScoreChoice.of(p).few for _, p, _ in having]
    how = "held out where rows were" if any(mean.stderr for *_, mean in having) else "in sample"
    if any(few):
        how = "adjusted" if all(few) else f"{how}, adjusted below {TOKENS_A_FEATURE} tokens a feature"
    texts = distinct_names([p.data.source for _, p, _ in having])
    yield Table.of(
        ["model", "text", Column("tokens a feature", ",.0f"), Column("blocks"), Column("mean", ".4f")],
        [
            (name, text, p.data.tokens / (p.model.width or 1), len(p.scores[target]), mean.cells()[0])
            for (name, p, mean), text in zip(having, texts, strict=True)
        ],
        title=f"Means over blocks of {what}, without attention sinks, {how}",
        caption="±: at most the standard error over parts of the text",
    )
    pairs = [(two, one, *_minus((p, b), (q, a))) for (one, q, a), (two, p, b) in combinations(having, 2)]
    p_values = [p for *_, p in pairs]
    tested = "" if None in p_values and len({*p_values}) == 1 else _TESTED
    yield Table.of(
        ["model", "against", Column("difference", "+.4f"), Column("p", ".3f")],
        [(two, one, change, _shown(p)) for (two, one, change, _), p in zip(pairs, holm(p_values), strict=True)],
        title="Differences of these means",
        caption="; ".join(filter(None, (tested, _UNTESTED * any(few)))),
    )


_TESTED = (
    "p: of no difference, by Welch's t test, corrected for how many there are (Holm, 1979); parts of the texts are "
    "taken to be independent, so that it is on the safe side where models read the same text"
)

_UNTESTED = "no p where scores are adjusted: these have no error to test a difference by"


def _shown(p: float | None) -> Cell:
    return "< 0.001" if p is not None and p < 0.001 else p


def _mean(profile: Profile, target: Target) -> Mean:
    """Over blocks, of the update's score without sinks."""
    scores = {block.index: block.without_sinks.update_linearity for block in profile.scores[target]}
    return mean_of(scores, ScoreChoice.of(profile))


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


def _about_updates(blocks: list[BlockRecord], choice: ScoreChoice) -> str:
    scores = {b.index: score for b in blocks if (score := choice.of_all_rows(b.update_linearity)) is not None}
    most, least = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    return (
        f"The update. Of d itself a linear map explains {in_percent(scores[most])} at block {most}, the most linear "
        f"one, and {in_percent(scores[least])} at block {least}, the least. What is left is what only a nonlinear "
        "block, or one that looks at other tokens, can do. This number, not the one before, says how much of a "
        "block's own contribution a matrix could make."
    )


def _about_trust(blocks: list[BlockRecord], choice: ScoreChoice) -> str:
    null, shifted = blocks[0].null, [b.without_sinks.null_shifted for b in blocks]
    unrelated = f"in sample, tokens without any relation would score {100 * null:.2f} % here"
    if known := [share for share in shifted if share is not None]:
        without = " (without sinks)" * any(b.without_sinks.sinks for b in blocks)
        unrelated += f", and inputs of other rows, which depend on each other as much, score {from_to(known)}{without}"
    begun = f"How far to trust it. Any map fits a little noise: {unrelated}."
    if choice.few:
        return f"{begun} {WHY_ADJUSTED}"
    pairs = [b.update_linearity for b in blocks if b.update_linearity.held_out is not None]
    if not pairs:
        return f"{begun} There were too few rows to hold any out."
    lost = [100 * ((p.in_sample or 0.0) - (p.held_out or 0.0)) for p in pairs]
    error = 100 * max(p.stderr or 0.0 for p in pairs)
    return (
        f"{begun} On text held out from the fit the update's score changes by {-max(lost):+.2f} to {-min(lost):+.2f} "
        f"percentage points, with a standard error over parts of the text of at most {error:.2f}. Quote the held-out "
        "score with its interval."
    )


def _about_sinks(blocks: list[BlockRecord], choice: ScoreChoice) -> str:
    found = [b for b in blocks if b.without_sinks.sinks]
    if not found:
        return (
            "Attention sinks. In some models a few tokens carry vectors so long that they alone decide a score. "
            "There are none here; where there are, read the scores without them."
        )
    worst = max(found, key=lambda b: b.without_sinks.sink_energy or 0.0)
    without = worst.without_sinks
    everywhere, left = (
        sum((choice.of_all_rows(score) or 0.0) >= _PAPERS for score in scores)
        for scores in ([b.linearity for b in blocks], [b.without_sinks.linearity for b in blocks])
    )
    return (
        f"Attention sinks. At block {worst.index}, {without.sinks} of {without.tokens + without.sinks:,} tokens carry "
        f"{100 * (without.sink_energy or 0.0):.1f} % of the variation of y. So few tokens can decide a score: a "
        f"linear map explains {100 * _PAPERS:.0f} % of y or more in {everywhere} of {len(blocks)} blocks where all "
        f"tokens count, and in {left} where sinks are left out."
    )
