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


def find_needed(bench: Workbench, replacements: Sequence[Replacement]) -> dict[Replacement, RequestError]:
    """Those of some replacements without whose targets the model does not run, and what is said of each."""
    try:
        check_left_out(bench, replacements)
    except RequestError:
        found = {}
        for one in replacements:
            try:
                check_left_out(bench, [one])
            except RequestError as error:
                found[one] = error
        return found
    return {}


def check_left_out(bench: Workbench, replacements: Sequence[Replacement]) -> None:
    """Raise `RequestError` for what the model does not run without: others take more from it than hidden states."""
    streams = Streams(bench.passes())
    sites = [Site(bench, one, streams) for one in replacements if not one.by.keeps_weights]

    def error_without(*some: Site) -> JobError | None:
        edits = {path: module for site in some for path, module in site.left_out().items()}
        try:
            with evaluating(bench.model), swapped(bench.model, edits):
                run(bench.model, bench.one_row)
        except JobError as error:
            return error
        return None

    if not sites or error_without(*sites) is None:
        return
    for some in (*((site,) for site in sites), sites):
        if error := error_without(*some):
            where = " and ".join(f"{site.target} {site.replacement.where}" for site in some)
            raise RequestError(f"expected a model that runs without {where}, got: {error}; try other blocks")
