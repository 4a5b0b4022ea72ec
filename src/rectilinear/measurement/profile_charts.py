"""Profiles as figures: one by depth, several over one another, any depth to any later one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from math import floor
from statistics import median
from typing import Any

from rectilinear.charts import FLOOR, SERIES, Axis, Chart, Curves, HeatMap, Line
from rectilinear.measurement.pairs_record import PairsRecord
from rectilinear.measurement.profile import BlockRecord, LinearityRecord, Profile, Score, WithoutSinksRecord
from rectilinear.measurement.score_choice import WHY_ADJUSTED, ScoreChoice
from rectilinear.names import labels, short_name
from rectilinear.results import DataRecord, ModelRecord
from rectilinear.settings import Target

_TITLES: dict[tuple[Target, Score], str] = {
    ("block", "linearity"): "Linearity of the output, y = x + d",
    ("block", "update_linearity"): "Linearity of the update, d",
    ("attention", "update_linearity"): "Linearity of what attentions add",
    ("mlp", "update_linearity"): "Linearity of what MLPs add",
}

#: What is on the axis of a score.
SHARE = "share of variance explained"

# Where most scores are above this they are told apart by their distances from 1. In-sample scores that nowhere differ
# more than so much from those held out are not drawn. Sinks with less of the variation than so much are not marked.
_HIGH, _SAME, _MUCH = 0.9, 0.01, 0.01


def profile_chart(profile: Profile) -> Chart:
    """A panel for each target and score: what stands for the blocks, and the levels to read it against."""
    panels, choice = [], ScoreChoice.of(profile)
    for target, score in _wanted([profile]):
        lines = tuple(_lines(profile.scores[target], score, choice))
        axis = _score_axis(choice.value(getattr(block, score)) for block in profile.scores[target])
        panels.append(Curves(_TITLES[target, score], Axis("block", whole=True), axis, lines))
    drawn = {line.label for panel in panels for line in panel.lines}
    said = {
        "held out": "Held out: scores on text that the map was not fitted on, with 95 % intervals by Student's t over "
        "folds.",
        "adjusted": WHY_ADJUSTED,
        "sinks carry": f"Triangles along the lower edge mark blocks where attention sinks carry {_MUCH:.0%} or more "
        "of the variation; they are no scores.",
        "identity": "Identity: what doing nothing explains.",
        "shifted null": "Shifted null: what inputs of other rows explain in sample.",
    }
    caption = " ".join(text for name, text in said.items() if any(label.startswith(name) for label in drawn))
    alike = len({panel.y.scale for panel in panels}) == 1
    return Chart("profile", about(profile), tuple(panels), caption, alike=alike)


def profiles_chart(profiles: Sequence[Profile]) -> Chart:
    """The scores that stand for the blocks of several profiles over one another, a colour each.

    By block, or by relative depth where models are not equally deep. Without sinks as well where any has some.
    """
    depths = {profile.model.num_blocks for profile in profiles}
    x = Axis("block", whole=True) if len(depths) == 1 else Axis("depth of the block, of 1")
    looks = [
        dict(zip(("color", "marker"), look, strict=True)) for look, _ in zip(cycle(SERIES), profiles, strict=False)
    ]
    panels = []
    for target, score in _wanted(profiles):
        for without in (False, True) if any(map(_sinks, profiles)) else (False,):
            lines = []
            for profile, name, look in zip(profiles, labels(profiles), looks, strict=True):
                blocks = profile.scores.get(target, ())
                records = [getattr(block.without_sinks if without else block, score) for block in blocks]
                scale = 1.0 if len(depths) == 1 else float(profile.model.num_blocks or 1)
                places = [block.index if len(depths) == 1 else (block.index + 0.5) / scale for block in blocks]
                choice = ScoreChoice.of(profile)
                halves = [*map(choice.half_width, records)]
                lines.append(Line.of(name, places, map(choice.value, records), halves, **look))
            title = _TITLES[target, score] + ", without sinks" * without
            panels.append(Curves(title, x, _score_axis(y for line in lines for y in line.y), tuple(lines)))
    caption = "Held out, with 95 % intervals by Student's t over folds; in sample where nothing was held out."
    few = [ScoreChoice.of(profile).few for profile in profiles]
    if any(few):
        caption = WHY_ADJUSTED if all(few) else f"{caption} {WHY_ADJUSTED}"
    alike = len({panel.y.scale for panel in panels}) == 1
    return Chart("profiles", "; ".join(labels(profiles)), tuple(panels), caption, alike=alike)


def pairs_chart(profile: Profile, pairs: PairsRecord) -> Chart:
    """How linear the way is from every depth (across) to every later one (up), adjusted for the number of tokens.

    Left the score of the later state, right that of the change up to there; without attention sinks where there are
    any. Depth 0 is before the first block.
    """
    panels = []
    titles: dict[Score, str] = {
        "linearity": "Linearity of the later state",
        "update_linearity": "Linearity of the change",
    }
    for score, title in titles.items():
        cells: list[list[float | None]] = [[None] * pairs.depths for _ in range(pairs.depths)]
        for pair in pairs.scores:
            found = getattr(pair.without_sinks or pair, score)
            cells[pair.last][pair.first] = found.in_sample if found.adjusted is None else found.adjusted
        known = [cell for row in cells for cell in row if cell is not None]
        low = max(FLOOR, floor(20 * min(known, default=0.0)) / 20)
        axes = Axis("from depth", whole=True), Axis("to depth", whole=True)
        panels.append(HeatMap(title, *axes, tuple(map(tuple, cells)), "share of variance", min(low, 0.95), 1.0))
    sinks = ", without attention sinks" * bool(pairs.sinks)
    caption = f"Depth 0 is before the first block. Adjusted for the number of tokens{sinks}{pairs.seen}."
    return Chart("pairs", about(profile), tuple(panels), caption, alike=False)


def about(result: Any) -> str:
    """Which model and text a figure is of."""
    model: ModelRecord = result.model
    data: DataRecord = result.data
    return f"{short_name(model.id)}, {data.tokens:,} tokens of {short_name(data.source)}"


def _score_axis(scores: Iterable[float | None]) -> Axis:
    """By the distance from 1, where most scores are near it."""
    known = [score for score in scores if score is not None]
    return Axis(SHARE, "score_log" if known and median(known) > _HIGH else "score")


def _wanted(profiles: Iterable[Profile]) -> list[tuple[Target, Score]]:
    targets = dict.fromkeys(target for profile in profiles for target in profile.scores)
    return [key for key in _TITLES if key[0] in targets]


def _sinks(profile: Profile) -> bool:
    return any(block.without_sinks.sinks for blocks in profile.scores.values() for block in blocks)


def _lines(blocks: Sequence[BlockRecord], score: Score, choice: ScoreChoice) -> Iterator[Line]:
    x = [block.index for block in blocks]
    scores: list[LinearityRecord] = [getattr(block, score) for block in blocks]
    corrected, halves = [*map(choice.corrected, scores)], [*map(choice.half_width, scores)]
    if any(value is not None for value in corrected):
        label = choice.name(scores) + ", 95 % interval" * any(halves)  # older files have none
        yield Line.of(label, x, corrected, halves, spread="band", color="orange", marker="square")
    pairs = [(one.in_sample, value) for one, value in zip(scores, corrected, strict=True)]
    if any(value is None or abs(inside - value) > _SAME for inside, value in pairs if inside is not None):
        yield Line.of("in sample", x, [one.in_sample for one in scores], color="blue", marker="circle", width=1.0)
    if any(block.without_sinks.sinks for block in blocks):
        without: list[LinearityRecord] = [getattr(block.without_sinks, score) for block in blocks]
        label = f"{choice.name(without)}, without sinks"
        yield Line.of(label, x, map(choice.value, without), color="purple", marker="diamond", dash="dashed")
        marked = [block.index for block in blocks if _much(block.without_sinks)]
        if marked:
            label = f"sinks carry {_MUCH:.0%} or more"
            yield Line.of(label, marked, [0.0] * len(marked), color="grey", marker="triangle", dash="none", edge=True)
    if score == "linearity":
        yield Line.of("identity (do nothing)", x, [block.identity for block in blocks], color="green", dash="dashed")
    yield Line.of("null (independent tokens)", x, [block.null for block in blocks], color="grey", dash="dotted")
    shifted = [block.without_sinks.null_shifted for block in blocks]
    if score == "update_linearity" and any(shifted):
        label = "shifted null (inputs of other rows)"
        yield Line.of(label, x, shifted, color="grey", dash="dash-dotted", width=1.0)


def _much(without: WithoutSinksRecord) -> bool:
    return bool(without.sinks) and (without.sink_energy or 0.0) >= _MUCH
