"""How long a window each key-value head gets: what heads lose with short ones is measured, and windows are allotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from rectilinear.errors import RequestError
from rectilinear.linearization.divergence import Divergence, first_rows
from rectilinear.linearization.far_fit import (
    Whole,
    Yardstick,
    fit_far,
    mean_turn,
    place_centroids,
    prepare,
    window_errors,
)
from rectilinear.linearization.streams import Streams
from rectilinear.models.attention_probe import find_attention
from rectilinear.models.attention_record import LAYOUTS, Recorder, Rotary, find_output_map, find_rotary
from rectilinear.models.bounded_attention import bounded_attention
from rectilinear.models.far_summary import FarSummary
from rectilinear.models.offload import in_memory
from rectilinear.ranks import current

if TYPE_CHECKING:
    from rectilinear.linearization.fit import Site
    from rectilinear.linearization.replacement import Replacement
    from rectilinear.linearization.workbench import Workbench

#: Tokens that far summaries are fitted on, and windows compared.
TOKENS = 8192

# What kept tensors have beside a summary's own.
_BESIDE = ("errors", "grid", "layout", "frequencies", "value_width")

# Windows that are tried, as multiples of the mean.
_MULTIPLES = (1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 1.5, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Wanted:
    """What is asked of the windows of some attentions."""

    window: int
    sinks: int
    centroids: int  # of the far summary of each head; 0 for none
    uniform: bool
    refit: bool

    @property
    def name(self) -> str:
        """Of a survey for it."""
        return f"window-{self.window}{'-each' * self.uniform}-{self.sinks}-{self.centroids}"

    def grid(self, tokens: int) -> tuple[int, ...]:
        """Windows that are tried on rows of some tokens, the shortest first.

        Raises:
            RequestError: rows in which too few tokens are far.
        """
        longest = (tokens - self.sinks) // 2  # so that half of a row has far tokens to fit on
        if self.window > longest:
            raise RequestError(
                f"expected rows of at least {2 * self.window + self.sinks} tokens to fit a `window` of {self.window} "
                f"and {self.sinks} `sinks` on, got {tokens}; try a larger `seq_len`"
            )
        tried = {max(1, round(self.window * each)) for each in _MULTIPLES}
        return (self.window,) if self.uniform else tuple(sorted(one for one in tried if one <= longest))


@dataclass(frozen=True, eq=False)
class Survey:
    """What an attention loses with each window that was tried.

    Attributes:
        path: of the attention.
        grid: the windows.
        errors: ``[key-value heads, windows]``, mean squared errors of the output by heads, relative to the stream.
        far: options of the `FarSummary`; None for none.
        tensors: its tensors, with an axis of windows before their own.
        value_width: of the values of a head.
    """

    path: str
    grid: tuple[int, ...]
    errors: Tensor
    far: Mapping[str, Any] | None
    tensors: Mapping[str, Tensor]
    value_width: int

    def chosen(self, windows: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a far summary for windows of the key-value heads."""
        places = torch.tensor([self.grid.index(window) for window in windows])
        found = {}
        for name, tensor in self.tensors.items():
            if name == "turn":
                found[name] = tensor[0]
            else:  # of query heads
                heads = places.repeat_interleave(tensor.shape[1] // len(places))
                found[name] = tensor[heads, torch.arange(tensor.shape[1])]
        return found


def bound(
    site: Site,
    path: str,
    windows: Sequence[int],
    wanted: Wanted,
    found: Survey | None = None,
    far_output: Sequence[int] | None = None,
) -> Any:
    """Bounded attention in the place of the one at a path, with some windows and what a survey found for these."""
    attention, far = site.bench.model.get_submodule(path), found and found.far
    with in_memory(attention):  # where what comes beside it is to be, too
        new = bounded_attention(
            attention,
            site.bench.padding,
            window=windows[0] if len({*windows}) == 1 else windows,
            sinks=wanted.sinks,
            cache_index=site.parts[0].cache_layers or None,
            far=cast(Any, far),
            far_output=far_output,
        )
    if found is not None and far is not None:
        new.far_summary.load_state_dict(found.chosen(windows))
    return new


def survey(site: Site, wanted: Wanted, divergence: Divergence) -> Survey:
    """Fit far summaries for all windows on the original's rows before a block, and compare their errors.

    Errors are weighed by how far predictions move for each unit of error with this attention alone bounded.
    """
    bench, (part,) = site.bench, site.parts
    with site.trying():
        path = find_attention(bench.model, part, bench.one_row)

    def measure() -> dict[str, Tensor]:
        recorded = _Recorded.joined(current().gather(_record(site, path)))
        return current().from_first(lambda: _compare(recorded, wanted, bench.seed))

    made = bench.kept.recall(f"{wanted.name}-{path}", measure)
    tensors = {name: tensor for name, tensor in made.items() if name not in _BESIDE}
    far = None
    if tensors:
        heads, count, width = tensors["centroids"].shape[1:]
        far = {
            "heads": heads,
            "shared": heads // len(made["errors"]),
            "centroids": count,
            "width": width,
            "rotary": (None, *LAYOUTS)[int(made["layout"])],
            "frequencies": made["frequencies"].tolist(),
        }
    found = Survey(path, tuple(made["grid"].tolist()), made["errors"], far, tensors, int(made["value_width"]))
    if wanted.uniform:
        return found

    def weigh() -> dict[str, Tensor]:
        alone = bound(site, path, [wanted.window] * len(found.errors), wanted, found)
        error = float(found.errors[:, found.grid.index(wanted.window)].sum())
        moved = divergence.of(site.streams, {found.path: alone})
        return {"weight": torch.tensor(moved / error if error > 0 else 0.0)}

    return replace(found, errors=found.errors * bench.kept.recall(f"{wanted.name}-{path}-weight", weigh)["weight"])


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What an attention gives for some batches, by number, what errors are measured by, and what is known of it."""

    rows: Mapping[int, Whole]
    scales: Mapping[int, Tensor]
    rotary: Rotary | None
    output_map: Tensor | None

    @classmethod
    def joined(cls, parts: Sequence[_Recorded]) -> _Recorded:
        """What processes that share the rows have recorded, as if one had."""
        rows = {number: part.rows[number] for part in parts for number in part.rows}
        scales = {number: part.scales[number] for part in parts for number in part.scales}
        known = next(part for part in parts if part.rows)
        numbers = sorted(rows)
        return cls({n: rows[n] for n in numbers}, {n: scales[n] for n in numbers}, known.rotary, known.output_map)


@torch.no_grad()
def _record(site: Site, path: str) -> _Recorded:
    bench = site.bench
    attention = bench.model.get_submodule(path)
    recorder, corrects = Recorder(attention, bench.padding), site.corrects
    rows, scales, rotary, output_map = dict[int, Whole](), dict[int, Tensor](), None, None
    for number, count in first_rows(bench, TOKENS).items():
        modules = [site.block, recorder.module]
        block, given = site.streams.original(number, modules, {path: recorder.module})
        inputs = recorder.take().first(count)
        if not rows:
            output_map = find_output_map(recorder)
            rotary = find_rotary(recorder, inputs)
        rows[number] = prepare(inputs)
        stream = block.x + given.y if corrects else block.x
        stream = stream.reshape(-1, inputs.query.shape[2], stream.shape[-1])[:count]
        scales[number] = stream.float().norm(dim=-1).clamp(min=1e-6)
    return _Recorded(rows, scales, rotary, output_map)


@torch.no_grad()
def _compare(recorded: _Recorded, wanted: Wanted, seed: int) -> dict[str, Tensor]:
    """Far summaries for all windows and their errors, as tensors to keep."""
    rows, rotary = [*recorded.rows.values()], recorded.rotary
    yardstick = Yardstick(recorded.output_map, [*recorded.scales.values()])
    grid = wanted.grid(rows[0].inputs.key.shape[2])
    beside = {
        "grid": torch.tensor(grid),
        "layout": torch.tensor(1 + LAYOUTS.index(rotary.layout) if rotary else 0),
        "frequencies": torch.tensor(rotary.frequencies if rotary else (), dtype=torch.float64),
        "value_width": torch.tensor(rows[0].inputs.value.shape[-1]),
    }
    # Sums forget nothing, while an attention with a window of its own does.
    if not wanted.centroids or rows[0].inputs.terms.sliding is not None:
        errors = [window_errors(rows, window, wanted.sinks, yardstick) for window in grid]
        return {"errors": torch.stack(errors, 1), **beside}
    heads, tokens, width = rows[0].inputs.query.shape[1:]
    turns = (rotary.layout, rotary.frequencies) if rotary else ()
    summary = FarSummary(heads, heads // rows[0].inputs.key.shape[1], wanted.centroids, width, *turns)
    far = summary.to(rows[0].inputs.query).there()
    far.turn.copy_(mean_turn(far, tokens))
    place_centroids(rows, far, wanted.window, wanted.sinks, seed)
    fits = [fit_far(rows, summary, window, wanted.sinks, yardstick) for window in grid]
    tensors = {name: torch.stack([fit.tensors[name] for fit in fits]) for name in fits[0].tensors}
    return {**tensors, "errors": torch.stack([fit.errors for fit in fits], 1), **beside}


def survey_all(bench: Workbench, replacements: Sequence[Replacement], wanted: Wanted) -> list[Survey]:
    """`survey` of some attentions, in the order of their blocks; what trials before found out is not measured again."""
    from rectilinear.linearization.fit import Site

    found, divergence = [], Divergence(first_rows(bench))
    with closing(Streams(bench.passes())) as streams:
        for one in replacements:
            key = (wanted, one.begins)
            if key not in bench.surveys:
                streams.advance(one.begins)
                bench.surveys[key] = survey(Site(bench, one, streams), wanted, divergence)
            found.append(bench.surveys[key])
    return found
