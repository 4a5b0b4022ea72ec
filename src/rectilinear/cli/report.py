"""``rectilinear report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from rectilinear.cli.panels import WORK, RuntimeOptions
from rectilinear.errors import RequestError
from rectilinear.publish import stage
from rectilinear.runs import Output, claim


def report(
    places: Annotated[
        list[Path],
        Parameter(help="Results of any commands: files, or folders that have some at any depth.", group=WORK),
    ],
    /,
    *,
    output: RuntimeOptions[Output] = Output(),
) -> None:
    """Make one page of results that explains itself: report.html opens from disk, needs no network, and can be sent.

    It says in words what the numbers mean and what to know before trusting them, and has figures to explore, tables,
    and the settings and versions that made it. Profiles, trainings, evaluations and probes of several models are
    shown over one another too. Beside it, in the folder figures, each figure for paper (png, svg and pdf, for
    one and two columns) and its numbers (csv).

    Example: rectilinear report profile evaluated --out page
    """
    if output.out is None:
        raise RequestError("expected `out`, the folder for the page, got none")
    with claim(output.out, overwrite=output.overwrite, reads=places) as out:
        from rectilinear.report.page import make_report
        from rectilinear.report.terminal import say

        made = make_report(*places)
        if out:
            with stage(out) as folder:
                names = made.write(folder)
            say(f"wrote report.html and {len(names) - 1} files in figures to {out}")
