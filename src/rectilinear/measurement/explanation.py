"""What is known of some blocks' linear maps, and of hidden states by depth: the schema of ``explanation.json``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from rectilinear.charts import SERIES, Axis, Chart, Curves, Line, MarkedText
from rectilinear.measurement.profile import LinearityRecord
from rectilinear.measurement.profile_charts import SHARE, about
from rectilinear.measurement.settings import Explaining
from rectilinear.models.settings import Placement
from rectilinear.results import (
    DataRecord,
    EnvironmentRecord,
    ModelRecord,
    Record,
    ResultFile,
    command_line,
    describe_rows,
)
from rectilinear.settings import Target
from rectilinear.tables import Column, Estimate, Table
from rectilinear.text.settings import Rows


class FormRecord(Record):
    """What a form of map explains; definitions in `rectilinear.core.forms`."""

    output: LinearityRecord
    update: LinearityRecord


class DirectionRecord(Record):
    """A direction of the output of a map."""

    share: float = Field(description="of the update's energy that the map explains along it")
    raises: tuple[str, ...] = Field(default=(), description="tokens whose logits it raises most; none without a head")
    lowers: tuple[str, ...] = ()


class TokenRecord(Record):
    """A token, and how far its update is from the map's."""

    row: int
    position: int
    before: str
    token: str
    after: str
    residual: float = Field(description="|d - map(x)|^2 over its mean of d about the mean: 1 is as far as d itself")


class MeanRecord(Record):
    """A token of the vocabulary, and how far its updates are from the map's."""

    token: str
    n: int
    residual: float = Field(description="mean over its places")


class MarkedRecord(Record):
    """A row of text that the map was not fitted on, token by token."""

    tokens: tuple[str, ...]
    residuals: tuple[float, ...]


class BlockExplanation(Record):
    """The best linear map of a block, or of a part of it, and where it fails."""

    index: int
    tokens: int = Field(description="that the map was fitted on; attention sinks are left out")
    sinks: int
    forms: dict[str, FormRecord]
    ranks: dict[int, FormRecord] = Field(description="of the map with so many directions of its output")
    singular_values: tuple[float, ...] = Field(description="of the map from x to d")
    effective_rank: float = Field(description="of the energies that its directions explain")
    directions: tuple[DirectionRecord, ...]
    deviating: tuple[TokenRecord, ...] = Field(description="those furthest from a map that was fitted on other rows")
    least_linear: tuple[MeanRecord, ...] = Field(description="by token of the vocabulary")
    most_linear: tuple[MeanRecord, ...]
    text: MarkedRecord


class DepthRecord(Record):
    """Hidden states at a depth: their geometry, and what they say of the next token."""

    depth: int
    anisotropy: float = Field(description="share of variance of the leading direction, without sinks")
    effective_rank: float
    intrinsic_dimension: float | None = Field(description="by TwoNN; null where scikit-dimension is not installed")
    logit_lens: float | None = Field(description="accuracy of the head on these states; null without a head")
    logit_lens_stderr: float | None = Field(default=None, description="over rows")
    jump_lens: float | None = Field(description="the same after a linear map to the last depth")
    jump_lens_stderr: float | None = None


