"""What a reader of a profile must know, each with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rectilinear.intervals import half_width
from rectilinear.measurement.profile import ACCURACY, BlockRecord
from rectilinear.measurement.score_choice import are_few
from rectilinear.measurement.settings import TOKENS_A_FEATURE
from rectilinear.results import DataRecord
from rectilinear.settings import Target, as_ranges

# With fewer documents a fold, held-out scores are biased up by more than their error (benchmarks/coverage_text.json).
_DOCUMENTS_A_FOLD = 5

# With fewer folds, an interval says little.
_FOLDS = 4


def _constant(block: BlockRecord, target: Target) -> list[str]:
    """What of a block differs from token to token by no more than rounding."""
    without = block.without_sinks
    whole, others = {"update": block.update_linearity}, {"update": without.update_linearity} if without.tokens else {}
    if target == "block":
        whole = {"output": block.linearity, **whole}
        others = {"output": without.linearity, **others} if without.tokens else {}
    found = [name for name, scores in whole.items() if scores.in_sample is None]
    return found + [
        f"{name} without sinks" for name, each in others.items() if each.in_sample is None and name not in found
    ]


def find_warnings(
    scores: Mapping[Target, Sequence[BlockRecord]], data: DataRecord, width: int, wanted_folds: int
) -> list[str]:
    """What a reader of these scores must know, each with what to do about it."""
    first, *_ = scores.values()
    folds = min(wanted_folds, data.rows)
    found = about_tokens(first, data, width, folds)
    if folds < wanted_folds:
        found.append(
            f"rows of text: {data.rows}, fewer than the {wanted_folds} folds asked for; "
            + ("there are no held-out scores" if folds < 2 else f"{folds} folds were used")
        )
    for target, blocks in scores.items():
        whose = "" if target == "block" else f"{target}: "
        found += [whose + warning for warning in about_blocks(blocks, target, data.tokens, width, folds)]
    return found


def about_tokens(blocks: Sequence[BlockRecord], data: DataRecord, width: int, folds: int) -> list[str]:
    """What a number of tokens is too small for."""
    tokens, enough = data.tokens, TOKENS_A_FEATURE * width
    found = []
    if tokens <= width + 1:
        found.append(
            f"{tokens:,} tokens for width {width}: every in-sample score is 1, unless tokens repeat; "
            f"measure at least {enough:,} tokens"
        )
    elif are_few(tokens, width):
        found.append(
            f"{tokens:,} tokens are fewer than {TOKENS_A_FEATURE} x width {width}: in-sample scores are biased up, "
            f"held-out scores down; {_adjusted(blocks, width)}measure {enough:,} tokens"
        )
    if folds > 1 and data.documents is not None and data.documents < _DOCUMENTS_A_FOLD * folds:
        of = f"{data.documents} documents" if data.documents > 1 else "one document"
        wanted = _DOCUMENTS_A_FOLD * folds
        found.append(
            f"the rows are of {of}, fewer than {_DOCUMENTS_A_FOLD} for each of {folds} folds: these share documents, "
            "so that held-out scores are of text known in part, and intervals too narrow; measure at least "
            f"{wanted} documents, which are some {round(tokens * wanted / data.documents):,} tokens of this length"
        )
    if 1 < folds < _FOLDS:
        wide = half_width(1.0, folds)
        found.append(
            f"a standard error over {folds} folds is known so poorly that the 95 % interval is {wide:.1f} times as far "
            f"on either side; try `folds={_FOLDS}`"
        )
    train = tokens * (folds - 1) // folds
    if folds > 1 and train <= width:
        found.append(
            f"held-out maps were fitted on about {train:,} tokens, no more than width {width}: measure more tokens"
        )
    return found


def about_blocks(blocks: Sequence[BlockRecord], target: Target, tokens: int, width: int, folds: int) -> list[str]:
    """What is so of some blocks, or of that part of them."""
    found = []
    about: dict[str, dict[int, str]] = {
        "rank-deficient Gram matrix, directions that never vary were left out: rank": {
            b.index: f"{b.solve.rank} of {width}" for b in blocks if b.solve.rank < width < tokens
        },
        "float32 products resolve these activations poorly, try `products=float64`: scores may be off by": {
            b.index: f"{b.solve.error:.0e}" for b in blocks if b.solve.error > ACCURACY
        },
        "a fold has none of these tokens, or none that differ, there are no held-out scores: over": {
            b.index: "all tokens" if sets[0].held_out is None else "without sinks"
            for b in blocks
            for sets in [(b.update_linearity, b.without_sinks.update_linearity)]
            if folds > 1 and any(scores.held_out is None and scores.in_sample is not None for scores in sets)
        },
        "no variance beyond the rounding of the states, scores are null, try `dtype=float32` if it is not: constant": {
            b.index: ", ".join(constant) for b in blocks if (constant := _constant(b, target))
        },
    }
    for text, details in about.items():
        groups = {detail: [index for index, other in details.items() if other == detail] for detail in details.values()}
        if groups:
            found.append(f"{text} " + "; ".join(f"{detail} ({_blocks(group)})" for detail, group in groups.items()))
    return found + _about_sinks(blocks, "y" if target == "block" else "what they add")


def _adjusted(blocks: Sequence[BlockRecord], width: int) -> str:
    """To read adjusted scores of blocks, where there are any, and what unrelated inputs reach there, not nothing."""
    if not blocks:
        return ""
    nulls = [block.without_sinks.null_shifted for block in blocks]
    found = [
        1 - (1 - null) * (block.without_sinks.tokens - 1) / (block.without_sinks.tokens - width - 1)
        for block, null in zip(blocks, nulls, strict=True)
        if null is not None and block.without_sinks.tokens > width + 1
    ]
    level = f", for which unrelated inputs score {min(found):.3f} to {max(found):.3f}" if found else ""
    return f"read adjusted{level}, or "


def _about_sinks(blocks: Sequence[BlockRecord], what: str) -> list[str]:
    """One sentence where sinks decide the scores of some blocks."""
    ruled = [block for block in blocks if (block.without_sinks.sink_energy or 0.0) > 0.5]
    if not ruled:
        return []
    counts, shares = ([getattr(b.without_sinks, name) for b in ruled] for name in ("sinks", "sink_energy"))
    first = [block.without_sinks.sinks_by.first_of_row for block in ruled if block.without_sinks.sinks_by]
    place = ", each the first of its row," if first == counts else ""
    return [
        f"attention sinks{place} carry most of the variation of {what} in {_blocks([b.index for b in ruled])} (up to "
        f"{max(counts)} tokens, up to {max(shares):.1%}) and decide the scores there: read those without sinks"
    ]


def _blocks(indices: Sequence[int]) -> str:
    """Blocks by index, runs of them as ranges: "blocks 2, 5-9"."""
    return f"block{'s' * (len(indices) > 1)} {as_ranges(indices)}"
