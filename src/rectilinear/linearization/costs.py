"""What each replacement costs alone: how far it moves predictions, what it saves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rectilinear.errors import RequestError
from rectilinear.linearization.divergence import Divergence
from rectilinear.linearization.fit import Fitted, Site, fit_alone
from rectilinear.linearization.kept_fits import KeptFits
from rectilinear.linearization.plan import CostRecord, Replacement
from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.kept import Kept
from rectilinear.models.logits import cache_bytes_of_layers
from rectilinear.models.running import evaluating
from rectilinear.models.surgery import swapped
from rectilinear.ranks import current
from rectilinear.text.batches import tensors_of


@dataclass(frozen=True, eq=False)
class CacheBytes:
    """What the layers of the cache take, in bytes by the index of the layer.

    Attributes:
        original: of the model for ``ids``; none where it has no layers of a cache.
        at_row: the same for a row that is fitted on.
        ids: ``[1, tokens]``, a text of the length that is asked about.
        row: ``[1, seq_len]``.
    """

    original: Sequence[int]
    at_row: Sequence[int]
    ids: Tensor
    row: Tensor

    @classmethod
    def of(cls, bench: Workbench, tokens: int) -> CacheBytes:
        """Those of a model after so many tokens."""
        row = tensors_of(bench.one_row)[0]
        ids = row.repeat(1, -(-tokens // row.shape[1]))[:, :tokens]
        with evaluating(bench.model):
            original, at_row = (cache_bytes_of_layers(bench.model, each) or () for each in (ids, row))
        return cls(original, at_row, ids, row)

    @property
    def total(self) -> int:
        """Of all layers."""
        return sum(self.original)

    def change(self, site: Site, fitted: Fitted) -> int:
        """How many more, or fewer, they are with a replacement."""
        layers = [each for part in site.parts for each in part.cache_layers if each < len(self.original)]
        after = 0
        if fitted.replacement.by.remembers and layers:
            with evaluating(site.bench.model), swapped(site.bench.model, fitted.edits):

                def of_these(ids: Tensor) -> int:
                    found = cache_bytes_of_layers(site.bench.model, ids) or ()
                    return sum(found[layer] for layer in layers)

                # A state that is smaller than the original's after a row grows no more.
                after = of_these(self.row)
                if after >= sum(self.at_row[layer] for layer in layers):
                    after = of_these(self.ids)
        return after - sum(self.original[layer] for layer in layers)


def measure_costs(bench: Workbench, singles: Sequence[Replacement], sizes: CacheBytes, kept: Kept) -> list[CostRecord]:
    """Costs of replacements, each fitted on the original alone, in one walk through it.

    Those that earlier runs have measured are not measured again.
    """
    ranks = current()
    found = ranks.from_first(lambda: {one: kept.load(_name(one), CostRecord) for one in singles})
    missing = sorted((one for one in singles if found[one] is None), key=lambda one: (one.begins, one.blocks))
    bench = replace(bench, kept=KeptFits())  # as each is kept here
    divergence = Divergence(bench)
    with evaluating(bench.model), noting_padding(bench), closing(Streams(bench.passes())) as streams:
        for number, one in enumerate(missing):
            fitted = fit_alone(bench, one, streams)
            site, record = Site(bench, one, streams), fitted.replacement.fit
            assert record is not None
            cost = CostRecord(
                replacement=fitted.replacement,
                divergence=divergence.of(streams, fitted.edits),
                parameters=record.parameters_after - record.parameters_before,
                cache=sizes.change(site, fitted),
            )
            found[one] = cost
            if ranks.is_first:
                kept.save(_name(one), cost)
            if bench.progress:
                bench.progress("costs", number + 1, len(missing))
    return [each for one in singles if (each := found[one]) is not None]


def check_cache(model: nn.Module, sizes: CacheBytes) -> None:
    """Raise a `RequestError` for a model whose cache cannot be limited."""
    if not sizes.total:
        raise RequestError(
            f"expected a model with layers of a cache for a `budget` of it, got {type(model).__name__}; try "
            "`budget=parameters=80%`"
        )


def _name(one: Replacement) -> str:
    """Of the file with the cost of a replacement."""
    options = hashlib.sha256(json.dumps(one.by.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
    return f"{one.target}-{one.where}-{one.kind}-{options}"
