"""Explanations as figures, as tables and in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rectilinear.charts import SERIES, Axis, Chart, Curves, Line
from rectilinear.measurement.explanation import BlockExplanation, DepthRecord, Explanation
from rectilinear.measurement.profile_charts import SHARE, about
from rectilinear.measurement.score_choice import ScoreChoice, in_percent
from rectilinear.names import short_name
from rectilinear.results import describe_rows
from rectilinear.tables import Column, Estimate, Table

_SAID = {
    "identity": "doing nothing",
    "multiple": "a multiple of the identity",
    "rotation": "a rotation",
    "linear": "a linear map",
}
_FORMS = {"identity": "identity", "multiple": "multiple", "rotation": "rotation", "linear": "linear"}
_MAPS = "Left, on text that maps were not fitted on, with 95 % intervals by Student's t over folds."
_DEPTHS = (
    "Lenses: how often the likeliest token is the next one, with the head on the states of a depth (logit lens) and "
    "after a linear map to the last depth that was fitted on other rows (jump lens); two standard errors over rows."
)


# Maps of several forms are told apart on text that none was fitted on; of these forms there are no adjusted scores.
_value = ScoreChoice().value


def explanation_charts(explanation: Explanation) -> Iterator[Chart]:
    """Ranks and spectra of maps; geometry and lenses by depth."""
    yield Chart("maps", about(explanation), tuple(_map_panels(explanation)), _MAPS, alike=False)
    if explanation.depths:
        yield Chart("depths", about(explanation), tuple(_depth_panels(explanation)), _DEPTHS, alike=False)


def _map_panels(explanation: Explanation) -> Iterator[Curves]:
    looks = [{"color": color, "marker": marker} for color, marker in SERIES]
    ranks, spectra = [], []
    for place, block in enumerate(explanation.blocks):
        look: Any = looks[place % len(looks)]
        scores = [*block.ranks.items(), (len(block.singular_values), block.forms["linear"])]
        x, records = [rank for rank, _ in scores], [form.update for _, form in scores]
        halves = [record.half_width for record in records]
        ranks.append(Line.of(f"block {block.index}", x, map(_value, records), halves, **look))
        values = block.singular_values
        spectra.append(Line.of(f"block {block.index}", range(1, len(values) + 1), values, color=look["color"]))
    yield Curves("Update explained by rank", Axis("rank of the map", "log"), Axis(SHARE, "score"), tuple(ranks))
    yield Curves("Spectrum of the map", Axis("place", "log"), Axis("singular value", "log"), tuple(spectra))


def _depth_panels(explanation: Explanation) -> Iterator[Curves]:
    x, depth = [one.depth for one in explanation.depths], Axis("depth", whole=True)
    if explanation.depths[0].logit_lens is not None:
        lenses = [
            Line.of("logit lens", x, *_curve(explanation.depths, "logit_lens"), color="blue", marker="circle"),
            Line.of("jump lens", x, *_curve(explanation.depths, "jump_lens"), color="orange", marker="square"),
            Line.of("the model", x, [explanation.accuracy] * len(x), color="grey", dash="dotted"),
        ]
        yield Curves("Next tokens by depth", depth, Axis("accuracy"), tuple(lenses))
    shares = Line.of("anisotropy", x, [one.anisotropy for one in explanation.depths], color="green", marker="triangle")
    yield Curves("Anisotropy", depth, Axis("share of the leading direction"), (shares,))
    lines = [Line.of("effective rank", x, [one.effective_rank for one in explanation.depths], color="purple")]
    known = [one.intrinsic_dimension for one in explanation.depths]
    if any(value is not None for value in known):
        lines.append(Line.of("intrinsic dimension", x, known, color="yellow", marker="diamond"))
    yield Curves("Dimensions of hidden states", depth, Axis("directions", "log"), tuple(lines))


def explanation_tables(explanation: Explanation) -> Iterator[Table]:
    """What forms of maps explain, what is written, which tokens deviate, and hidden states by depth."""
    where = f"{short_name(explanation.model.id)}: {describe_rows(explanation.data, explanation.settings)}"
    names = [*explanation.blocks[0].forms]
    yield Table.of(
        [
            "block",
            "of",
            *(Column(_FORMS.get(name, name), ".4f") for name in names),
            Column("effective rank", ".1f"),
        ],
        [
            (str(block.index), what, *(getattr(block.forms[name], what).estimate for name in names), rank)
            for block in explanation.blocks
            for what, rank in (("output", None), ("update", block.effective_rank))
            if what == "update" or len(names) > 1
        ],
        title=f"What maps explain, held out; {where}",
        caption="multiple: of the identity; rotation: any orthogonal map, times a number; effective rank: what the map "
        "explains is spread as widely as over so many directions of equal strength; ±: standard error over folds",
    )
    for block in explanation.blocks:
        yield Table.of(
            [Column("direction"), Column("share", ".1%"), "raises", "lowers"],
            [
                (place, one.share, " ".join(map(repr, one.raises)), " ".join(map(repr, one.lowers)))
                for place, one in enumerate(block.directions, 1)
            ],
            title=f"Block {block.index}: what the map writes",
            caption="share: of the update's energy; tokens whose logits the direction raises and lowers most, or, "
            "since a direction has no sign, lowers and raises",
        )
        yield Table.of(
            ["before", "token", "after", Column("residual", ".2f")],
            [(*_in_line(one.before, one.token, one.after), one.residual) for one in block.deviating],
            title=f"Block {block.index}: the tokens that deviate most",
            caption="residual: squared distance of the update from the map's, over that of updates from their mean",
        )
    if explanation.depths:
        columns = [
            Column("anisotropy", ".3f"),
            Column("effective rank", ".1f"),
            Column("intrinsic dimension", ".1f"),
        ]
        rows = [
            (one.depth, one.anisotropy, one.effective_rank, one.intrinsic_dimension, *_lenses(one))
            for one in explanation.depths
        ]
        yield Table.of(
            [Column("depth"), *columns, Column("logit lens", ".4f"), Column("jump lens", ".4f")],
            rows,
            title="Hidden states by depth",
            caption="lenses: accuracy of the next token, ± standard error over rows",
        )


def explanation_headline(explanation: Explanation) -> str:
    """What maps explain, and over how many directions that is spread."""
    found = [
        f"{in_percent(share)} of block {block.index}'s update (effective rank {block.effective_rank:.0f})"
        for block in explanation.blocks
        if (share := _value(block.forms["linear"].update)) is not None
    ]
    rank = "An effective rank of r says that this is spread as widely as over r directions of equal strength."
    return f"Linear maps explain {'; '.join(found)}. {rank}" if found else ""


def explanation_words(explanation: Explanation) -> list[str]:
    """What simpler maps explain, and where maps fail."""
    said = []
    for block in explanation.blocks:
        whose = {"block": f"Block {block.index}", "attention": f"The attention of block {block.index}"}
        name, linear = whose.get(explanation.target, f"The MLP of block {block.index}"), block.forms["linear"]
        share = _value(linear.update)
        if share is None:
            said.append(f"{name}. Its updates differ by no more than rounding, so that there is nothing to explain.")
            continue
        found = [f"the best linear map explains {in_percent(share)} of the update"]
        if (half := _half(block)) is not None:
            found.append(
                f"a map that writes only along the {half} strongest of its {explanation.model.width} directions "
                "explains half of that or more"
            )
        if "rotation" in block.forms:
            shares = [
                f"{label} {in_percent(own)}"
                for form, label in _SAID.items()
                if (own := _value(block.forms[form].output)) is not None
            ]
            found.append(f"of the output the shares are: {', '.join(shares)}")
        said.append(f"{name}. On text that maps were not fitted on, {'; '.join(found)}.")
        if block.deviating:
            first = block.deviating[0]
            said.append(
                f"Where it fails. The update furthest from the map is that of {first.token!r} in "
                f"{first.before + first.token + first.after!r}: its squared distance is {first.residual:.2f} times "
                "that of updates from their mean."
            )
    if explanation.depths and explanation.depths[0].logit_lens is not None:
        early = explanation.depths[len(explanation.depths) // 2]
        said.append(
            f"By depth. Half way, the likeliest token by the logit lens is the next one at "
            f"{100 * (early.logit_lens or 0.0):.1f} % of places, after a linear map to the last depth at "
            f"{100 * (early.jump_lens or 0.0):.1f} %; the model is right at "
            f"{100 * (explanation.accuracy or 0.0):.1f} %."
        )
    return said


def _in_line(*texts: str) -> list[str]:
    """Texts with signs for ends of lines."""
    return [text.replace("\n", "⏎") for text in texts]


def _half(block: BlockExplanation) -> int | None:
    """The least rank of those tried that explains half of what the whole map does."""
    whole = _value(block.forms["linear"].update) or 0.0
    return next((rank for rank, form in block.ranks.items() if (_value(form.update) or 0.0) >= whole / 2 > 0), None)


def _lenses(depth: DepthRecord) -> tuple[Estimate | None, Estimate | None]:
    logit, jump = depth.logit_lens, depth.jump_lens
    return (
        None if logit is None else Estimate(logit, depth.logit_lens_stderr),
        None if jump is None else Estimate(jump, depth.jump_lens_stderr),
    )


def _curve(depths: Sequence[DepthRecord], name: str) -> tuple[list[float | None], list[float | None]]:
    errors = [getattr(one, f"{name}_stderr") for one in depths]
    return [getattr(one, name) for one in depths], [error and 2 * error for error in errors]
