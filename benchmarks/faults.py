"""Write the figures of `make faults`, which are beside this script, into docs/reliability.md.

python benchmarks/faults.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
_COLUMNS = ("steps", "kills", "moments", "full")
HEADING = "## Figures\n"


def read() -> list[dict[str, Any]]:
    """What tests reported, a line each: a command's steps, kills and full disks, a property's inputs, or a run's end."""
    return [json.loads(line) for line in RESULT.read_text(encoding="utf-8").splitlines()]


def by_command(lines: Iterable[Mapping[str, Any]]) -> dict[tuple[str, bool], dict[str, int]]:
    """Of each command, in a new folder and over an earlier result: steps, kills there and at random, and full disks."""
    commands: dict[tuple[str, bool], dict[str, int]] = {}
    for line in lines:
        if "command" in line:
            counts = commands.setdefault((line["command"], line["over"]), {})
            counts.update({name: line[name] for name in ("steps", "kills", "moments", "full") if name in line})
    return dict(sorted(commands.items()))


def by_property(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many inputs were tried of each kind; parts of one test that ran in several processes add up."""
    tried: dict[str, int] = {}
    for line in lines:
        if "inputs" in line:
            kind = line["inputs"].split(".test_")[-1].removesuffix(".one").replace("_", " ")
            tried[kind] = tried.get(kind, 0) + line["tried"]
    return dict(sorted(tried.items()))


def figures(lines: list[dict[str, Any]]) -> str:
    """The section's text."""
    commands, inputs = by_command(lines), by_property(lines)
    ends = [line for line in lines if "failed" in line]  # of one run, or of several with a part of the tests each
    end = ends[-1] | {name: sum(each[name] for each in ends) for name in ("tests", "failed")}
    kills, moments, full = (
        sum(counts.get(name, 0) for counts in commands.values()) for name in ("kills", "moments", "full")
    )
    table = [
        f"{HEADING}",
        f"`make faults`, {end['date']}, Python {end['python']}, torch {end['torch']}, transformers {end['transformers']}: "
        f"{kills:,} kills at a step, {moments:,} at random moments, {full:,} full disks, {sum(inputs.values()):,} generated inputs; {end['failed']} of the {end['tests']} "
        "tests that tried them failed. Every step of the commands below was tried; of others `make slow` tries one. From `benchmarks/faults.jsonl`.",
        "",
        "| command | over an earlier result | steps | kills | kills at a random moment | full disks |",
        "|---|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {'yes' if over else ''} | {' | '.join(str(counts.get(what, '')) for what in _COLUMNS)} |"
            for (name, over), counts in commands.items()
        ),
        *(["", "| generated | inputs |", "|---|---:|"] if inputs else []),
        *(f"| {name} | {count:,} |" for name, count in inputs.items()),
    ]
    return "\n".join(table) + "\n"


def main() -> None:
    """Write the section anew."""
    page = PAGE.read_text(encoding="utf-8").split(HEADING)[0]
    PAGE.write_text(page + figures(read()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
