"""Whether a model runs without what is replaced."""

from __future__ import annotations

from collections.abc import Sequence

from rectilinear.errors import JobError, RequestError
from rectilinear.linearization.fit import Site
from rectilinear.linearization.replacement import Replacement
from rectilinear.linearization.streams import Streams
from rectilinear.linearization.workbench import Workbench
from rectilinear.models.running import evaluating, run
from rectilinear.models.surgery import swapped


def find_needed(bench: Workbench, replacements: Sequence[Replacement]) -> dict[tuple[Replacement, ...], str]:
    """What the model does not run without, as others take more from it than hidden states, and why.

    Each of the targets of some replacements by itself, or all of them where only together they cannot be missed.
    """
    streams = Streams(bench.passes())
    sites = [Site(bench, one, streams) for one in replacements if not one.by.keeps_weights]

    def errors(*groups: Sequence[Site]) -> dict[tuple[Replacement, ...], str]:
        return {
            tuple(site.replacement for site in some): f"expected a model that runs without {_names(some)}, got: {error}"
            for some in groups
            if (error := _error_without(bench, some))
        }

    together = errors(sites) if sites else {}
    return together and (errors(*([site] for site in sites)) or together)


def check_left_out(bench: Workbench, replacements: Sequence[Replacement]) -> None:
    """Raise `RequestError` for what the model does not run without."""
    for reason in find_needed(bench, replacements).values():
        raise RequestError(f"{reason}; try other blocks")


def _error_without(bench: Workbench, sites: Sequence[Site]) -> JobError | None:
    edits = {path: module for site in sites for path, module in site.left_out().items()}
    try:
        with evaluating(bench.model), swapped(bench.model, edits):
            run(bench.model, bench.one_row)
    except JobError as error:
        return error
    return None


def _names(sites: Sequence[Site]) -> str:
    return " and ".join(f"{site.target} {site.replacement.where}" for site in sites)
