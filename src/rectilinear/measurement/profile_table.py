"""The table of a profile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from rectilinear.measurement.pairs_record import PairsRecord
from rectilinear.measurement.profile import BlockRecord, Profile, WithoutSinksRecord
from rectilinear.measurement.score_choice import are_few
from rectilinear.names import short_name
from rectilinear.results import describe_rows
from rectilinear.settings import Target
from rectilinear.tables import Cell, Column, Table

_PARTS = {"attention": "attentions", "mlp": "MLPs"}

_ADDED = "of what each adds to the residual stream, from what it is given\n"

_SHARES = (
    "linearity: share of the variation of y that a linear map of x explains; update linearity: of d = y - x; identity: "
    "what y = x explains\n"
)

_ADJUSTED = "adjusted: in sample, less what as many features gain by chance\n"


def profile_table(profile: Profile, target: Target, blocks: Sequence[BlockRecord]) -> Table:
    """One line a block, or a part of one, of a profile."""
    few = are_few(profile.data.tokens, profile.model.width)
    sinks = any(block.without_sinks.sinks for block in blocks)
    columns = [*_columns(target, few, sinks, profile.shifted)]
    stack = f"{profile.model.num_blocks} block{'s' * (profile.model.num_blocks != 1)} of width {profile.model.width}"
    whose = "" if target == "block" else f"{_PARTS[target]} of "
    return Table.of(
        [column for column, _ in columns],
        [[cell(block) for _, cell in columns] for block in blocks],
        title=f"{short_name(profile.model.id)}: {whose}{stack}, {describe_rows(profile.data, profile.settings)}",
        caption=f"{_ADDED if target != 'block' else _SHARES}held out: mean over folds, ± standard error\n"
        f"{_ADJUSTED * few}null: {_about_null(profile)}" + _about_sinks(profile, target) * sinks,
    )


def pairs_table(pairs: PairsRecord) -> Table:
    """One line for some numbers of blocks that one linear map stands for: medians over where it begins."""
    rows: list[list[Cell]] = []
    for steps, found in pairs.by_length().items():
        of_each = (
            [one.linearity.adjusted for one in found],
            [one.identity for one in found],
            [one.update_linearity.adjusted for one in found],
        )
        known = ([value for value in values if value is not None] for values in of_each)
        rows.append([f"{steps:,}", len(found), *(median(values) if values else None for values in known)])
    return Table.of(
        ["blocks", "ways", *(Column(name, ".4f") for name in ("linearity", "identity", "update\nlinearity"))],
        rows,
        title="One linear map over several blocks",
        caption="medians over all ways of so many blocks, adjusted for the number of tokens, without sinks"
        f"{pairs.seen}\n"
        "linearity: of the later hidden state; identity: what the earlier one explains of it; update linearity: of the "
        "change up to there",
    )


def _about_sinks(profile: Profile, target: Target) -> str:
    begin = "; and BOS, which each row begins with" if profile.settings.get("bos") == "row" else ""
    of = "y" if target == "block" else "what is added"
    return (
        f"\nsinks: tokens whose input, output or update is far longer than that of others{begin}; first: at the "
        f"beginning of their row; in brackets their share of the variation of {of}"
    )


def _about_null(profile: Profile) -> str:
    if not profile.shifted:
        return "what independent tokens would score in sample"
    other = {"document": "the nearest earlier row of another document", "half": "a row half the text away"}
    null = max(block.null for block in profile.blocks)
    return (
        f"what unrelated inputs, those of {other[profile.settings['partners']]}, score for the update in sample; were "
        f"tokens independent, any inputs would score {null:.4f}"
    )


def _columns(
    target: Target, few: bool, sinks: bool, shifted: bool
) -> Iterator[tuple[Column, Callable[[BlockRecord], Cell]]]:
    """What a table of blocks, or of parts of them, has of each."""
    whole = target == "block"
    own, apart = ("update\nlinearity", "update") if whole else ("linearity", "linearity")
    every: list[tuple[bool, str, str, Callable[[BlockRecord], Cell]]] = [
        (True, "block", "", lambda b: b.index),
        (whole, "linearity", ".4f", lambda b: b.linearity.in_sample),
        (whole and few, "adjusted", ".4f", lambda b: b.linearity.adjusted),
        (whole, "held out", ".4f", lambda b: b.linearity.estimate),
        (whole, "identity", ".4f", lambda b: b.identity),
        (True, own, ".4f", lambda b: b.update_linearity.in_sample),
        (few, "adjusted", ".4f", lambda b: b.update_linearity.adjusted),
        (True, "held out", ".4f", lambda b: b.update_linearity.estimate),
        (True, "null", ".4f", lambda b: b.null_shifted if shifted else b.null),
        (whole, "|d|/|y|", ".3f", lambda b: b.update_ratio),
        (whole, "cosine", ".3f", lambda b: b.cosine),
        (sinks, "sinks", "", lambda b: _sinks(b.without_sinks)),
        (sinks and whole, "linearity\nwithout\nsinks", ".4f", lambda b: b.without_sinks.linearity.in_sample),
        (sinks, f"{apart}\nwithout\nsinks", ".4f", lambda b: b.without_sinks.update_linearity.in_sample),
        (sinks and few, "adjusted\nwithout\nsinks", ".4f", lambda b: b.without_sinks.update_linearity.adjusted),
        (sinks and shifted, "null\nwithout\nsinks", ".4f", lambda b: b.without_sinks.null_shifted),
    ]
    return ((Column(name, spec), cell) for shown, name, spec, cell in every if shown)


def _sinks(without: WithoutSinksRecord) -> str:
    """How many there are, how many of them first in their row, and their share of the variation of y."""
    first = without.sinks_by.first_of_row if without.sinks_by else 0
    place = " first" if first == without.sinks else f", {first} first" if first else ""
    share = "" if without.sink_energy is None else f" ({without.sink_energy:.1%})"
    return f"{without.sinks:,}{place}{share}" if without.sinks else "0"