class Explanation(ResultFile):
    """What the linear maps of some blocks do, and where they fail."""

    file_name: ClassVar[str] = "explanation.json"
    heading: ClassVar[str] = "What linear maps do, and where they fail"

    schema_: Literal["rectilinear.explanation/1"] = Field(default="rectilinear.explanation/1", alias="schema")
    model: ModelRecord
    data: DataRecord
    settings: dict[str, Any]
    environment: EnvironmentRecord
    target: Target
    blocks: tuple[BlockExplanation, ...]
    depths: tuple[DepthRecord, ...] = Field(default=(), description="none where they were not asked for")
    accuracy: float | None = Field(default=None, description="of the model's own next tokens, on the same rows")
    warnings: tuple[str, ...] = ()

    def headline(self) -> str:
        """How many directions maps have."""
        found = [
            f"{block.forms['linear'].update.best or 0.0:.1%} of block {block.index}'s update, in "
            f"{block.effective_rank:.0f} directions"
            for block in self.blocks
        ]
        return f"Linear maps explain {'; '.join(found)}.".replace("%", " %")

    def command(self) -> str:
        """``rectilinear explain``."""
        given = {**self.settings, "dtype": self.environment.dtype}
        return command_line("explain", self.model.id, self.data, given, Explaining, Rows, Placement)

    def words(self) -> tuple[str, ...]:
        """What simpler maps explain, and where maps fail."""
        said = []
        for block in self.blocks:
            whose = {"block": f"Block {block.index}", "attention": f"The attention of block {block.index}"}
            name, linear = whose.get(self.target, f"The MLP of block {block.index}"), block.forms["linear"]
            found = [f"the best linear map explains {100 * (linear.update.best or 0.0):.1f} % of the update"]
            if (half := _half(block)) is not None:
                found.append(f"half of that is in {half} of its {self.model.width} directions")
            if "rotation" in block.forms:
                shares = [f"{label} {_percent(block.forms[form])}" for form, label in _FORMS.items()]
                found.append(f"of the output, {', '.join(shares)}")
            said.append(f"{name}. On text that they were not fitted on, {'; '.join(found)}.")
            if block.deviating:
                first = block.deviating[0]
                said.append(
                    f"Where it fails. The update furthest from the map, {first.residual:.1f} times as far as updates "
                    f"are from their mean, is that of {first.token!r} in {first.before + first.token + first.after!r}."
                )
        if self.depths and self.depths[0].logit_lens is not None:
            early = self.depths[len(self.depths) // 2]
            said.append(
                f"By depth. Half way, the likeliest token by the logit lens is the next one at "
                f"{100 * (early.logit_lens or 0.0):.1f} % of places, after a linear map to the last depth at "
                f"{100 * (early.jump_lens or 0.0):.1f} %; the model is right at {100 * (self.accuracy or 0.0):.1f} %."
            )
        return tuple(said)

    def charts(self) -> tuple[Chart, ...]:
        """Ranks and spectra of maps; geometry and lenses by depth."""
        found = [Chart("maps", about(self), tuple(self._map_panels()), _MAPS, alike=False)]
        if self.depths:
            found.append(Chart("depths", about(self), tuple(self._depth_panels()), _DEPTHS, alike=False))
        return tuple(found)

    def texts(self) -> tuple[MarkedText, ...]:
        """A row of text, marked by how far each token's update is from the map's."""
        return tuple(
            MarkedText(
                f"Block {block.index}: how far updates are from the map's, token by token",
                block.text.tokens,
                block.text.residuals,
                "1 is as far as updates are from their mean; the row was not fitted on",
                high=2.0,
            )
            for block in self.blocks
        )

    def tables(self) -> tuple[Table, ...]:
        """What forms of maps explain, what is written, and which tokens deviate."""
        return tuple(self._tables())

    def _tables(self) -> Iterator[Table]:
        where = f"{self.model.id}: {describe_rows(self.data, self.settings)}"
        names = [*self.blocks[0].forms]
        yield Table.of(
            [
                "block",
                "of",
                *(Column(_FORMS.get(name, name), ".4f") for name in names),
                Column("effective rank", ".1f"),
            ],
            [
                (str(block.index), what, *(getattr(block.forms[name], what).estimate for name in names), rank)
                for block in self.blocks
                for what, rank in (("output", None), ("update", block.effective_rank))
                if what == "update" or len(names) > 1
            ],
            title=f"What maps explain, held out; {where}",
            caption="multiple: of the identity; rotation: any orthogonal map, times a number; ±: standard error over "
            "folds",
        )
        for block in self.blocks:
            yield Table.of(
                [Column("direction"), Column("share", ".1%"), "raises", "lowers"],
                [
                    (place, one.share, " ".join(map(repr, one.raises)), " ".join(map(repr, one.lowers)))
                    for place, one in enumerate(block.directions, 1)
                ],
                title=f"Block {block.index}: what the map writes",
                caption="share: of the update's energy; tokens whose logits the direction raises and lowers most",
            )
            yield Table.of(
                ["before", "token", "after", Column("residual", ".2f")],
                [(*_in_line(one.before, one.token, one.after), one.residual) for one in block.deviating],
                title=f"Block {block.index}: the tokens that deviate most",
                caption="residual: squared distance of the update from the map's, over that of updates from their mean",
            )
        if self.depths:
            columns = [
                Column("anisotropy", ".3f"),
                Column("effective rank", ".1f"),
                Column("intrinsic dimension", ".1f"),
            ]
            rows = [
                (one.depth, one.anisotropy, one.effective_rank, one.intrinsic_dimension, *_lenses(one))
                for one in self.depths
            ]
            yield Table.of(
                [Column("depth"), *columns, Column("logit lens", ".4f"), Column("jump lens", ".4f")],
                rows,
                title="Hidden states by depth",
                caption="lenses: accuracy of the next token, ± standard error over rows",
            )

    def _map_panels(self) -> Iterator[Curves]:
        looks = [{"color": color, "marker": marker} for color, marker in SERIES]
        ranks, spectra = [], []
        for place, block in enumerate(self.blocks):
            look: Any = looks[place % len(looks)]
            scores = [*block.ranks.items(), (len(block.singular_values), block.forms["linear"])]
            x, records = [rank for rank, _ in scores], [form.update for _, form in scores]
            halves = [record.half_width for record in records]
            ranks.append(Line.of(f"block {block.index}", x, [record.best for record in records], halves, **look))
            values = block.singular_values
            spectra.append(Line.of(f"block {block.index}", range(1, len(values) + 1), values, color=look["color"]))
        yield Curves("Update explained by rank", Axis("rank of the map", "log"), Axis(SHARE, "score"), tuple(ranks))
        yield Curves("Spectrum of the map", Axis("place", "log"), Axis("singular value", "log"), tuple(spectra))

    def _depth_panels(self) -> Iterator[Curves]:
        x, depth = [one.depth for one in self.depths], Axis("depth", whole=True)
        if self.depths[0].logit_lens is not None:
            lenses = [
                Line.of("logit lens", x, *_curve(self.depths, "logit_lens"), color="blue", marker="circle"),
                Line.of("jump lens", x, *_curve(self.depths, "jump_lens"), color="orange", marker="square"),
                Line.of("the model", x, [self.accuracy] * len(x), color="grey", dash="dotted"),
            ]
            yield Curves("Next tokens by depth", depth, Axis("accuracy"), tuple(lenses))
        shares = Line.of("anisotropy", x, [one.anisotropy for one in self.depths], color="green", marker="triangle")
        yield Curves("Anisotropy", depth, Axis("share of the leading direction"), (shares,))
        lines = [Line.of("effective rank", x, [one.effective_rank for one in self.depths], color="purple")]
        known = [one.intrinsic_dimension for one in self.depths]
        if any(value is not None for value in known):
            lines.append(Line.of("intrinsic dimension", x, known, color="yellow", marker="diamond"))
        yield Curves("Dimensions of hidden states", depth, Axis("directions", "log"), tuple(lines))


_FORMS = {"identity": "identity", "multiple": "multiple", "rotation": "rotation", "linear": "linear"}
_MAPS = "Left, on text that maps were not fitted on, with 95 % intervals by Student's t over folds."
_DEPTHS = (
    "Lenses: how often the likeliest token is the next one, with the head on the states of a depth (logit lens) and "
    "after a linear map to the last depth that was fitted on other rows (jump lens); two standard errors over rows."
)


def _in_line(*texts: str) -> list[str]:
    """Texts with signs for ends of lines."""
    return [text.replace("\n", "⏎") for text in texts]


def _percent(form: FormRecord) -> str:
    return f"{100 * (form.output.best or 0.0):.1f} %"


def _half(block: BlockExplanation) -> int | None:
    """The least rank of those tried that explains half of what the whole map does."""
    whole = block.forms["linear"].update.best or 0.0
    return next((rank for rank, form in block.ranks.items() if (form.update.best or 0.0) >= whole / 2 > 0), None)


def _lenses(depth: DepthRecord) -> tuple[Estimate | None, Estimate | None]:
    logit, jump = depth.logit_lens, depth.jump_lens
    return (
        None if logit is None else Estimate(logit, depth.logit_lens_stderr),
        None if jump is None else Estimate(jump, depth.jump_lens_stderr),
    )


def _curve(depths: Sequence[DepthRecord], name: str) -> tuple[list[float | None], list[float | None]]:
    errors = [getattr(one, f"{name}_stderr") for one in depths]
    return [getattr(one, name) for one in depths], [error and 2 * error for error in errors]
